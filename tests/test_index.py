"""Exact search is exact: whatever form is read, however many queries and threads, with or without compiled code."""

import ctypes
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.errors import DataError, SettingsError
from nextvec.index import ExactIndex, allowed_rows
from nextvec.kernels import library, scan, scan_compiled, scan_torch
from nextvec.kernels.memory import address
from nextvec.kernels.scan_bounds import BoundedQueries, bounded, terms
from nextvec.kernels.scan_rows import FORMATS, UP, RowFormat, Stored, products, products_of_several, stored
from tests.conftest import walk_bank


def grid(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Numbers whose products add up without rounding, so that another order of adding changes nothing."""
    return (rng.integers(-64, 65, shape) / 64).astype(dtype)


def by_sorting(rows: np.ndarray, query: np.ndarray, k: int, may: np.ndarray) -> tuple[list[int], list[float]]:
    scores = (rows.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = [r for r in np.argsort(-scores, kind="stable").tolist() if may[r]][:k]
    missing = k - len(order)
    return order + [-1] * missing, [*scores[order].tolist(), *[-np.inf] * missing]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 130), st.integers(1, 70), st.integers(1, 40), st.integers(1, 12),
    st.sampled_from(FORMATS), st.sampled_from(["float16", "float32"]), st.integers(0, 2**20),
)  # fmt: skip
def test_search_is_sorting_all_scores(
    level: str, rows: int, dim: int, queries: int, k: int, form: RowFormat, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank = grid(rng, rows, dim, dtype=dtype)
    bank[rng.random(rows) < 0.3] = bank[0]  # ties
    asked = grid(rng, queries, dim)
    excluded = [rng.permutation(rows)[: rng.integers(0, rows + 1)] for _ in range(queries)]
    allowed = rng.random(rows) < 0.7
    index = ExactIndex(bank, form)
    bare, filtered = index.search(torch.from_numpy(asked), k), index.search(torch.from_numpy(asked), k, excluded, allowed)
    for q in range(queries):
        everything = np.ones(rows, bool)
        assert (bare.rows[q].tolist(), bare.scores[q].tolist()) == by_sorting(bank, asked[q], k, everything)
        may = allowed & ~np.isin(np.arange(rows), excluded[q])
        assert (filtered.rows[q].tolist(), filtered.scores[q].tolist()) == by_sorting(bank, asked[q], k, may)


def adversarial(kind: str, rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Rows that int8 codes tell apart badly, or not at all."""
    noise = rng.standard_normal((rows, dim)).astype(np.float32)
    if kind == "one huge coordinate":
        noise *= 1e-3
        noise[:, rng.integers(dim)] = 1
    elif kind == "near duplicates":
        noise = noise[:1] + 1e-5 * noise
    elif kind == "constant":
        noise[:] = rng.standard_normal()
    elif kind == "lengths from tiny to large":
        noise *= 10.0 ** rng.integers(-12, 4, (rows, 1))
    elif kind == "zeros among them":
        noise[rng.random(rows) < 0.5] = 0
    return noise


KINDS = ("noise", "one huge coordinate", "near duplicates", "constant", "lengths from tiny to large", "zeros among them")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KINDS), st.sampled_from(FORMATS), st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**20))
def test_nothing_is_missed_where_codes_tell_little(
    level: str, kind: str, form: RowFormat, rows: int, dim: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank = adversarial(kind, rng, rows, dim)
    if form == "float16":
        bank = np.clip(bank, -60_000, 60_000)
    asked = adversarial(str(rng.choice(KINDS[:3])), rng, 3, dim)
    found = ExactIndex(bank, form).search(torch.from_numpy(asked), 5)
    as_array = ExactIndex(bank, form).search(asked, 5)
    assert (as_array.rows == found.rows).all()
    assert (as_array.scores == found.scores).all()
    for q in range(3):
        scores = products(bank, np.arange(rows), asked[q])
        order = np.lexsort((np.arange(rows), -scores))[:5]
        assert found.rows[q][: len(order)].tolist() == order.tolist()
        assert (found.scores[q][: len(order)] == scores[order]).all()


@given(st.sampled_from(KINDS), st.sampled_from(FORMATS), st.integers(1, 60), st.integers(1, 400), st.integers(0, 2**20))
def test_the_bound_holds(kind: str, form: RowFormat, rows: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bank, asked = adversarial(kind, rng, rows, dim), adversarial(str(rng.choice(KINDS)), rng, 4, dim)
    part = stored(bank, form)
    for queries in (bounded([part], asked), bounded_compiled(part, asked)):
        check_bound(part, bank, asked, queries)


def bounded_compiled(part: Stored, asked: np.ndarray) -> BoundedQueries:
    """As the compiled search computes them; as torch does, where nothing was compiled."""
    compiled = library.library()
    if compiled is None:
        return bounded([part], asked)
    (count, dim), (most, longest, error) = asked.shape, terms([part])
    codes = np.zeros((count, dim) if most else (0, 0), np.int16)
    scales, lengths, slack = (np.zeros(count, np.float32) for _ in range(3))
    pointer, whole, double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    call = compiled.nextvec_scan_bounds
    call.argtypes = [pointer, whole, whole, ctypes.c_int32, double, double, double, *4 * [pointer]]
    assert call(address(asked), count, dim, most, longest, error, UP, *map(address, (codes, scales, lengths, slack)))
    return BoundedQueries(asked, codes, scales, lengths, slack)


def check_bound(part: Stored, bank: np.ndarray, asked: np.ndarray, beside: BoundedQueries) -> None:
    if part.codes.dtype == np.int8:
        sums = part.codes.astype(np.int64) @ beside.codes.astype(np.int64).T
        assert (np.abs(part.codes.astype(np.int64)) @ np.abs(beside.codes.astype(np.int64)).T < 2**31).all()
        read = sums * part.scales[:, None].astype(np.float64) * beside.scales + part.errors[:, None] * beside.lengths
    else:
        read = (part.codes.astype(np.float32) @ asked.T).astype(np.float64)
    true = np.stack([products(bank, np.arange(len(bank)), query) for query in asked], 1).astype(np.float64)
    assert (true <= read + beside.slack).all()


def test_errors_stored_too_small_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the tests above are there for, planted."""
    if library.level() == "torch":
        pytest.skip("codes are read by compiled code alone")
    rng = np.random.default_rng(0)
    bank, asked = adversarial("one huge coordinate", rng, 200, 64), rng.standard_normal((1, 64)).astype(np.float32)
    whole = ExactIndex(bank).search(torch.from_numpy(asked), 5)
    index = ExactIndex(bank, "int8")
    assert (index.search(torch.from_numpy(asked), 5).rows == whole.rows).all()
    part = index._parts[0]
    index._parts = (replace(part, errors=part.errors / 10),)
    assert (index.search(torch.from_numpy(asked), 5).rows != whole.rows).any()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from(["float16", "float32"]), st.integers(0, 2**20))
def test_the_deciding_product_has_the_same_bits_everywhere(level: str, rows: int, dim: int, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bank, query = rng.standard_normal((rows, dim)).astype(dtype), rng.standard_normal(dim).astype(np.float32)
    wanted: list[float] = []
    for row in bank.astype(np.float64):
        lanes = [0.0] * 16
        for place in range(dim):
            lanes[place % 16] += float(row[place]) * float(query[place])
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [lanes[j] + lanes[j + half] for j in range(half)]
        wanted.append(lanes[0])
    assert products(bank, np.arange(rows), query).tolist() == np.float32(wanted).tolist()
    others = rng.standard_normal((int(rng.integers(0, 6)), dim)).astype(np.float32)
    alone = [products(bank, np.arange(rows), other) for other in (query, *others)]
    assert products_of_several(bank, np.arange(rows), np.stack([query, *others])).tolist() == np.stack(alone).tolist()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 130), st.integers(1, 70), st.integers(1, 20), st.sampled_from(FORMATS), st.integers(0, 2**20))
def test_upper_bounds_are_bounds_of_every_row(
    level: str, rows: int, dim: int, queries: int, form: RowFormat, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank = (rng.standard_normal((rows, dim)) / dim**0.5).astype(np.float32)
    asked = rng.standard_normal((queries, dim)).astype(np.float32)
    excluded, allowed = [rng.permutation(rows)[: rng.integers(0, rows + 1)] for _ in range(queries)], rng.random(rows) < 0.5
    cut = int(rng.integers(0, rows + 1))
    parts = [stored(bank[:cut], form), stored(bank[cut:], form, cut)][: 1 if cut == rows else 2]
    true = np.stack([products(bank, np.arange(rows), query) for query in asked])
    for barred, mask in ((None, None), (excluded, None), (None, allowed), (excluded, allowed[: rows // 2])):
        may = np.ones((queries, rows), bool)
        if mask is not None:
            may &= np.append(mask, np.zeros(rows - len(mask), bool))
        for q, names in enumerate(barred or ()):
            may[q, names] = False
        upper, best = scan.upper_bounds(parts, asked, 3, barred, mask)
        assert (upper[may] >= true[may]).all()
        assert (upper[may] <= true[may] + 0.1 * np.linalg.norm(asked, axis=1)[np.nonzero(may)[0]]).all(), "and not far above"
        assert (upper[~may] == -np.inf).all()
        for q in range(queries):
            held = best[q][best[q] >= 0]
            assert len(held) == min(3, may[q].sum())
            assert upper[q, held].tolist() == np.sort(upper[q, may[q]])[::-1][: len(held)].tolist()
    chosen = np.flatnonzero(allowed)
    bounds = scan.bounds_of(parts, chosen, asked)
    assert (bounds >= true[:, chosen]).all()
    assert (bounds <= true[:, chosen] + 0.1 * np.linalg.norm(asked, axis=1)[:, None]).all()


def test_every_way_gives_the_same_bits(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_compiled, "LEAST", 1)  # however few rows
    monkeypatch.setattr(scan_torch, "BLOCK", 37)
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((700, 100)) / 10).astype(np.float16)
    rows[300:350] = rows[:50]
    queries = torch.from_numpy(rng.standard_normal((41, 100)).astype(np.float32))
    wanted = ExactIndex(rows, threads=1).search(queries, 9)
    for form in FORMATS:
        for threads in (1, 2, 3):
            index = ExactIndex(rows, form, threads)
            found = index.search(queries, 9)
            assert (found.rows == wanted.rows).all() and (found.scores == wanted.scores).all()
            alone = [index.search(queries[q : q + 1], 9) for q in range(41)]
            assert all((one.rows[0] == wanted.rows[q]).all() for q, one in enumerate(alone))
            assert all((one.scores[0] == wanted.scores[q]).all() for q, one in enumerate(alone))


def test_many_queries_are_asked_in_blocks(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "QUERIES", 7)
    rng = np.random.default_rng(0)
    rows, queries = grid(rng, 50, 12), torch.from_numpy(grid(rng, 30, 12))
    barred = [rng.permutation(50)[:20] for _ in range(30)]
    found = ExactIndex(rows).search(queries, 4, barred)
    for q in range(30):
        may = ~np.isin(np.arange(50), barred[q])
        assert found.rows[q].tolist() == by_sorting(rows, queries[q].numpy(), 4, may)[0]


def test_few_rows_are_decided() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20_000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for form in FORMATS:
        found = ExactIndex(rows, form, threads=1).search(torch.from_numpy(rows[:4]), 10)
        assert 4 * 10 <= found.decided < 4 * 400


def test_all_excluded_leaves_none(level: str) -> None:
    rows = np.eye(5, dtype=np.float32)
    found = ExactIndex(rows).search(torch.eye(5)[:2], 3, [np.arange(5), np.arange(4)])
    assert found.rows.tolist() == [[-1, -1, -1], [4, -1, -1]]
    assert found.scores[0].tolist() == [-np.inf] * 3
    assert (ExactIndex(rows).search(torch.eye(5), 3, allowed=np.zeros(5, bool)).rows == -1).all()


def test_no_queries_find_nothing() -> None:
    assert ExactIndex(np.eye(5, dtype=np.float32)).search(torch.empty(0, 5), 3).rows.shape == (0, 3)


def test_documents_as_a_filter(bank: Bank) -> None:
    mask = allowed_rows(bank, [1, 4])
    found = ExactIndex.build(bank).search(torch.from_numpy(bank.rows[:3].astype(np.float32)), 500, allowed=mask)
    assert set(bank.document_of(found.rows[found.rows >= 0]).tolist()) == {1, 4}
    assert (found.rows >= 0).sum() == 3 * mask.sum()
    with pytest.raises(DataError, match="no document 12"):
        allowed_rows(bank, [12])


@pytest.mark.parametrize("form", FORMATS)
def test_added_rows_are_found_at_once(level: str, form: RowFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_compiled, "LEAST", 1)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 24)).astype(np.float32)
    index, rows = ExactIndex(vectors[:40].astype(np.float16), form, threads=3), vectors[:40].astype(np.float16)
    for start, stop in ((40, 41), (41, 60), (60, 200), (200, 300)):
        names = index.add(3 * vectors[start:stop])
        assert names.tolist() == list(range(start, stop)) and len(index) == stop
        unit = vectors[start:stop] / np.linalg.norm(vectors[start:stop], axis=1, keepdims=True)
        rows = np.concatenate([rows, unit.astype(np.float16)])
        queries = torch.from_numpy(vectors[[0, start, stop - 1]])
        found, whole = index.search(queries, 12), ExactIndex(rows).search(queries, 12)
        assert (found.rows == whole.rows).all()
        assert (found.scores == whole.scores).all()
        assert index.search(queries, 300, allowed=np.ones(40, bool)).rows.max() < 40


def test_searches_see_whole_additions_only() -> None:
    """Each search answers as some state between its begin and its end would, while another thread adds."""
    rng = np.random.default_rng(0)
    base, more = grid(rng, 100, 8), rng.standard_normal((200, 5, 8)).astype(np.float32)
    index, query = ExactIndex(base, "int8"), torch.from_numpy(grid(rng, 1, 8))
    states = [100]

    def add() -> None:
        for block in more:
            index.add(block)

    seen: list[tuple[int, int, list[float]]] = []
    adder = threading.Thread(target=add)
    adder.start()
    while adder.is_alive() or len(seen) < 2:
        before = len(index)
        scores = index.search(query, 4).scores[0].tolist()
        seen.append((before, len(index), scores))
    adder.join()
    states += [100 + 5 * n for n in range(1, 201)]
    everything = index.scores(np.arange(len(index)), query[0])
    best = {n: sorted(everything[:n].tolist(), reverse=True)[:4] for n in states}
    for before, after, scores in seen:
        assert any(best[n] == scores for n in states if before <= n <= after)
    assert seen[-1][1] == 1100


def test_what_cannot_be_searched_is_refused() -> None:
    index = ExactIndex(np.eye(3, dtype=np.float32))
    with pytest.raises(SettingsError, match="k=0"):
        index.search(torch.eye(3), 0)
    with pytest.raises(DataError, match=r"\[3, 4\]; want \[queries, 3\]"):
        index.search(torch.zeros(3, 4), 1)
    for bad in (torch.nan, torch.inf, 1e35):
        with pytest.raises(DataError, match="not finite"):
            index.search(torch.eye(3) * bad, 1)
    with pytest.raises(DataError, match="no row 3"):
        index.search(torch.eye(3), 1, [np.array([0]), np.array([3]), np.array([], int)])
    with pytest.raises(DataError, match="3 queries need as many lists"):
        index.search(torch.eye(3), 1, [np.array([0])])
    with pytest.raises(DataError, match="mask of allowed rows"):
        index.search(torch.eye(3), 1, allowed=np.ones(4, bool))
    with pytest.raises(SettingsError, match="threads=0"):
        ExactIndex(np.eye(3, dtype=np.float32), threads=0)


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (np.full((1, 3), np.nan), "row 0: not a finite vector"),
        (np.array([[1.0, 0, 0], [0, 0, 0]]), "row 1: a zero vector"),
        (np.ones((1, 4)), "vectors are 4 wide; want 3"),
        (np.empty((0, 3)), "at least one row"),
    ],
)
def test_what_cannot_be_added_is_refused(vectors: np.ndarray, says: str) -> None:
    index = ExactIndex(np.eye(3, dtype=np.float32))
    with pytest.raises(DataError, match=says):
        index.add(vectors)
    assert len(index) == 3


def test_walks_of_a_bank(level: str) -> None:
    bank = walk_bank(dim=40)
    queries = torch.from_numpy(bank.rows[::7].astype(np.float32))
    wanted = ExactIndex.build(bank).search(queries, 5)
    for form in FORMATS:
        assert (ExactIndex.build(bank, form).search(queries, 5).rows == wanted.rows).all()
