"""Oracles: truth scores 100 %, ignorance exactly chance, copy-last the same whoever says it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.bank.moments import Moments, moments
from nextvec.errors import ExamError
from nextvec.evaluation import Exam, examine, predict_rows
from nextvec.evaluation.candidates import CandidateSets
from nextvec.models import GRU, MemoryGRU
from nextvec.models.baselines import CopyLast, ExponentialMean
from tests.conftest import walk_bank

POOL = 40


def moments_of(bank: Bank) -> Moments:
    return moments(bank, np.arange(bank.num_documents))


def exam(bank: Bank, pool: int | None = POOL, **settings: int) -> Exam:
    return Exam.over(bank, np.array([0, 3, 7]), "test", pool, **settings)


@pytest.mark.parametrize("pool", [2, POOL, None])
def test_predicting_the_truth_scores_everything(bank: Bank, pool: int | None) -> None:
    sat = exam(bank, pool)
    assert sat.rank(sat.truths()).hits(1).tolist() == [1.0] * len(sat.rows)


@pytest.mark.parametrize("pool", [2, POOL, None])
def test_a_predictor_that_prefers_nothing_does_exactly_chance(bank: Bank, pool: int | None) -> None:
    sat = exam(bank, pool)
    ranks = sat.rank(torch.zeros(len(sat.rows), bank.dim))
    for k in (1, 5, 10):
        assert ranks.hits(k).mean() == pytest.approx(ranks.chance(k), abs=1e-14)


def test_random_predictions_do_chance_within_their_interval() -> None:
    # Isotropic rows: where no direction is favoured, a random guess finds the truth k times in pool.
    rows = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
    sat = Exam.over(Bank.from_numpy(rows, [100] * 20), np.arange(15), "test", 50)
    hits = np.concatenate(
        [sat.rank(torch.randn(len(sat.rows), 16, generator=torch.Generator().manual_seed(s))).hits(5) for s in range(10)]
    )
    error = (0.1 * 0.9 / len(hits)) ** 0.5
    assert abs(hits.mean() - 5 / 50) < 4 * error


def test_anti_truth_scores_nothing(bank: Bank) -> None:
    sat = exam(bank)
    assert sat.rank(-sat.truths()).hits(10).sum() == 0


def test_copy_last_as_a_model_equals_copy_last_by_hand(bank: Bank) -> None:
    sat = exam(bank)
    by_hand = torch.from_numpy(bank.rows[sat.rows - 1].astype(np.float32))
    predicted = predict_rows(CopyLast(bank.dim), bank, sat.rows, context=7)
    assert sat.rank(predicted).above.tolist() == sat.rank(by_hand).above.tolist()


def brute_force(sat: Exam, predicted: torch.Tensor) -> list[tuple[int, int]]:
    """(above, candidates) by definition, one row at a time, in float64."""
    bank, found = sat.bank, []
    rows = bank.rows.astype(np.float64)
    for q, row in enumerate(sat.rows.tolist()):
        m = int(bank.document_of(np.array([row]))[0])
        said = {bank.rows[r].tobytes() for r in range(int(bank.offsets[m]), row + 1)}
        allowed = [c for c in sat.order.tolist() if bank.rows[c].tobytes() not in said]
        chosen = allowed if sat.pool is None else allowed[: sat.pool - 1]
        scores = rows[chosen] @ predicted[q].double().numpy()
        own = rows[row] @ predicted[q].double().numpy()
        found.append((int((scores > own).sum()), len(chosen) + 1))
    return found


@given(st.integers(0, 1000), st.sampled_from([5, POOL, None]))
def test_ranks_agree_with_the_definition(seed: int, pool: int | None) -> None:
    bank = walk_bank(documents=8, length=30, seed=seed)
    sat = Exam.over(bank, np.array([1, 2, 5]), "test", pool)
    predicted = torch.randn(len(sat.rows), bank.dim, generator=torch.Generator().manual_seed(seed))
    ranks = sat.rank(predicted)
    assert list(zip(ranks.above.tolist(), ranks.candidates.tolist(), strict=True)) == brute_force(sat, predicted)


def test_the_exam_does_not_depend_on_context_or_model(bank: Bank) -> None:
    centre = torch.zeros(bank.dim)
    first, second = exam(bank), exam(bank)
    assert first.id == second.id
    for context in (1, 10, 100):
        for model in (CopyLast(bank.dim), ExponentialMean(centre, 0.5)):
            ranks = first.rank(predict_rows(model, bank, first.rows, context))
            assert (ranks.candidates == POOL).all()
    assert exam(bank, pool=POOL + 1).id != first.id
    assert exam(walk_bank(seed=1)).id != first.id


def test_what_the_context_holds_is_no_candidate_whatever_the_context(bank: Bank) -> None:
    assert exam(bank).copies_of_the_past() == 0


def test_a_pool_that_holds_the_far_past_is_caught(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: only the truth and the row before it are excluded, as if the context were one vector long."""

    def short_memory(self: CandidateSets, r: int) -> np.ndarray:
        return self.held[max(self.starts[r], self.stops[r] - 2) : self.stops[r]]

    monkeypatch.setattr(CandidateSets, "excluded", short_memory)
    assert exam(bank).copies_of_the_past() > 0


