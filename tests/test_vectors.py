"""One definition of a usable vector, right at both ends of every type, at every door."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.bank.objects import table_of
from nextvec.bank.ready_vectors import ready_vectors
from nextvec.client.calls import binary
from nextvec.errors import DataError
from nextvec.index import ExactIndex
from nextvec.inference import Engine
from nextvec.inference.batch import predict_file
from nextvec.models import GRU
from nextvec.serving.payload import decode, from_lists
from nextvec.serving.refusal import RefusedError
from nextvec.vectors import as_float32, unit_rows

DIM = 4
DIRECTION = np.array([3.0, 0.0, -4.0, 0.0])
UNIT = np.array([0.6, 0.0, -0.8, 0.0], np.float32)


@given(st.integers(-1_000, 1_000), st.integers(0, 1_000))
def test_no_power_of_two_changes_a_bit_of_the_unit_row(power: int, seed: int) -> None:
    rows = np.random.default_rng(seed).uniform(0.5, 2.0, (3, DIM)) * np.array([[1.0], [-1.0], [1.0]])
    assert unit_rows(np.ldexp(rows, power)).tobytes() == unit_rows(rows).tobytes()


@given(st.integers(0, 1_000))
def test_a_unit_row_is_the_quotient_that_long_arithmetic_gives(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((5, 384)).astype(np.float32)
    wide = rows.astype(np.longdouble)
    exact = wide / np.sqrt((wide**2).sum(1, keepdims=True))
    np.testing.assert_array_max_ulp(unit_rows(rows), exact.astype(np.float32), maxulp=1)


USABLE: dict[str, np.ndarray] = {
    "float64 1e-20": DIRECTION * 1e-20,
    "float64 1e50": DIRECTION * 1e50,
    "float64 1e300": DIRECTION * 1e300,
    "float64 subnormals": DIRECTION * 2.0**-1070,
    "float32 1e-20": (DIRECTION * 1e-20).astype(np.float32),
    "float32 1e20": (DIRECTION * 1e20).astype(np.float32),
    "float32 subnormals": (DIRECTION * 2.0**-145).astype(np.float32),
    "float32 at its end": (DIRECTION * 2.0**125).astype(np.float32),
    "float16 subnormals": (DIRECTION * 2.0**-22).astype(np.float16),
    "whole numbers": DIRECTION.astype(np.int64),
    "small whole numbers": DIRECTION.astype(np.int8),
}
UNUSABLE: dict[str, tuple[np.ndarray, str]] = {
    "zero": (np.zeros(DIM), "row 0: a zero vector has no direction"),
    "NaN": (np.array([1.0, np.nan, 0.0, 0.0]), "row 0: not a finite vector (NaN or infinity)"),
    "infinity": (np.array([1.0, -np.inf, 0.0, 0.0]), "row 0: not a finite vector (NaN or infinity)"),
    "truth values": (np.ones(DIM, bool), "vectors are bool; want floats or whole numbers"),
    "complex": (np.ones(DIM, complex), "vectors are complex128; want floats or whole numbers"),
    "words": (np.array(["1"] * DIM), "vectors are <U1; want floats or whole numbers"),
    "objects": (np.array([None] * DIM), "vectors are object; want floats or whole numbers"),
}


def in_memory(vector: np.ndarray, _: Path) -> np.ndarray:
    return Bank.from_numpy(vector[None], [1]).rows[0]


def written(vector: np.ndarray, folder: Path) -> np.ndarray:
    with BankWriter(folder / "bank", encoder="t", encoder_fingerprint="t", dim=DIM, dtype="float32") as writer:
        writer.append(VectorDocument("a", "a", vector[None]))
        return writer.finish().rows[0]


def of_a_table(vector: np.ndarray, _: Path) -> np.ndarray:
    table = {"vector": [vector.tolist()], "document": ["a"], "index": [0]}
    held = table_of(table, "the table")
    assert held is not None
    (document,) = ready_vectors(held).documents()
    return unit_rows(document.vectors)[0]


def candidates() -> Bank:
    return Bank.from_numpy(np.eye(DIM, dtype=np.float32), [DIM])


def added(vector: np.ndarray, _: Path) -> np.ndarray:
    index = ExactIndex(candidates().rows.astype(np.float32))
    row = index.add(vector[None])
    return np.array([index.scores(row, axis)[0] for axis in np.eye(DIM, dtype=np.float32)])


def pushed(vector: np.ndarray, _: Path) -> np.ndarray:
    engine = Engine(GRU(torch.zeros(DIM), 0.0).eval(), candidates())
    return engine.session().push(vector)


DOORS: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "bank in memory": in_memory,
    "bank on disk": written,
    "index": added,
    "session": pushed,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", USABLE)
def test_every_door_reads_what_has_a_direction(kind: str, door: str, tmp_path: Path) -> None:
    found = DOORS[door](USABLE[kind], tmp_path)
    wanted = DOORS[door](DIRECTION, tmp_path / "plain")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    if door != "session":  # which answers what it expects, not what it read
        np.testing.assert_allclose(found, UNIT, rtol=0, atol=1e-3 if door == "bank in memory" else 1e-7)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", UNUSABLE)
def test_every_door_refuses_the_rest_with_the_same_words(kind: str, door: str, tmp_path: Path) -> None:
    vector, message = UNUSABLE[kind]
    if door == "bank in memory" and "row" not in message:
        message = "of floats or whole numbers"
    with pytest.raises(DataError, match=re.escape(message)):
        DOORS[door](vector, tmp_path)


@pytest.mark.parametrize("kind", USABLE)
def test_the_server_and_its_client_read_it_too(kind: str) -> None:
    vector = USABLE[kind]
    body, media = binary(vector)
    np.testing.assert_allclose(unit_rows(decode(body, media, DIM).rows)[0], UNIT, rtol=0, atol=1e-7)
    np.testing.assert_allclose(
        unit_rows(from_lists([vector.astype(np.float64).tolist()], DIM).rows)[0], UNIT, rtol=0, atol=1e-7
    )
    if vector.dtype.kind == "f" and vector.dtype.itemsize <= 4:
        assert body == vector.astype(f"<f{vector.dtype.itemsize}").tobytes(), "what float32 holds travels as it is"


@pytest.mark.parametrize("kind", ["zero", "NaN", "infinity"])
def test_the_server_refuses_the_rest_with_the_same_words(kind: str) -> None:
    vector, message = UNUSABLE[kind]
    for read in (lambda: decode(*binary(vector), DIM), lambda: from_lists([vector.astype(np.float64).tolist()], DIM)):
        with pytest.raises(RefusedError, match=re.escape(message)) as refused:
            read()
        assert refused.value.status == 400


def test_a_table_and_a_file_of_contexts_read_float64(tmp_path: Path) -> None:
    assert of_a_table(DIRECTION * 1e50, tmp_path).tolist() == UNIT.tolist()
    rows = [(DIRECTION * 1e50).tolist(), (DIRECTION * 1e-50).tolist()]
    columns: dict[str, Any] = {"document": ["a", "a"], "index": [0, 1], "vector": rows}
    pq.write_table(pa.table(columns), tmp_path / "contexts.parquet")
    engine = Engine(GRU(torch.zeros(DIM), 0.0).eval(), candidates())
    assert predict_file(engine, tmp_path / "contexts.parquet", tmp_path / "expected.parquet", 1)["documents"] == 1
    columns["vector"][1] = [0.0] * DIM
    pq.write_table(pa.table(columns), tmp_path / "zero.parquet")
    with pytest.raises(DataError, match="document 'a', row 1: a zero vector has no direction"):
        predict_file(engine, tmp_path / "zero.parquet", tmp_path / "none.parquet", 1)


def test_ragged_lists_are_one_line() -> None:
    with pytest.raises(DataError, match="not an array of numbers"):
        as_float32([[1.0, 2.0], [3.0]])
