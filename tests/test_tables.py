"""Tables of every kind: what is given is used or refused by name, whatever holds it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.bank.documents import stored_rows
from nextvec.bank.exchange import write_parquet
from nextvec.bank.tokens import token_facts
from nextvec.cli.main import main
from nextvec.errors import DataError, SettingsError
from nextvec.evaluation.audit_text import truncated, unreadable
from nextvec.inference import Engine
from nextvec.ingestion import Document, ingest
from nextvec.ingestion.ingest import open_any
from nextvec.models.baselines import CopyLast
from nextvec.vectors import unit_rows
from tests.conftest import walk_bank

AXES = np.eye(4, dtype=np.float32)
# Rows out of order: 'a' is axes 1, 2; 'b' is axes 3, 0.
TABLE: dict[str, Any] = {"document": ["b", "a", "a", "b"], "index": [1, 0, 1, 0], "vector": AXES.tolist()}
ORDERED = AXES[[1, 2, 3, 0]].tolist()


def texts(source: Any, folder: Path) -> list[tuple[str, str, str]]:
    opened = open_any(source, folder / "bank")
    assert opened.texts is not None
    return [(d.id, d.title, d.text) for d in opened.texts()]


def parquet(folder: Path, columns: Any) -> Path:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


def arrow_file(folder: Path, columns: Any) -> Path:
    feather.write_feather(pa.table(columns), str(folder / "t.ARROW"), compression="lz4")
    return folder / "t.ARROW"


def arrow_stream(folder: Path, columns: Any) -> Path:
    table = pa.table(columns)
    with pa.ipc.new_stream(str(folder / "t.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return folder / "t.arrow"


def json_lines(folder: Path, columns: Any) -> Path:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pa.table(columns).to_pylist()))
    return folder / "t.jsonl"


class Stream:
    """Anything that speaks the Arrow C stream interface, and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


class Named:
    """Column names, and columns by name."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, name: str, /) -> Any:
        return self.columns[name]


class Once:
    """An ``IterableDataset``: dicts that can be read once."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.rows = iter(pa.table(columns).to_pylist())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows


FORMS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "parquet": parquet,
    "arrow file": arrow_file,
    "arrow stream": arrow_stream,
    "json lines": json_lines,
    "dict of columns": lambda _, columns: columns,
    "column names": lambda _, columns: Named(columns),
    "rows": lambda _, columns: pa.table(columns).to_pylist(),
    "rows once": lambda _, columns: Once(columns),
    "c stream": lambda _, columns: Stream(pa.table(columns)),
    "reader once": lambda _, columns: pa.table(columns).to_reader(max_chunksize=1),
    "record batch": lambda _, columns: pa.record_batch(columns),
    "pandas": lambda _, columns: pd.DataFrame(columns),
    "polars": lambda _, columns: pl.DataFrame(columns),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Callable[[Path, dict[str, Any]], Any]:
    return FORMS[request.param]


Form = Callable[[Path, dict[str, Any]], Any]


def test_rows_of_every_form_become_the_same_bank(tmp_path: Path, form: Form) -> None:
    bank = ingest(form(tmp_path, TABLE), tmp_path / "bank")
    assert bank.ids == ["a", "b"]
    assert bank.lengths.tolist() == [2, 2]
    assert bank.rows.tolist() == ORDERED
    assert {path.name for path in tmp_path.iterdir()} <= {"bank", "t.parquet", "t.ARROW", "t.arrow", "t.jsonl"}