def test_identical_rows_are_one_candidate_and_copies_of_the_truth_are_none() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((80, 8)).astype(np.float32)
    rows[60:80] = rows[20:40]  # the last document repeats rows of the second
    bank = Bank.from_numpy(rows, [20] * 4)
    sat = Exam.over(bank, np.array([1, 2]), "test", None)
    ranks = sat.rank(sat.truths())
    assert (ranks.above + ranks.tied).sum() == 0
    past = sat.rows - bank.offsets[bank.document_of(sat.rows)]
    assert ranks.candidates.tolist() == (60 - past).tolist()


@pytest.mark.parametrize("context", [1, 3, 17, None])
def test_shared_passages_predict_what_single_windows_predict(bank: Bank, context: int | None) -> None:
    torch.manual_seed(0)
    model = MemoryGRU(torch.zeros(bank.dim), 0.5, hidden=8, slots=16, working=6).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    sat = exam(bank)
    together = predict_rows(model, bank, sat.rows, context)
    for place in range(0, len(sat.rows), 11):
        row = int(sat.rows[place])
        first = int(bank.offsets[sat.clusters[place]])
        start = first if context is None else max(first, row - context)
        alone = model(torch.from_numpy(bank.rows[start:row].astype(np.float32))[None])[0, -1]
        torch.testing.assert_close(together[place], alone.detach(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("make", [lambda c: GRU(c, 0.6), lambda c: MemoryGRU(c, 0.6, hidden=8, slots=8)])
def test_an_untrained_model_is_the_exponential_mean(bank: Bank, make: object) -> None:
    centre = torch.from_numpy(bank.rows.astype(np.float32).mean(0))
    sat = exam(bank)
    model = make(centre)  # type: ignore[operator]
    untrained = sat.rank(predict_rows(model, bank, sat.rows, 20))
    baseline = sat.rank(predict_rows(ExponentialMean(centre, 0.6), bank, sat.rows, 20))
    assert untrained.above.tolist() == baseline.above.tolist()


def test_a_report_shows_every_baseline_and_a_lift_over_the_best(bank: Bank) -> None:
    found = moments_of(bank)
    centre = torch.from_numpy(found.mean.astype(np.float32))
    report = examine(exam(bank), ExponentialMean(centre, 0.5), "mean", found, 20, (bank, np.array([1, 2])))
    best = max(ranks.hits(5).mean() for ranks in report.baselines.values())
    assert report.baselines[report.best_baseline].hits(5).mean() == best
    assert report.lift(5, "exponential mean 0.5").value == 0
    assert {"copy last", "centred last", "mean of all", "mean vector", "successor of nearest"} <= report.baselines.keys()


def test_too_small_an_exam_is_refused(bank: Bank) -> None:
    with pytest.raises(ExamError, match="at least 30"):
        Exam.over(bank, np.array([0]), "test", POOL, history=40)
    with pytest.raises(ExamError, match="distinct rows"):
        exam(bank, pool=10_000)


def test_a_broken_model_is_named(bank: Bank) -> None:
    sat = exam(bank)
    with pytest.raises(ExamError, match="not finite"):
        sat.rank(torch.full((len(sat.rows), bank.dim), torch.nan))
    with pytest.raises(ExamError, match="predictions are"):
        sat.rank(torch.zeros(3, bank.dim))


def test_an_exam_of_many_rows_is_sampled_without_regard_to_order(bank: Bank) -> None:
    small = exam(bank, max_rows=31)
    assert len(small.rows) == 31
    assert set(small.rows.tolist()) <= set(exam(bank).rows.tolist())


@given(st.integers(0, 1000), st.sampled_from([2, POOL, None]))
def test_the_candidates_of_a_row_are_those_of_the_definition(seed: int, pool: int | None) -> None:
    bank = walk_bank(documents=6, length=30, dim=4, seed=seed)
    repeated = bank.rows.astype(np.float32).copy()
    repeated[::5] = repeated[2]
    bank = Bank.from_numpy(repeated, bank.lengths)
    sat = Exam.over(bank, np.array([0, 2, 5]), "test", pool)
    sets = sat.candidate_sets
    for r, row in enumerate(sat.rows.tolist()):
        first = int(bank.offsets[sat.clusters[r]])
        allowed = [c for c in sat.order.tolist() if c not in bank.classes[first : row + 1]]
        assert sets.columns[sets.of_row(r)].tolist() == (allowed if pool is None else allowed[: pool - 1])
        assert sets.counts[r] == len(sets.of_row(r)) + 1


def test_a_report_finds_the_candidates_once_for_all_predictors(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[CandidateSets] = []
    of = CandidateSets.of
    monkeypatch.setattr(CandidateSets, "of", staticmethod(lambda *a: made.append(of(*a)) or made[-1]))
    report = examine(exam(bank), CopyLast(bank.dim), "copy last", moments_of(bank), 20, (bank, np.array([1, 2])))
    assert (len(report.baselines), len(made)) == (74, 1)
    held = [made[0].columns, made[0].truths, made[0].held, made[0].starts, made[0].stops, made[0].limits, made[0].counts]
    scored = sum(int(bank.lengths[m]) for m in (0, 3, 7))
    assert sum(array.nbytes for array in held) <= 8 * (scored + len(made[0].columns)) + 40 * len(report.ranks)


# Every scored row has as many candidates as any other


def long_among_short(long: int = 1_500, dim: int = 8) -> Bank:
    """One document of 1,500 rows beside ten of 20: 1,700 distinct rows, 200 of them outside the long document."""
    rows = np.random.default_rng(5).standard_normal((long + 200, dim)).astype(np.float32)
    return Bank.from_numpy(rows, [long] + [20] * 10)


def test_a_pool_that_a_late_row_cannot_fill_is_refused_with_the_largest_that_works() -> None:
    bank = long_among_short()
    # The last row of the long document has the 200 rows of the others, and itself.
    with pytest.raises(ExamError, match="largest pool that works for the all documents is 201"):
        Exam.over(bank, np.arange(11), "all", 1000, max_rows=2000)
    with pytest.raises(ExamError, match="201"):
        Exam.over(bank, np.arange(11), "all", 202, max_rows=2000)
    ranks = Exam.over(bank, np.arange(11), "all", 201, max_rows=2000).rank(torch.zeros(1_689, 8))
    assert ranks.candidates.tolist() == [201] * 1_689
    # Where no late row is scored, the pool may be larger.
    assert Exam.over(bank, np.arange(1, 11), "all", 1000).largest_pool == 1_700 - 20 + 1


@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_largest_pool_is_the_least_that_any_scored_row_could_have(seed: int, max_rows: int) -> None:
    bank = walk_bank(documents=5, length=30, dim=4, seed=seed)
    repeated = bank.rows.astype(np.float32).copy()
    repeated[::3] = repeated[0]  # a row that every document says again and again
    bank = Bank.from_numpy(repeated, bank.lengths)
    sat = Exam.over(bank, np.array([0, 2, 3]), "test", None, max_rows)
    counts = [count for _, count in brute_force(sat, torch.zeros(len(sat.rows), bank.dim))]
    assert sat.admissible.tolist() == counts
    assert sat.largest_pool == min(counts)
    filled = sat.among(min(counts))
    assert [count for _, count in brute_force(filled, torch.zeros(len(sat.rows), bank.dim))] == [min(counts)] * len(counts)


def test_a_pool_of_all_states_its_least_and_most() -> None:
    bank = long_among_short(300)
    report = examine(Exam.over(bank, np.arange(11), "all", None), CopyLast(bank.dim), "copy", moments_of(bank), 5)
    exam = report.to_json()["exam"]
    # A second row of a short document has all 500 but the first of its document; the last row of the long one 200 and itself.
    assert (exam["pool"], exam["candidates"]) == ("all", {"least": 201, "most": 499})
    assert "among 201 to 499;" in str(report)


def test_copies_of_one_exam_by_pool_are_those_made_one_by_one(bank: Bank) -> None:
    whole = exam(bank, None)
    for pool in (2, POOL, None):
        assert whole.among(pool).id == exam(bank, pool).id


def test_rows_that_repeat_their_document_are_counted_and_the_report_says_so(bank: Bank) -> None:
    rows = np.array(bank.rows[: bank.offsets[2]])
    first, second = bank.lengths[:2].tolist()
    rows[5], rows[9], rows[first + 3] = rows[2], rows[2], rows[first]  # three repeats; each document begins anew
    repeated = Bank.from_numpy(rows.astype(np.float32), [first, second])
    exam = Exam.over(repeated, np.arange(2), "all", None)
    assert exam.repeats == 3
    assert len(exam.rows) == first + second - 2 - 3
    report = examine(exam, CopyLast(bank.dim), "copy last", moments_of(repeated), None)
    assert any(note.startswith("3 rows that repeat their own document") for note in report.notes)
