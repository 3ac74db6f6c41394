"""Decoding of requests and encoding of answers: msgspec structs, and orjson with checks in Python.

python benchmarks/wire.py        (needs orjson beside nextvec[serve])
"""

import timeit
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import orjson

from nextvec.serving.payload import from_json
from nextvec.wire.predictions import ContextRequest, ExpectedVector, PredictionAnswer
from table import show

DIM, VECTORS, ROWS, K = 384, 100, 1_000, 10
REPEATS = 15


def checked_vectors(body: bytes) -> list[list[float]]:
    values: list[list[float]] = orjson.loads(body)["vectors"]
    for row in values:
        assert isinstance(row, list)
        assert len(row) == DIM
        assert all(type(x) in (int, float) for x in row)
    return values


def checked_rows(body: bytes) -> list[int]:
    values: list[int] = orjson.loads(body)["rows"]
    assert all(type(x) is int and x >= 0 for x in values)
    return values


def struct_answer(found: dict[str, Any]) -> bytes:
    expected = tuple(ExpectedVector(n, 0.5 + n / 1_000, f"document {n}", 1) for n in range(K))
    return msgspec.json.encode(PredictionAnswer(expected=expected, **found))


def dictionary_answer(found: dict[str, Any]) -> bytes:
    expected = [{"row": n, "score": 0.5 + n / 1_000, "document": f"document {n}", "count": 1} for n in range(K)]
    return orjson.dumps({"expected": expected, **found})


def best(call: Callable[[], object], times: int) -> float:
    """Microseconds of the fastest repeat."""
    return min(timeit.repeat(call, number=times, repeat=REPEATS)) / times * 1e6


def main() -> None:
    vectors = orjson.dumps({"vectors": np.random.default_rng(0).standard_normal((VECTORS, DIM)).tolist()})
    rows = orjson.dumps({"rows": list(range(ROWS))})
    found = {"arm": "stable", "model": "first", "reason": "no canary, short", "lane": None, "digest": "d" * 32}
    found |= {"seq": 3, "length": 30, "request": "0123456789abcdef"}
    pairs: list[tuple[str, Callable[[], object], Callable[[], object], int]] = [
        (f"decode {VECTORS} vectors", lambda: checked_vectors(vectors), lambda: from_json(vectors, ContextRequest), 10),
        (f"decode {ROWS:,} row numbers", lambda: checked_rows(rows), lambda: from_json(rows, ContextRequest), 500),
        (f"encode an answer of {K}", lambda: dictionary_answer(found), lambda: struct_answer(found), 5_000),
    ]
    table = [[name, f"{best(old, times):,.1f}", f"{best(new, times):,.1f}"] for name, old, new, times in pairs]
    show("JSON bodies", ["", "orjson, checks in Python (µs)", "msgspec structs (µs)"], table, f"the fastest of {REPEATS}")


if __name__ == "__main__":
    main()