def test_texts_of_every_form_are_grouped_and_ordered(tmp_path: Path, form: Form) -> None:
    columns = {"document": ["b", "a", "a"], "index": [0, 1, 0], "text": ["third", "second", "first"], "title": ["B", "A", "A"]}
    assert texts(form(tmp_path, columns), tmp_path) == [("a", "A", "first\n\nsecond"), ("b", "B", "third")]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text, document without index": ({"document": ["a", "a"], "text": ["x", "y"]}, "'document' without 'index'"),
    "text, index without document": ({"index": [0, 1], "text": ["x", "y"]}, "'index' without 'document'"),
    "text, equal indices": (
        {"document": ["a", "b", "a"], "index": [7, 7, 7], "text": ["x", "y", "z"]},
        "document 'a' has index 7 twice",
    ),
    "text, no document": ({"document": ["a", None], "index": [0, 1], "text": ["x", "y"]}, "row 1: no document"),
    "text missing": ({"id": ["a", "b"], "text": ["x", None]}, "row 1: no text|text is NoneType"),
    "two titles": (
        {"document": ["a", "a"], "index": [0, 1], "text": ["x", "y"], "title": ["T", "U"]},
        "document 'a' has titles 'T' and 'U'",
    ),
    "vectors, no index": ({"document": ["a"], "vector": [[1.0]]}, "no column 'index'"),
    "vectors, no document": ({"index": [0], "vector": [[1.0]]}, "no column 'document'"),
    "vectors, equal indices": ({**TABLE, "index": [1, 0, 1, 1]}, "document 'b' has index 1 twice"),
    "vectors, index missing": ({**TABLE, "index": [1, 0, None, 0]}, "row 2: (no index|index is not a number)"),
    "vectors, document missing": ({**TABLE, "document": ["b", None, "a", "b"]}, "row 1: no document"),
    "vector missing": ({**TABLE, "vector": [[1.0], [2.0], None, [3.0]]}, "document 'a', row 2: the vector is missing"),
    "vector ragged": (
        {**TABLE, "vector": [[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [3.0]]},
        "document 'b', row 3: the vector has 1 numbers where the first has 2",
    ),
    "vector with a hole": (
        {**TABLE, "vector": [[1.0, 2.0], [2.0, None], [1.0, 1.0], [3.0, 1.0]]},
        "document 'a'(, row 1: (a number of the vector is missing|not a finite)|: the vector is list)",
    ),
    "two titles beside vectors": ({**TABLE, "title": ["B", "A", "C", "B"]}, "document 'a' has titles 'A' and 'C'"),
    "two encoders": ({**TABLE, "encoder": ["x", "x", "y", "x"]}, "two encoders, 'x' and 'y'"),
    "neither": ({"body": ["x"]}, "want (an object with )?'text'"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("kind", ["parquet", "json lines", "dict of columns", "rows once", "polars"])
def test_what_is_not_clear_is_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    columns, message = REFUSED[name]
    source = FORMS[kind](tmp_path, columns)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=message):
        if "vector" in columns:
            ingest(source, tmp_path / "bank")
        else:
            texts(source, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "index",
    [
        [3, 0, 1, 2],
        [0.75, -1.5, 0.25, 0.5],
        [NOON + timedelta(seconds=s) for s in (3, 0, 1, 2)],
        [(NOON + timedelta(hours=s)).replace(tzinfo=None) for s in (3, 0, 1, 2)],
        [date(2026, 1, d) for d in (4, 1, 2, 3)],
        [timedelta(days=d) for d in (3, 0, 1, 2)],
        [2**62 + 3, 2**62, 2**62 + 1, 2**62 + 2],
    ],
    ids=["whole", "fractions", "times with zone", "times", "dates", "durations", "beyond 2^53"],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "dict of columns", "rows once", "pandas", "polars"])
