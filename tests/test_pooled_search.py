"""A search with several queries finds what scoring every row finds, and says what it read."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.errors import DataError, SettingsError
from nextvec.index import ApproximateIndex, ExactIndex, search_pooled
from nextvec.kernels import scan_compiled, scan_pooled
from nextvec.kernels.scan_pooled import PooledQuery
from nextvec.kernels.scan_rows import FORMATS, RowFormat, products_of_several
from nextvec.models.queries import Queries
from tests.conftest import walk_bank
from tests.test_index import KINDS, adversarial

DIM = 12
ABSENT = -1e4


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def index_of(rows: np.ndarray) -> ExactIndex:
    return ExactIndex.build(Bank.from_numpy(rows, [len(rows)]))


def asking(rng: np.random.Generator, count: int, queries: int, amplitude: float, sharpness: float, absent: int = 0) -> Queries:
    """Queries as a model makes them: a prediction plus multiples of other vectors; the last ``absent`` count nothing."""
    shared, own = unit(rng.standard_normal((count, 1, DIM))), unit(rng.standard_normal((count, queries, DIM)))
    logits = torch.from_numpy(rng.standard_normal((count, queries))).float()
    if absent:
        logits[:, queries - absent :] = ABSENT
    weights = logits.log_softmax(-1).clamp(min=ABSENT)
    return Queries(torch.from_numpy(shared + np.float32(amplitude) * own), weights, torch.tensor(sharpness))


def by_definition(asked: Queries, rows: np.ndarray) -> np.ndarray:
    """The pooled scores [N, R], in double."""
    products = np.einsum("nqe,re->nqr", asked.vectors.double().numpy(), rows.astype(np.float64))
    sharpness = float(asked.sharpness)
    return np.logaddexp.reduce(sharpness * products + asked.log_weights.double().numpy()[..., None], axis=1) / sharpness


def best(bank: Bank, scores: np.ndarray, k: int, may: np.ndarray, barred: np.ndarray) -> list[int]:
    """The first admitted row of each of the k best distinct vectors, each vector scored by its first row."""
    numbers, left = bank.distinct.numbers, {}
    gone = set(numbers[barred].tolist())
    for row in np.flatnonzero(may).tolist():
        if numbers[row] not in gone:
            left.setdefault(int(numbers[row]), row)
    order = sorted(left, key=lambda number: (-scores[bank.distinct.firsts[number]], left[number]))
    return [left[number] for number in order][:k]


@pytest.mark.parametrize("form", FORMATS)
@given(
    rows=st.integers(1, 400),
    copies=st.integers(1, 3),
    queries=st.integers(2, 7),
    k=st.sampled_from([1, 3, 10, 60, 500]),
    amplitude=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    sharpness=st.sampled_from([0.001, 0.05, 8.0, 100.0]),
    seed=st.integers(0, 2**20),
)
def test_it_finds_what_scoring_every_row_finds(
    form: RowFormat, rows: int, copies: int, queries: int, k: int, amplitude: float, sharpness: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    held = np.tile(unit(rng.standard_normal((rows, DIM))), (copies, 1))
    bank = Bank.from_numpy(held[rng.permutation(len(held))], [len(held)])
    index = ExactIndex.build(bank, form)
    asked = asking(rng, 3, queries, amplitude, sharpness, absent=int(rng.integers(0, queries)))
    barred = [rng.permutation(len(bank))[: int(rng.integers(0, len(bank)))] for _ in range(3)]
    allowed = rng.random(len(bank)) < 0.6
    scores = by_definition(asked, bank.rows)
    everything, nothing = np.ones(len(bank), bool), np.empty(0, np.int64)
    for excluded, mask in ((None, None), (barred, None), (None, allowed), (barred, allowed)):
        found = search_pooled(index, asked, k, excluded, mask)
        for n in range(3):
            wanted = best(
                bank, scores[n], k, everything if mask is None else mask, nothing if excluded is None else excluded[n]
            )
            got = found.rows[n][found.rows[n] >= 0]
            assert len(got) == len(wanted), "as many as there are"
            assert (found.rows[n][len(got) :] == -1).all() and (found.scores[n][len(got) :] == -np.inf).all()
            first = bank.distinct.classes
            np.testing.assert_allclose(found.scores[n][: len(got)], scores[n][first[wanted]], rtol=2e-6, atol=2e-6)
            np.testing.assert_allclose(scores[n][first[got]], found.scores[n][: len(got)], rtol=2e-6, atol=2e-6)
            assert len(set(bank.distinct.numbers[got].tolist())) == len(got)
            clear = np.diff(scores[n][first[wanted]], append=-np.inf) < -1e-5  # float32 cannot tell others apart
            if clear.all():
                assert got.tolist() == wanted


def test_of_equal_scores_the_lower_row_comes_first() -> None:
    """The queries see two coordinates, in which the rows have two values, so almost all products tie."""
    rows = np.zeros((3000, DIM), np.float32)
    rows[::2, 0] = rows[1::2, 1] = 0.6
    rows[:, 2:] = 0.8 * unit(np.random.default_rng(0).standard_normal((3000, DIM - 2)))
    index = index_of(rows)
    assert len(index.distinct) == 3000
    vectors = torch.zeros(1, 2, DIM)
    vectors[0, 0, 0] = vectors[0, 1, 1] = 1.0
    weights = torch.log(torch.tensor([[0.5, 0.5]]))
    found = search_pooled(index, Queries(vectors, weights, torch.tensor(8.0)), 7)
    assert found.rows[0].tolist() == list(range(7))


def test_every_format_gives_the_same_bits_and_batches_change_none() -> None:
    bank, rng = walk_bank(documents=30, dim=DIM), np.random.default_rng(1)
    asked = asking(rng, 9, 5, 0.5, 8.0)
    found = [search_pooled(ExactIndex.build(bank, form), asked, 10) for form in FORMATS]
    for other in found[1:]:
        assert (other.rows == found[0].rows).all()
        assert (other.scores == found[0].scores).all()
    for n in range(9):
        one = Queries(asked.vectors[n : n + 1], asked.log_weights[n : n + 1], asked.sharpness)
        alone = search_pooled(ExactIndex.build(bank), one, 10)
        assert (alone.rows[0] == found[0].rows[n]).all() and (alone.scores[0] == found[0].scores[n]).all()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    form=st.sampled_from(FORMATS),
    rows=st.integers(1, 300),
    dim=st.integers(1, 40),
    queries=st.integers(1, 13),
    k=st.sampled_from([1, 3, 10, 400]),
    amplitude=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    sharpness=st.sampled_from([0.001, 1.0, 50.0, 1e5]),
    closer=st.booleans(),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**20),
)
def test_no_row_is_ruled_out_that_is_among_the_best(
    level: str, kind: str, form: RowFormat, rows: int, dim: int, queries: int, k: int, amplitude: float, sharpness: float,
    closer: bool, threads: int, seed: int,
) -> None:  # fmt: skip
    """The same bits as scoring every row, at every level, however rows are read."""
    rng = np.random.default_rng(seed)
    bank = adversarial(kind, rng, rows, dim)
    shared, own = rng.standard_normal((2, 1, dim)), rng.standard_normal((2, queries, dim))
    weights = np.log(rng.dirichlet(np.full(queries, 0.3), 2) + 1e-30)
    asked = [PooledQuery((shared[n] + amplitude * own[n]).astype(np.float32), weights[n], sharpness) for n in range(2)]
    barred = [rng.permutation(rows)[: int(rng.integers(0, rows + 1))] for _ in range(2)]
    masks = [None, rng.random(rows) < 0.6, np.zeros(rows, bool)]
    index = ExactIndex(bank, form, threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_compiled, "LEAST", 1)  # several threads, however few rows
        if closer:
            patch.setattr(scan_pooled, "MANY", 1)
            patch.setattr(scan_pooled, "BOUNDS", 64 * queries)
        for excluded, mask in ((None, masks[0]), (barred, masks[1]), (None, masks[2])):
            found = index.search_pooled(asked, k, excluded, mask)
            for n, prediction in enumerate(asked):
                may = np.ones(rows, bool) if mask is None else mask.copy()
                may[[] if excluded is None else excluded[n]] = False
                names = np.flatnonzero(may)
                scores = prediction.scores(products_of_several(bank, names, prediction.vectors)).astype(np.float32)
                order = np.argsort(-scores, kind="stable")[:k]
                missing = k - len(order)
                assert found.rows[n].tolist() == [*names[order].tolist(), *[-1] * missing]
                assert found.scores[n].tolist() == [*scores[order].tolist(), *[-np.inf] * missing]


def test_bounds_that_are_too_low_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the test above is there for, planted."""
    rng = np.random.default_rng(0)
    index, asked = index_of(unit(rng.standard_normal((3000, DIM)))), asking(rng, 20, 6, 1.0, 50.0)
    whole = search_pooled(index, asked, 5)
    centre = PooledQuery.centre
    monkeypatch.setattr(PooledQuery, "centre", lambda self, longest: (centre(self, longest)[0], -0.5))
    assert (search_pooled(index, asked, 5).rows != whole.rows).any()


