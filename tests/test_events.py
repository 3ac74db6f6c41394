"""Ingestion of events and items: the same bank from every kind of table, and a refusal that names what does not fit."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

import nextvec as nv
from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.encoders import Encoded
from nextvec.errors import DataError, NextvecError, SettingsError
from nextvec.inference import Engine

DIM, ITEMS, SESSIONS, EVENTS = 8, 60, 12, 400
START = pd.Timestamp("2026-01-01")


def catalogue() -> dict[str, Any]:
    vectors = np.random.default_rng(0).standard_normal((ITEMS, DIM)).astype(np.float32)
    names = [f"p{n}" for n in range(ITEMS)]
    return {"item": names, "title": [f"Product {n}" for n in range(ITEMS)], "vector": vectors.tolist()}


def log() -> dict[str, Any]:
    """Events in no order, several of one time; the last ten items occur in none."""
    rng = np.random.default_rng(1)
    return {
        "session": [f"s{n}" for n in rng.integers(0, SESSIONS, EVENTS)],
        "item": [f"p{n}" for n in rng.integers(0, ITEMS - 10, EVENTS)],
        "time": [START + pd.Timedelta(seconds=int(s)) for s in rng.integers(0, 500, EVENTS)],
    }


def by_definition() -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Sessions by id, the items and the times of each by time and then by their place in the table."""
    events = log()
    rows = sorted(range(EVENTS), key=lambda n: (events["session"][n], events["time"][n], n))
    ids = sorted(set(events["session"]))
    of = [[n for n in rows if events["session"][n] == name] for name in ids]
    seconds = [[int(events["time"][n].timestamp()) for n in part] for part in of]
    return ids, [[int(events["item"][n][1:]) for n in part] for part in of], seconds


def json_lines(path: Path, columns: dict[str, Any]) -> Path:
    values = {name: [str(v) if isinstance(v, pd.Timestamp) else v for v in column] for name, column in columns.items()}
    path.write_text(
        "".join(json.dumps(dict(zip(values, row, strict=True))) + "\n" for row in zip(*values.values(), strict=True))
    )
    return path


def separated(path: Path, columns: dict[str, Any], delimiter: str) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False, sep=delimiter)
    return path


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def shards(path: Path, columns: dict[str, Any]) -> Path:
    path.mkdir()
    whole = pa.table(columns)
    for n in range(0, len(whole), 150):
        pq.write_table(whole.slice(n, 150), path / f"part-{n:04d}.parquet")
    return path


def arrow(path: Path, columns: dict[str, Any]) -> Path:
    feather.write_feather(pa.table(columns), path)
    return path


KINDS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "parquet": lambda folder, columns: parquet(folder / "t.parquet", columns),
    "folder": lambda folder, columns: shards(folder / "t", columns),
    "arrow": lambda folder, columns: arrow(folder / "t.feather", columns),
    "json lines": lambda folder, columns: json_lines(folder / "t.jsonl", columns),
    "csv": lambda folder, columns: separated(folder / "t.csv", columns, ","),
    "tsv": lambda folder, columns: separated(folder / "t.tsv", columns, "\t"),
    "dataframe": lambda _, columns: pd.DataFrame(columns),
    "columns": lambda _, columns: columns,
    "arrow table": lambda _, columns: pa.table(columns),
    "rows": lambda _, columns: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_bank(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind]
    (tmp_path / "e").mkdir()
    (tmp_path / "i").mkdir()
    items = catalogue() if kind in ("csv", "tsv") else made(tmp_path / "i", catalogue())  # a vector is no field of such a file
    bank = nv.ingest(made(tmp_path / "e", log()), tmp_path / "bank", items=items)
    ids, rows, seconds = by_definition()
    assert bank.ids == ids
    assert [bank.sequences.items(slice(*bank.offsets[m : m + 2].tolist())).tolist() for m in range(len(ids))] == rows
    assert bank.sequences.times is not None
    assert np.split(bank.sequences.times, bank.offsets[1:-1]) == [pytest.approx(part) for part in seconds]
    assert (len(bank), len(bank.table), bank.manifest.times) == (EVENTS, ITEMS, "uint32")
    assert bank.table.names == list(zip(catalogue()["item"], catalogue()["title"], strict=True))
    unit = np.array(catalogue()["vector"])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.table.vectors, unit, atol=1e-3)


