"""Bodies: what is read is what was sent, and nothing that is sent breaks more than its own request."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.serving import payload
from nextvec.serving.refusal import RefusedError
from nextvec.wire.limits import MOST_VECTORS, most_body, most_rows
from nextvec.wire.media import F16, F32
from nextvec.wire.predictions import ContextRequest

DIM = 4


@given(st.integers(1, 50), st.sampled_from([F32, F16, "application/octet-stream"]), st.integers(0, 1000))
def test_rows_arrive_as_they_were_sent(count: int, kind: str, seed: int) -> None:
    dtype = "<f2" if kind == F16 else "<f4"
    rows = np.random.default_rng(seed).standard_normal((count, DIM)).astype(dtype)
    found = payload.decode(rows.tobytes(), kind, DIM)
    np.testing.assert_array_equal(found.rows, rows.astype(np.float32))
    assert found.payload == rows.tobytes()
    assert found.half == (kind == F16)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", F32, 400),
        (b"123", F32, 400),
        (bytes(16), F32, 400),
        (np.array([1, np.nan, 0, 0], "<f4").tobytes(), F32, 400),
        (np.array([1, np.inf, 0, 0], "<f2").tobytes(), F16, 400),
        (np.ones(DIM, "<f4").tobytes(), "text/plain", 415),
        (np.ones(DIM, "<f4").tobytes(), "", 415),
        (np.ones((MOST_VECTORS + 1, DIM), "<f2").tobytes(), F16, 413),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(body: bytes, kind: str, status: int) -> None:
    with pytest.raises(RefusedError) as refused:
        payload.decode(body, kind, DIM)
    assert refused.value.status == status
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        "x",
        [[1, 2, 3]],
        [[1, 2, 3, None]],
        [[1, 2, 3, [4]]],
        [[1, 2, 3, "4"]],
        [[1, 2, 3, True]],
        [[0, 0, 0, 0]],
        [[10**400, 0, 0, 0]],
    ],
)
def test_bad_json_vectors_are_refused(values: object) -> None:
    with pytest.raises(RefusedError) as refused:
        given = payload.from_json(json.dumps({"vectors": values}).encode(), ContextRequest)
        payload.from_lists(given.vectors or [], DIM)
    assert refused.value.status == 400


@pytest.mark.parametrize("values", [None, [], [-1], [5], [1.0], [True], ["1"], [10**30]])
def test_bad_row_numbers_are_refused(values: object) -> None:
    with pytest.raises(RefusedError):
        given = payload.from_json(json.dumps({"rows": values}).encode(), ContextRequest)
        payload.check_ids(given.rows or [], 5)


@pytest.mark.parametrize("body", [b'{"rows":[1],"x":2}', b'{"text":"\\ud800 a"}', b'{"text":"\xff"}', b'{"a\\nb":1}'])
def test_a_body_with_an_unknown_field_or_a_broken_text_is_refused_in_one_line(body: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        payload.from_json(body, ContextRequest)
    assert refused.value.status == 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"a":NaN}', b"[" * 100_000, b'{"a":' * 5_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        payload.from_json(body, ContextRequest)
    assert refused.value.status == 400


def test_another_payload_has_another_digest() -> None:
    a = payload.from_rows(np.ones((1, DIM), np.float32))
    b = payload.from_rows(np.full((1, DIM), 2, np.float32))
    half = payload.decode(a.payload, F16, DIM * 2)
    assert len({a.digest, b.digest, half.digest}) == 3


def test_a_problem_is_a_problem() -> None:
    body = json.loads(RefusedError(409, "no", seq=3).body("r1"))
    assert body == {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "no", "request": "r1", "seq": 3}


def _fuzz(count: int) -> int:
    draw, refused = random.Random(0), 0
    for _ in range(count):
        body = draw.randbytes(draw.choice((0, 1, 3, 8, 16, 16, 32, 48, 160)))
        kind = draw.choice((F32, F16, "application/octet-stream", "text/plain", ""))
        try:
            found = payload.decode(body, kind, DIM)
        except RefusedError:
            refused += 1
            continue
        lengths = np.linalg.norm(found.rows.astype(np.float64), axis=1)
        assert np.isfinite(lengths).all()
        assert (lengths > 0).all()
        assert len(found.rows) * DIM * (2 if found.half else 4) == len(body)
    return refused


def test_any_bytes_are_sound_rows_or_refused() -> None:
    assert 0 < _fuzz(2_000) < 2_000


@pytest.mark.slow
def test_a_hundred_thousand_bodies() -> None:
    assert 0 < _fuzz(100_000) < 100_000


@pytest.mark.parametrize(
    ("dim", "body", "rows", "halves"),
    [
        (16, 1 << 20, 10_000, 10_000),  # no less than a JSON body
        (384, 10_000 * 384 * 4, 10_000, 10_000),
        (1_536, 10_000 * 1_536 * 4, 10_000, 10_000),
        (4_096, 64 << 20, 4_096, 8_192),
    ],
)
def test_a_body_holds_ten_thousand_rows_up_to_64_mib(dim: int, body: int, rows: int, halves: int) -> None:
    assert (most_body(dim), most_rows(dim), most_rows(dim, 2)) == (body, rows, halves)
    assert rows * dim * 4 <= body
    assert payload.decode(np.ones((rows, dim), "<f4").tobytes(), F32, dim).rows.shape == (rows, dim)