def test_few_rows_are_scored_for_queries_that_agree() -> None:
    rng = np.random.default_rng(0)
    index = index_of(unit(rng.standard_normal((20_000, DIM))))
    found = search_pooled(index, asking(rng, 4, 8, 0.2, 8.0), 10)
    assert 4 * 8 * 10 <= found.decided < 4 * 8 * 1_000


@given(st.integers(0, 2**20))
def test_added_rows_are_found(seed: int) -> None:
    bank, rng = walk_bank(documents=4, dim=DIM), np.random.default_rng(seed)
    index, asked = ExactIndex.build(bank, "int8"), asking(rng, 2, 3, 0.5, 8.0)
    numbers = index.add(unit(asked.vectors[:, 0].numpy()))
    found = search_pooled(index, asked, len(index))
    rows = np.concatenate([bank.rows, unit(asked.vectors[:, 0].numpy()).astype(bank.rows.dtype)])
    scores = by_definition(asked, rows)
    assert set(numbers.tolist()) <= set(found.rows[0].tolist())
    for n in range(2):
        np.testing.assert_allclose(found.scores[n], np.sort(scores[n])[::-1][: len(index)], atol=2e-6)


def test_an_approximate_index_misses_few_and_orders_what_it_finds() -> None:
    pytest.importorskip("faiss", reason='needs faiss: pip install "nextvec[ann]"')
    bank = walk_bank(documents=80, length=100, dim=DIM, topics=40)
    index, asked = ApproximateIndex.build(bank), asking(np.random.default_rng(2), 20, 4, 0.4, 8.0)
    found, true = search_pooled(index, asked, 10), search_pooled(ExactIndex.build(bank), asked, 10)
    shared = [len(np.intersect1d(a, b)) / 10 for a, b in zip(found.rows, true.rows, strict=True)]
    assert np.mean(shared) > 0.9
    for n in range(20):
        equal = np.isin(true.rows[n], found.rows[n])
        kept = dict(zip(found.rows[n].tolist(), found.scores[n].tolist(), strict=True))
        same = zip(true.rows[n][equal], true.scores[n][equal], strict=True)
        assert all(kept[int(row)] == score for row, score in same), "a row has one score in every index"