def test_an_index_orders_events_before_their_times(tmp_path: Path) -> None:
    events = {"session": ["a"] * 3, "item": ["p1", "p2", "p3"], "index": [2, 0, 1], "time": [10.5, 11.0, 12.0]}
    bank = nv.ingest(events, tmp_path / "bank", items=catalogue())
    assert bank.sequences.items(slice(None)).tolist() == [2, 3, 1]
    assert bank.sequences.times is not None and bank.sequences.times.tolist() == [11.0, 12.0, 10.5]


class Counting:
    """An encoder of texts like ``p7``: a vector that the number decides; it fails after some calls."""

    name, fingerprint, dim = "counting", "counting:1", DIM

    def __init__(self, calls: int = 1_000) -> None:
        self.calls = calls

    def encode(self, texts: Sequence[str], kind: str = "passage") -> Encoded:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        rows = np.stack([np.random.default_rng(int(text[1:])).standard_normal(DIM) for text in texts]).astype(np.float32)
        return Encoded(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.full(len(texts), 3, np.int32))


def test_an_item_without_a_vector_is_encoded(tmp_path: Path) -> None:
    items = {"item": ["a", "b", "c"], "vector": [None, [1.0] * DIM, None], "text": ["p5", None, "p9"]}
    events = {"session": [1, 1, 1], "item": ["c", "a", "b"], "index": [0, 1, 2]}
    bank = nv.ingest(events, tmp_path / "bank", Counting(), dtype="float32", items=items, encoder_name="counting")
    own = Counting().encode(["p5", "p9"]).rows
    np.testing.assert_array_equal(bank.table.vectors[[0, 2]], own)
    np.testing.assert_allclose(bank.table.vectors[1], np.full(DIM, DIM**-0.5), rtol=1e-6)
    assert [bank.table.text(n) for n in range(3)] == ["p5", "", "p9"]
    assert (bank.manifest.encoder_fingerprint, bank.text(0)) == ("counting:1", "p9")


def test_a_killed_ingestion_continues_and_gives_the_same_bytes(tmp_path: Path) -> None:
    names = [f"p{n}" for n in range(1_300)]
    items, events = {"item": names, "text": names}, {"session": ["a"] * 3, "item": names[:3], "index": [0, 1, 2]}
    nv.ingest(events, tmp_path / "whole", Counting(), items=items)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            nv.ingest(events, tmp_path / "killed", Counting(calls=1), items=items)
    last = Counting()
    nv.ingest(events, tmp_path / "killed", last, items=items)
    assert last.calls == 1_000 - 1  # of three blocks of 512 items, two were committed
    whole, killed = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "killed"))
    assert whole == killed


def changed(table: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {name: values for name, values in {**table, **columns}.items() if values is not None}


SMALL_ITEMS = {"item": ["a", "b"], "vector": [[1.0, 0.0], [0.0, 1.0]]}
SMALL_EVENTS = {"session": ["x", "x"], "item": ["a", "b"], "index": [0, 1]}


@pytest.mark.parametrize(
    ("events", "items", "message"),
    [
        ({"session": None}, {}, "the events: no column 'session'; columns are item, index"),
        ({"item": None}, {}, "the events: no column 'item'"),
        ({"index": None}, {}, "the events: no column 'index' or 'time'"),
        ({"item": ["a", "z"]}, {}, "the events, row 1: item 'z' is not in the items; add it"),
        ({"item": ["a", None]}, {}, "the events, row 1: no item"),
        ({"index": [1, 1]}, {}, "session 'x' has index 1 twice"),
        ({"index": None, "time": ["2026-01-01", "soon"]}, {}, "a time is not a number or ISO 8601"),
        ({}, {"item": None}, "the items: no column 'item'"),
        ({}, {"item": ["a", "a"]}, "the items: item 'a' appears twice"),
        ({}, {"vector": [[1.0, 0.0], None]}, "the items, row 1: item 'b' has no vector and no text"),
        ({}, {"vector": None, "text": ["one", " "]}, "the items, row 1: item 'b' has no vector and no text"),
        ({}, {"vector": [[1.0, 0.0], [0.0, 0.0]]}, "item 'b', row 0: a zero vector"),
        ({}, {"vector": [[1.0, 0.0], [1.0]]}, "the items, item 'b': the vector has 1 numbers where the first has 2"),
        (
            {},
            {"vector": [[1.0, 0.0], None], "text": ["", "two"]},
            "item 'b' has a text only, and the vectors of other items",
        ),
        ({}, {"vector": ["[1, 0]", "[0, 1]"]}, "column 'vector' is string; want lists of numbers"),
    ],
)
def test_tables_that_do_not_fit_are_refused_by_name(
    events: dict[str, Any], items: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NextvecError) as refused:
        nv.ingest(changed(SMALL_EVENTS, **events), tmp_path / "bank", items=changed(SMALL_ITEMS, **items))
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_without_items_to_encode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="every item has a vector"):
        nv.ingest(SMALL_EVENTS, tmp_path / "bank", Counting(), items=SMALL_ITEMS)
    with pytest.raises(SettingsError, match="no item has a vector"):
        nv.ingest(SMALL_EVENTS, tmp_path / "bank", items={"item": ["a", "b"], "text": ["p1", "p2"]}, encoder_name="x")
    with pytest.raises(DataError, match=r"no\.csv does not exist"):
        nv.ingest(tmp_path / "no.csv", tmp_path / "bank", items=SMALL_ITEMS)