def test_numbers_and_times_order(tmp_path: Path, kind: str, index: list[Any]) -> None:
    columns = {"document": ["a"] * 4, "index": index, "vector": AXES.tolist()}
    bank = ingest(FORMS[kind](tmp_path, columns), tmp_path / "bank")
    assert bank.rows.tolist() == AXES[[1, 2, 3, 0]].tolist()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (["2026-01-01", "2026-01-02", "x", "y"], "want numbers, dates or times"),
        ([True, False, True, False], "want numbers, dates or times"),
        ([0.0, float("nan"), 1.0, 2.0], "row 1: index is not a number"),
    ],
)
def test_what_is_no_order_is_refused(tmp_path: Path, index: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingest(parquet(tmp_path, {**TABLE, "index": index}), tmp_path / "bank")


@pytest.mark.parametrize("kind", FORMS)
def test_whole_numbers_are_ids_ordered_as_strings(tmp_path: Path, kind: str) -> None:
    columns = {"document": [10, 9, 10, 9], "index": [0, 0, 1, 1], "vector": AXES.tolist()}
    assert ingest(FORMS[kind](tmp_path, columns), tmp_path / "bank").ids == ["10", "9"]


DAYS = ["2026-01-04", "2026-01-01", "2026-01-02", "2026-01-03"]


@pytest.mark.parametrize(
    "index",
    [
        *(list(np.array(DAYS, f"M8[{unit}]")) for unit in ("D", "h", "m", "s", "ms", "us", "ns")),
        list(np.array([3, 0, 1, 2], "m8[D]")),
        list(np.array([3, 0, 1, 2], "m8[ns]")),
        list(np.array(["2026-04", "2026-01", "2026-02", "2026-03"], "M8[M]")),
        [np.int32(3), -(2**40), 0, np.int64(1)],
        [np.uint8(3), 0, 1, 2],
        [np.int32(2**31 - 1), np.int64(-(2**50)), 1, 2],
        [np.int64(2**50), *(np.uint8(k) for k in range(3))],
        [np.float16(2**11), *(np.float64(2**10 + k / 2**20) for k in range(3))],
    ],
)
@pytest.mark.parametrize("kind", ["rows once", "dict of columns", "arrays"])
def test_numpy_scalars_order_whatever_the_first_one_is(tmp_path: Path, kind: str, index: list[Any]) -> None:
    rows = ({"document": "a", "index": place, "vector": AXES[row]} for row, place in enumerate(index))
    columns = {"document": ["a"] * 4, "index": np.array(index) if kind == "arrays" else index, "vector": AXES}
    bank = ingest(rows if kind == "rows once" else columns, tmp_path / "bank")
    assert bank.rows.tolist() == AXES[[1, 2, 3, 0]].tolist()


@pytest.mark.parametrize("narrow", [np.int8(0), np.uint8(0), np.int32(0), np.float16(0), np.float32(0)])
def test_a_narrow_first_index_narrows_no_later_one(tmp_path: Path, narrow: Any) -> None:
    whole = not isinstance(narrow, np.floating)
    later = [2**40 + 1, 2**40, -1] if whole else [1 + 2**-40, 1.0, -1e300]
    rows = ({"document": "a", "index": place, "vector": AXES[row]} for row, place in enumerate([narrow, *later]))
    assert ingest(rows, tmp_path / "bank").rows.tolist() == AXES[[3, 0, 2, 1]].tolist()


@pytest.mark.parametrize(
    "index",
    [[NOON, NOON.replace(tzinfo=None)], [NOON.replace(tzinfo=None), NOON], [NOON.date(), NOON], [1, 1.5], [0, timedelta(1)]],
    ids=["zone, none", "none, zone", "date, time", "whole, fraction", "number, duration"],
)
def test_rows_of_indices_that_do_not_compare_are_refused(tmp_path: Path, index: list[Any]) -> None:
    rows = ({"document": "a", "index": place, "vector": AXES[row]} for row, place in enumerate(index))
    with pytest.raises(DataError, match=r"row 1, document 'a': index is .* as in the first row"):
        ingest(rows, tmp_path / "bank")
    if all(isinstance(place, datetime) for place in index):
        for held in (index, np.array(index)):
            with pytest.raises(DataError, match="column 'index' cannot be read: times with and without a time zone"):
                ingest({"document": ["a", "a"], "index": held, "vector": AXES[:2]}, tmp_path / "bank")


def test_masked_values_are_missing_and_not_data(tmp_path: Path) -> None:
    masked = np.ma.array(AXES, mask=AXES > 0)
    sources: list[Any] = [
        {"vectors": masked, "lengths": [4]},
        {"vectors": AXES, "lengths": np.ma.array([4, 9], mask=[False, True])},
        {**TABLE, "vector": masked},
        {**TABLE, "vector": list(masked)},
        {**TABLE, "index": np.ma.array([1, 0, 1, 0], mask=[True, False, False, False])},
        [{"document": "a", "index": 0, "vector": masked[0]}],
    ]
    for source in sources:
        with pytest.raises(DataError, match="masked"):
            ingest(source, tmp_path / "bank")
    with pytest.raises(DataError, match="masked"):
        unit_rows(masked)
    whole = np.ma.array(AXES, mask=False)
    assert Bank.from_numpy(whole, [4]).rows.tolist() == AXES.tolist()


def test_a_null_id_is_a_missing_id(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": null, "text": "x"}\n\n{"text": "y", "title": null}\n{"text": "z", "title": 5}\n')
    assert [(name, title) for name, title, _ in texts(tmp_path / "t.jsonl", tmp_path)] == [
        ("00000001", "00000001"),
        ("00000003", "00000003"),
        ("00000004", "5"),
    ]
    assert [name for name, _, _ in texts({"id": [None, None], "text": ["x", "y"]}, tmp_path)] == ["00000000", "00000001"]
    for some in ([None, "b"], ["a", None]):
        with pytest.raises(DataError, match=f"row 1 has {'an' if some[1] else 'no'} id, unlike the rows before"):
            texts({"id": some, "text": ["x", "y"]}, tmp_path)


@pytest.mark.parametrize("ordered", [True, False])
def test_title_and_text_beside_vectors_are_stored(tmp_path: Path, form: Form, ordered: bool) -> None:
    rows = [1, 2, 3, 0] if ordered else [0, 1, 2, 3]
    columns = {**TABLE, "title": ["Bé", "A", "A", "Bé"], "text": ["zwei", "erstes\nStück", "日本", ""], "colour": [1, 2, 3, 4]}
    columns = {name: [values[row] for row in rows] for name, values in columns.items()}
    with pytest.warns(UserWarning, match="columns not read: colour"):
        bank = ingest(form(tmp_path, columns), tmp_path / "bank", encoder_name="e5")
    assert bank.documents == [("a", "A"), ("b", "Bé")]
    assert [bank.text(row) for row in range(4)] == ["erstes\nStück", "日本", "", "zwei"]
    assert bank.rows.tolist() == ORDERED
    assert (bank.manifest.encoder, bank.manifest.encoder_fingerprint) == ("e5", "e5")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_any_order_and_any_batches_give_the_rows_of_a_slow_sort(lengths: list[int], seed: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    documents = np.repeat([f"d{m}" for m in rng.permutation(len(lengths))], lengths)
    index = rng.permutation(len(documents)) / 3
    shuffled = rng.permutation(len(documents))
    documents, index = documents[shuffled], index[shuffled]
    vectors = rng.standard_normal((len(documents), 3)).astype(np.float32)
    table = pa.table({"document": documents, "index": index, "vector": list(vectors)})
    chunked = pa.Table.from_batches(table.to_batches(max_chunksize=batch))
    bank = Bank.from_numpy(chunked)
    order = sorted(range(len(documents)), key=lambda row: (documents[row], index[row]))
    expected = vectors[order] / np.linalg.norm(vectors[order], axis=1, keepdims=True)
    np.testing.assert_allclose(bank.rows, expected, atol=1e-3)
    assert bank.ids == sorted(set(documents.tolist()))


VECTORS = {
    "fixed float16": lambda v: pa.FixedSizeListArray.from_arrays(pa.array(v.astype(np.float16).ravel()), 4),
    "fixed float64": lambda v: pa.FixedSizeListArray.from_arrays(pa.array(v.astype(np.float64).ravel()), 4),
    "list": lambda v: pa.array(list(v)),
    "large list": lambda v: pa.array(list(v), pa.large_list(pa.float32())),
    "list view": lambda v: pa.array([x.tolist() for x in v], pa.list_view(pa.float32())),
    "whole numbers": lambda v: pa.array(v.astype(np.int8).tolist(), pa.list_(pa.int8())),
    "decimals": lambda v: pa.array(v.astype(int).tolist(), pa.list_(pa.int64())).cast(pa.list_(pa.decimal128(21, 1))),
    "tensor": lambda v: pa.FixedShapeTensorArray.from_numpy_ndarray(v),
    "sliced": lambda v: pa.array([[9.0] * 4, *v.tolist()], pa.list_(pa.float32(), 4))[1:],
}


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("ordered", [True, False])
def test_vectors_of_every_type_are_read(tmp_path: Path, kind: str, ordered: bool) -> None:
    rows = [1, 2, 3, 0] if ordered else [0, 1, 2, 3]
    keys = {name: [TABLE[name][row] for row in rows] for name in ("document", "index")}
    bank = Bank.from_numpy(pa.table({**keys, "vector": VECTORS[kind](AXES[rows])}))
    assert bank.rows.tolist() == ORDERED


@pytest.mark.parametrize("form", ["rows once", "dict of columns"])
@pytest.mark.parametrize("first", [np.float16, np.float32])
@pytest.mark.parametrize("scale", [1e10, 1e-10, 1e50, 1e-50])
def test_the_first_vector_narrows_no_later_one(tmp_path: Path, form: str, first: Any, scale: float) -> None:
    direction = np.array([3.0, 4.0, 0.0, 1e-4])
    vectors = [np.array([1, 0, 0, 0], first), direction * scale]
    columns = {"document": ["a", "a"], "index": [0, 1], "vector": vectors}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    bank = ingest(columns if form == "dict of columns" else iter(rows), tmp_path / "bank", dtype="float32")
    np.testing.assert_allclose(bank.rows[1], direction / np.linalg.norm(direction), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_of_a_bank_come_back_to_the_bit_from_any_wider_float(dtype: Any) -> None:
    """Unit rows are off unit length by rounding: made unit again, some would change."""
    vectors = np.random.default_rng(0).standard_normal((500, 16))
    stored = stored_rows(vectors, "a", dtype)
    for held in (stored, stored.astype(np.float32), stored.astype(np.float64)):
        assert stored_rows(held, "a", dtype).tobytes() == stored.tobytes()


@pytest.mark.parametrize(
    "columns",
    [
        {"document": ["a", 1, "b"], "index": [0, 0, 0], "vector": AXES[:3].tolist()},
        {"document": [1, "a", "b"], "index": [0, 0, 0], "vector": AXES[:3].tolist()},
        {"text": ["a", "b", "c"], "id": [1, "b", "c"]},
        {"text": ["a", "b", 3]},
    ],
)
def test_a_dataframe_of_mixed_values_is_one_line_that_names_the_column(tmp_path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"the table cannot be read: .*column (document|id|text) ") as raised:
        open_any(pd.DataFrame(columns), tmp_path / "bank")
    assert "\n" not in str(raised.value)


# What people hold in Python


class Device:
    """A tensor that NumPy refuses until it is detached."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def detach(self) -> "Device":
        return self

    def cpu(self) -> "Device":
        return self

    def numpy(self) -> np.ndarray:
        return self.values


@pytest.mark.parametrize(
    "vectors",
    [
        AXES,
        AXES.tolist(),
        AXES.astype(int).tolist(),
        torch.eye(4),
        torch.eye(4, dtype=torch.bfloat16),
        torch.eye(4, requires_grad=True),
        list(torch.eye(4)),
        list(AXES),
        Device(AXES),
        pd.DataFrame(AXES),
        pl.DataFrame(AXES),
    ],
    ids=lambda value: type(value).__name__,
)
def test_from_numpy_takes_what_holds_numbers(vectors: Any) -> None:
    for lengths in ([1, 3], np.array([1, 3], np.uint8), torch.tensor([1, 3]), pd.Series([1, 3])):
        bank = Bank.from_numpy(vectors, lengths, ids=np.array([5, 6]))
        assert bank.rows.tolist() == AXES.tolist()
        assert (bank.ids, bank.lengths.tolist()) == (["5", "6"], [1, 3])


@pytest.mark.parametrize(
    "ids", [[7, 8], [np.int64(7), np.int32(8)], np.array(["7", "8"]), torch.tensor([7, 8]), pd.Series([7, 8]), pa.array([7, 8])]
)
def test_ids_are_strings_or_whole_numbers(ids: Any) -> None:
    assert Bank.from_numpy(AXES, [2, 2], ids).ids == ["7", "8"]


def test_columns_of_arrays_tensors_and_series(tmp_path: Path) -> None:
    for vector in (AXES, torch.eye(4), list(AXES), list(torch.eye(4)), pl.Series(AXES.tolist()), pa.array(AXES.tolist())):
        for index in (np.array([1, 0, 1, 0]), torch.tensor([1, 0, 1, 0]), pd.Series([1, 0, 1, 0])):
            columns = {"document": np.array(["b", "a", "a", "b"]), "index": index, "vector": vector}
            assert Bank.from_numpy(columns).rows.tolist() == ORDERED
    arrays = {"vectors": torch.eye(4), "lengths": [1, 3], "ids": [1, 2]}
    assert ingest(arrays, tmp_path / "bank").ids == ["1", "2"]


def test_texts_and_documents_that_can_be_read_once(tmp_path: Path) -> None:
    documents = [Document("x", "X", "one"), Document("y", "Y", "two", markdown=True)]
    assert texts(["one", "two"], tmp_path) == [("00000000", "00000000", "one"), ("00000001", "00000001", "two")]
    assert texts(iter(["one", "two"]), tmp_path) == texts(["one", "two"], tmp_path)
    assert texts(np.array(["one", "two"]), tmp_path) == texts(pd.Series(["one", "two"]), tmp_path)
    assert texts(documents, tmp_path) == [("x", "X", "one"), ("y", "Y", "two")]
    opened = open_any((document for document in documents), tmp_path / "bank")
    assert opened.texts is not None
    assert list(opened.texts()) == list(opened.texts()) == documents


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 5, "cannot read int"),
        (lambda: None, "cannot read NoneType"),
        (lambda: b"text", "cannot read bytes"),
        (lambda: object(), "cannot read object"),
        (list, "holds no document"),
        (dict, "want 'text'"),
        (lambda: [1, 2], "row 0 is int"),
        (lambda: AXES, "row 0 is ndarray"),
        (lambda: torch.eye(2), "row 0 is Tensor"),
        (lambda: AXES.tolist(), "row 0 is list"),
        (lambda: pd.DataFrame(AXES), "has columns 0, 1, 2, 3"),
        (lambda: ["x", 5], "document 1 is 5"),
        (lambda: iter(["x", 5]), "row 1 is int"),
        (lambda: [{"text": 5}], "row 0: text is int"),
        (lambda: [{"text": "x", "id": 1.5}], "row 0: id is float"),
        (lambda: [{"text": "x", "id": True}], "row 0: id is bool"),
        (lambda: [{"text": "x"}, {"text": "y", "document": "a"}], "row 1 has 'document', which the first row lacks"),
        (lambda: [{"text": "x\ud800"}], "row 0 holds half a surrogate"),
        (lambda: {"text": "x"}, "column 'text' is str"),
        (lambda: {"text": ["x"], "id": ["a", "b"]}, "columns differ in length"),
        (lambda: {"text": ["x", 5]}, "column 'text' cannot be read"),
        (lambda: {**TABLE, "vector": 5}, "column 'vector' cannot be read"),
        (lambda: {**TABLE, "vector": ["x"] * 4}, "column 'vector' is string"),
        (lambda: {**TABLE, "vector": [["x"]] * 4}, "column 'vector' holds string"),
        (lambda: {**TABLE, "document": [1.5, 2.0, 2.0, 1.5]}, "column 'document' is double"),
        (lambda: {"train": Named(TABLE), "test": Named(TABLE)}, "splits train, test"),
        (lambda: Document("a", "A", "text"), "cannot read Document"),
    ],
)
def test_anything_else_is_one_clear_line(tmp_path: Path, make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        opened = open_any(make(), tmp_path / "bank")
        list((opened.texts or opened.vectors or list)())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((AXES,), "give lengths"),
        ((5, [1]), "vectors have shape"),
        (("x", [1]), "vectors have shape"),
        (([[1.0], [1.0, 2.0]], [2]), "not an array of numbers"),
        ((AXES, "x"), "lengths must be"),
        ((AXES, [1.5, 2.5]), "lengths must be"),
        ((AXES, [2, 2], 5), "ids are int"),
        ((AXES, [2, 2], ["a", None]), "id 1 is None"),
        ((AXES, [2, 2], ["a", 1.5]), "id 1 is 1.5"),
        ((AXES > 0, [4]), "want \\[rows, width\\] of floats or whole numbers"),
        ((TABLE, None, ["a"]), "ids are for arrays"),
    ],
)
def test_from_numpy_refuses_in_one_line(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Bank.from_numpy(*arguments)


# Folders and files


def saved(folder: Path, tables: list[pa.Table], **state: Any) -> Path:
    """What ``datasets.Dataset.save_to_disk`` writes: Arrow streams, and their names in order."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(tables):05d}.arrow" for n in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_dataset_is_read_in_its_order(tmp_path: Path) -> None:
    table = pa.table(TABLE)
    folder = saved(tmp_path / "saved", [table.slice(0, 3), table.slice(3)])
    assert ingest(folder, tmp_path / "bank").rows.tolist() == ORDERED
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow is missing"):
        ingest(folder, tmp_path / "other")
    chosen = saved(tmp_path / "chosen", [table], _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        ingest(chosen, tmp_path / "other")


def test_splits_of_a_saved_dataset_are_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    saved(tmp_path / "train", [pa.table(TABLE)])
    with pytest.raises(DataError, match="holds the splits train, test; name one"):
        ingest(tmp_path, tmp_path.parent / "bank")
    assert open_any(tmp_path / "train", tmp_path / "bank").vectors is not None


def test_the_real_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict(TABLE)
    turned = whole.select([3, 2, 1, 0])
    turned.save_to_disk(tmp_path / "saved")
    for number, source in enumerate((whole, turned, whole.to_iterable_dataset(), tmp_path / "saved")):
        assert ingest(source, tmp_path / f"bank{number}").rows.tolist() == ORDERED
    assert texts(datasets.Dataset.from_dict({"text": ["x", "y"]}).select([1, 0]), tmp_path)[0][2] == "y"
    with pytest.raises(DataError, match="splits train, test"):
        ingest(datasets.DatasetDict({"train": whole, "test": whole}), tmp_path / "bank")


def test_a_relation_of_duckdb(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    relation = duckdb.from_arrow(pa.table(TABLE))
    assert ingest(relation, tmp_path / "bank").rows.tolist() == ORDERED


@pytest.mark.parametrize("ending", ["parquet", "PARQUET", "arrow", "jsonl", "ndjson"])
def test_shards_are_read_in_order_of_their_names(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "shards"
    (folder / "part").mkdir(parents=True)
    for name, words in (("part/2", ["c", "d"]), ("1", ["a", "b"])):
        table = pa.table({"text": words, "id": words})
        made = {"parquet": parquet, "PARQUET": parquet, "arrow": arrow_stream}.get(ending, json_lines)(tmp_path, table)
        made.rename(folder / f"{name}.{ending}")
    assert [text for _, _, text in texts(folder, tmp_path)] == ["a", "b", "c", "d"]


def test_shards_that_differ_are_refused(tmp_path: Path) -> None:
    for name, columns in (("a", {"text": ["x"]}), ("b", {"text": [5]})):
        parquet(tmp_path, columns).rename(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"a\.parquet and b\.parquet differ: column 'text' is string and int64"):
        texts(tmp_path, tmp_path.parent)


def test_endings_in_any_case_and_hidden_files_left_out(tmp_path: Path) -> None:
    for name in ("A.TXT", "b.Markdown", "c.rst", "d.md", ".hidden.txt", ".git/e.txt", "sub/.cache/f.md"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(f"text of {name}")
    assert [name for name, _, _ in texts(tmp_path / "in", tmp_path)] == ["A.TXT", "b.Markdown", "c.rst", "d.md"]
    assert texts(tmp_path / "in" / "A.TXT", tmp_path)[0][2] == "text of A.TXT"
    np.savez(tmp_path / "v.npz", vectors=AXES, lengths=[4])
    (tmp_path / "v.npz").rename(tmp_path / "v.NPZ")
    assert len(ingest(tmp_path / "v.NPZ", tmp_path / "bank")) == 4


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[Any, str]:
    capsys.readouterr()
    assert main([*arguments]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if "--json" in arguments and code == 0 else out), err


def test_what_a_folder_holds_and_was_not_read_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.txt", "b.pdf", "c.PDF", "d.docx", "Makefile", ".hidden.pdf"):
        (folder / name).write_text("Some text.")
    found, err = run(capsys, "ingest", str(folder), str(tmp_path / "one"), "--json")
    assert found["not_read"] == {"files": {".pdf": 2, ".docx": 1, "": 1}}
    assert "4 files not read: 2 .pdf, 1 without ending, 1 .docx" in err
    with pytest.warns(UserWarning, match="4 files not read: 2 .pdf"):
        ingest(folder, tmp_path / "two")


def test_files_that_cannot_be_read_are_skipped_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("Some text.")
    (folder / "bad.txt").write_bytes(b"abc\xff")
    (folder / "empty.txt").write_bytes(b"")
    command = ("ingest", str(folder), str(tmp_path / "bank"), "--json")
    _, err = run(capsys, *command, code=2)
    assert "bad.txt" in err
    assert not (tmp_path / "bank").exists()
    found, err = run(capsys, *command, "--skip-unreadable")
    assert found["documents"] == 1
    assert found["not_read"]["skipped"].keys() == {"bad.txt", "empty.txt"}
    assert re.search(r"2 files skipped: .*bad\.txt.*empty\.txt", err)
    (folder / "good.txt").unlink()
    _, err = run(capsys, "ingest", str(folder), str(tmp_path / "none"), "--skip-unreadable", code=2)
    assert "none of 2 files can be read" in err
    shards = tmp_path / "shards"
    shards.mkdir()
    parquet(tmp_path, TABLE).rename(shards / "a.parquet")
    (shards / "b.parquet").write_bytes(b"PAR1")
    found, err = run(capsys, "ingest", str(shards), str(tmp_path / "shard"), "--skip-unreadable", "--json")
    assert found["not_read"]["skipped"].keys() == {"b.parquet"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.md", "b.parquet"], "both texts and tables"),
        (["a.jsonl", "b.parquet"], "tables of two kinds"),
        (["a.pdf"], "no .txt or .md file and no table; it holds 1 .pdf"),
        ([".a.txt"], "no .txt or .md file"),
    ],
)
def test_folders_that_are_not_clear_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=message):
        ingest(tmp_path, tmp_path.parent / "bank")


def test_an_array_without_lengths_and_a_bank_are_refused_as_sources(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", AXES)
    with pytest.raises(DataError, match=r"save vectors and lengths as \.npz"):
        ingest(tmp_path / "v.npy", tmp_path / "bank")
    ingest(TABLE, tmp_path / "bank")
    with pytest.raises(DataError, match="is a bank already"):
        ingest(tmp_path / "bank", tmp_path / "other")


# Encoders, and there and back


def with_metadata(facts: Any) -> pa.Table:
    return pa.table(TABLE).replace_schema_metadata({"nextvec": facts if isinstance(facts, str) else json.dumps(facts)})


def test_ready_vectors_name_their_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    column = parquet(tmp_path, {**TABLE, "encoder": ["e5"] * 4})
    assert ingest(column, tmp_path / "column").manifest.encoder_fingerprint == "e5"
    described = parquet(tmp_path, with_metadata({"encoder": "e5", "encoder_fingerprint": "e5:abc"}))
    made = ingest(described, tmp_path / "metadata").manifest
    assert (made.encoder, made.encoder_fingerprint) == ("e5", "e5:abc")
    found, _ = run(capsys, "ingest", str(described), str(tmp_path / "named"), "--encoder-name", "e5", "--json")
    assert found["encoder_fingerprint"] == "e5:abc"
    _, err = run(capsys, "ingest", str(described), str(tmp_path / "other"), "--encoder-name", "bge", code=2)
    assert "its vectors are of 'e5', but the encoder's name given says 'bge'" in err
    _, err = run(capsys, "ingest", str(described), str(tmp_path / "other"), "--encoder", "bge", code=2)
    assert "an encoder is for texts" in err
    np.savez(tmp_path / "v.npz", vectors=AXES, lengths=[4], encoder="e5")
    assert ingest(tmp_path / "v.npz", tmp_path / "npz").manifest.encoder == "e5"
    with pytest.raises(DataError, match="of 'e5', not 'bge'"):
        ingest(tmp_path / "v.npz", tmp_path / "other", encoder_name="bge")
    for damaged in ("{", "[1]", {"encoder": 5}, {"dtype": "int8"}):
        with pytest.raises(DataError, match="metadata 'nextvec'"):
            ingest(parquet(tmp_path, with_metadata(damaged)), tmp_path / "other")
    with pytest.raises(SettingsError, match="--encoder-name is for ready vectors"):
        ingest(["text"], tmp_path / "other", encoder_name="e5")


def bank_with_text(folder: Path, dtype: str) -> Bank:
    """Documents whose ids are not in order, with titles, texts that overlap no line, and tokens."""
    from nextvec.bank import BankWriter, VectorDocument

    rng = np.random.default_rng(3)
    with BankWriter(
        folder,
        encoder="e",
        encoder_fingerprint="e:1",
        dim=5,
        dtype=dtype,
        chunking="9 tokens",
        text=True,  # type: ignore[arg-type]
    ) as writer:
        for name, title, words in (
            ("z", "Zed", ["ein", "zwei", "drei"]),
            ("a", "", ["four\nfive"]),
            ("m/ü", "Mü", ["x", "ÿ日"]),
        ):
            text = " ".join(words)
            starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
            spans = [(int(a), int(a) + len(word)) for a, word in zip(starts, words, strict=True)]
            writer.append(VectorDocument(name, title, rng.standard_normal((len(words), 5)), text, spans, range(len(words))))
        return writer.finish()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_export_and_ingest_lose_nothing(tmp_path: Path, dtype: str) -> None:
    bank = bank_with_text(tmp_path / "bank", dtype)
    write_parquet(bank, tmp_path / "t.parquet")
    again = ingest(tmp_path / "t.parquet", tmp_path / "again")
    assert again.fingerprint == bank.fingerprint
    assert again.documents == bank.documents
    assert [again.text(row) for row in range(len(bank))] == [bank.text(row) for row in range(len(bank))]
    assert replace(again.manifest, source="") == replace(bank.manifest, source="")
    assert again.tokens is not None
    assert again.tokens.tolist() == [0, 1, 2, 0, 0, 1]
    table = pq.read_table(tmp_path / "t.parquet").take(pa.array([5, 4, 3, 2, 1, 0]))
    shuffled = ingest(parquet(tmp_path, table), tmp_path / "shuffled")
    assert sorted(shuffled.documents) == sorted(bank.documents)
    assert [shuffled.text(row) for row in range(3)] == ["x", "ÿ日", "four\nfive"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from(["float16", "float32"]))
def test_stored_rows_are_stored_again_to_the_bit(seed: int, dim: int, dtype: Any) -> None:
    from nextvec.bank.documents import stored_rows

    once = stored_rows(np.random.default_rng(seed).standard_normal((200, dim)) + 1e-3, "d", dtype)
    np.testing.assert_array_equal(stored_rows(once, "d", dtype), once)


def test_a_bank_of_vectors_comes_back_from_parquet(tmp_path: Path) -> None:
    bank = walk_bank()
    write_parquet(bank, tmp_path / "t.parquet")
    again = ingest(tmp_path / "t.parquet", tmp_path / "again")
    np.testing.assert_array_equal(again.rows, bank.rows)
    assert list(again.documents) == list(bank.documents)


# Memory

READ = """
import resource, sys
from pathlib import Path
from nextvec.ingestion.ingest import open_any
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(len(d.vectors) for d in open_any(sys.argv[1], Path(sys.argv[2])).vectors()) == 20_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.integration
@pytest.mark.parametrize("ordered", [True, False])
def test_reading_parquet_takes_no_more_memory_than_its_vectors(tmp_path: Path, ordered: bool) -> None:
    rows, dim = 20_000, 384
    vectors = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    documents = np.repeat(np.arange(rows // 100), 100)
    shuffled = np.arange(rows) if ordered else np.random.default_rng(1).permutation(rows)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
    keys = {"document": [f"{m:05d}" for m in documents[shuffled]], "index": shuffled}
    pq.write_table(pa.table({**keys, "vector": column}), tmp_path / "t.parquet")
    command = [sys.executable, "-c", READ, str(tmp_path / "t.parquet"), str(tmp_path / "bank")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    assert grown < 1.5 * vectors.nbytes  # as Python floats they took 20 times as much


def test_text_beside_ready_vectors_is_shown_but_not_encoded(tmp_path: Path) -> None:
    """Such text was not cut here: no audit measures how it was encoded, and a session refuses more of it by one line."""
    bank = ingest({**TABLE, "text": ["x", "", "y", "z"]}, tmp_path / "bank", encoder_name="all-MiniLM-L6-v2")
    assert truncated(bank).says == unreadable(bank).says == "not applicable: the vectors were not made of text here"
    assert token_facts(bank)["tokens_per_chunk"] is None
    session = Engine(CopyLast(bank.dim), bank).session()
    with pytest.raises(DataError, match=r"chunking as 'none'|installed is"):
        session.push_text("words")
    nameless = ingest({**TABLE, "text": ["x", "", "y", "z"]}, tmp_path / "nameless")
    with pytest.raises(DataError, match="does not say which encoder"):
        Engine(CopyLast(bank.dim), nameless).session().push_text("words")
    session.push(AXES[0])
    assert sorted(str(expected.text) for expected in session.predict(3)) == ["", "y", "z"]