def test_misuse_is_one_line() -> None:
    rng, index = np.random.default_rng(0), index_of(np.eye(DIM, dtype=np.float32))
    asked = asking(rng, 2, 3, 0.5, 8.0)
    with pytest.raises(SettingsError, match="k=0"):
        search_pooled(index, asked, 0)
    with pytest.raises(DataError, match="2 queries need as many lists"):
        search_pooled(index, asked, 1, [np.array([0])])
    for broken in (
        asked._replace(sharpness=torch.tensor(0.0)),
        asked._replace(sharpness=torch.tensor(float("nan"))),
        asked._replace(log_weights=torch.full((2, 3), float("-inf"))),
    ):
        with pytest.raises(DataError, match="the model is broken"):
            search_pooled(index, broken, 1)
    with pytest.raises(DataError, match="not finite"):
        search_pooled(index, asked._replace(vectors=asked.vectors * torch.nan), 1)
    with pytest.raises(DataError, match=r"queries, 12\]"):
        search_pooled(index, asked._replace(vectors=asked.vectors[..., 1:]), 1)
    one = asked._replace(log_weights=torch.full((2, 3), 2 * ABSENT))
    assert (search_pooled(index, one, 3).rows >= 0).all(), "weights from outside may be as small as they like"
    none = search_pooled(index, Queries(torch.zeros(0, 3, DIM), torch.zeros(0, 3), torch.tensor(1.0)), 4)
    assert none.rows.shape == (0, 4)


def test_closer_bounds_are_computed_where_many_rows_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    bank = Bank.from_numpy(unit(rng.standard_normal((4000, DIM))), [4000])
    index, left = ExactIndex.build(bank, "int8"), list[tuple[int, int]]()
    reaching = scan_pooled._reaching

    def counted(parts: Any, prediction: Any, names: Any, reached: float) -> Any:
        found = reaching(parts, prediction, names, reached)
        left.append((len(names), len(found)))
        return found

    monkeypatch.setattr(scan_pooled, "_reaching", counted)
    for amplitude, sharpness, times in ((0.02, 8.0, 0), (30.0, 8.0, 2)):
        left.clear()
        asked = asking(rng, 2, 6, amplitude, sharpness)
        found, scores = search_pooled(index, asked, 10), by_definition(asked, bank.rows)
        for n in range(2):
            assert found.scores[n] == pytest.approx(np.sort(scores[n])[::-1][:10], rel=2e-6, abs=2e-6)
        assert len(left) == times
        assert all(10 <= after < before / 10 for before, after in left), "they rule most rows out"