def test_the_command_makes_a_bank_of_the_least_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vectors once, and 4 bytes for each event; names, offsets and the manifest add less than three tenths."""
    rng = np.random.default_rng(0)
    count, dim, rows = 300, 96, 40_000
    events = {
        "session": np.sort(rng.integers(0, 200, rows)),
        "item": rng.integers(0, count - 5, rows),
        "index": np.arange(rows),
    }
    parquet(tmp_path / "events.parquet", {**events, "price": np.ones(rows)})
    vectors = list(rng.standard_normal((count, dim)).astype(np.float32))
    parquet(tmp_path / "items.parquet", {"item": np.arange(count), "vector": vectors})
    paths = [str(tmp_path / name) for name in ("events.parquet", "shop.bank")]
    assert main(["ingest", *paths, "--items", str(tmp_path / "items.parquet"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["items"], said["items_in_no_event"]) == (rows, count, 5)
    assert said["not_read"] == {"columns": [f"price of {tmp_path / 'events.parquet'}"]}
    size = sum(path.stat().st_size for path in (tmp_path / "shop.bank").iterdir())
    assert size <= 1.3 * (2 * dim * count + 4 * rows)


def test_predictions_of_items_equal_those_of_rows(tmp_path: Path) -> None:
    """The untrained model of the package, its space fitted to the rows, ranks items as it ranks the rows that hold them."""
    bank = nv.ingest(log(), tmp_path / "bank", items={name: values[:50] for name, values in catalogue().items()})
    old = Bank.from_numpy(np.asarray(bank.rows), bank.lengths)
    engines = [Engine.open(held) for held in (bank, old)]
    found: list[list[tuple[bytes, float]]] = []
    for engine in engines:
        session = engine.session()
        session.push_many(np.asarray(bank.document(3), np.float32))
        answers = session.predict(8)
        found.append([(engine.bank.table.vectors[e.row].tobytes(), round(e.score, 5)) for e in answers])
        restored = engine.restore(session.snapshot())
        assert [e.row for e in restored.predict(8)] == [e.row for e in answers]
    assert found[0] == found[1]
    first = engines[0].session()
    first.push_many(np.asarray(bank.document(3), np.float32))
    expected = first.predict(1)[0]
    assert (expected.item, expected.document) == (f"p{expected.row}", f"Product {expected.row}")


def test_an_exported_bank_of_items_is_ingested_as_the_same_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = {**catalogue(), "text": [f"text {n}" for n in range(ITEMS)]}
    bank = nv.ingest(log(), tmp_path / "bank", items=items, encoder_name="e", dtype="float32")
    assert main(["export", str(tmp_path / "bank"), str(tmp_path / "out.parquet"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items_file"] == str(tmp_path / "out.items.parquet")
    again = nv.ingest(tmp_path / "out.parquet", tmp_path / "again", items=tmp_path / "out.items.parquet")
    assert again.fingerprint == bank.fingerprint
    assert [again.table.text(n) for n in range(ITEMS)] == items["text"]
