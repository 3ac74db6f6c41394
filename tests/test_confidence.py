"""Probabilities of ranks: their definition, their fit, what they promise on a planted bank, and how they are judged."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.bank import Bank
from nextvec.confidence import FIRST, AnswerScores, Calibration, RankDistribution, Reliability, fit
from nextvec.confidence.fit import KS, SPREADS, USUAL
from nextvec.confidence.reliability import BINS, calibration_error
from nextvec.evaluation import Exam
from nextvec.evaluation.answers import answers
from nextvec.evaluation.predictions import predict_rows
from nextvec.inference import Engine, joint_probability
from nextvec.models.baselines import CopyLast

Array = np.ndarray


def some_answers(count: int, seed: int = 0, candidates: int = 400) -> AnswerScores:
    """The best of normal scores, whose unit and origin differ from answer to answer."""
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.standard_normal((count, candidates)), axis=1)[:, :FIRST]
    unit, origin = np.exp(rng.standard_normal(count)), rng.standard_normal(count)
    read = rng.integers(1, 600, count)
    return AnswerScores(scores * unit[:, None] + origin[:, None], origin, np.full(count, candidates), read)


def by_definition(of: AnswerScores, n: int, calibration: Calibration) -> Array:
    """The probability of every rank of answer ``n``, rank by rank."""
    count, first, typical = int(of.candidates[n]), of.first[n].astype(float), float(of.typical[n])
    u = list((first - typical) / (first[0] - typical))
    for rank in range(FIRST + 1, count + 1):
        left = 1 - (np.log(rank) - np.log(FIRST + 0.5)) / (np.log(count + 0.5) - np.log(FIRST + 0.5))
        u.append(u[FIRST - 1] * (left if u[FIRST - 1] > 0 else 1))  # a tenth below the typical score falls no further
    read = min(max(int(of.read[n]), 1), 250)
    sharpness = np.exp(calibration.level + calibration.growth * np.log(read / 50))
    logits = sharpness * np.sqrt(np.log(count)) * (np.array(u) - calibration.concavity * np.array(u) ** 2)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("calibration", [USUAL, Calibration(level=1.2, growth=0.2), Calibration(level=2.6, growth=-0.1)])
@pytest.mark.parametrize("candidates", [11, 40, 2_000])
def test_the_probabilities_are_those_of_the_definition(calibration: Calibration, candidates: int) -> None:
    of = some_answers(4, candidates=candidates)
    found = RankDistribution(of, calibration)
    for n in range(4):
        wanted = by_definition(of, n, calibration)
        # The sum over the ranks behind the tenth is an integral.
        assert found.rows(candidates)[n] == pytest.approx(wanted, rel=4e-3)
        for k in (1, 5, 10, candidates):
            assert found.within(k)[n] == pytest.approx(wanted[:k].sum(), rel=4e-3)


def test_bits_are_minus_log2_of_the_probability_of_the_rank() -> None:
    of = some_answers(6, candidates=400)
    found = RankDistribution(of, USUAL)
    ranks = np.array([1.0, 2.0, 10.0, 11.0, 57.0, 400.0])
    wanted = [-np.log2(by_definition(of, n, USUAL)[int(rank) - 1]) for n, rank in enumerate(ranks)]
    assert found.bits(ranks) == pytest.approx(wanted, abs=0.01)


@given(
    st.integers(0, 10**6), st.integers(1, 40), st.floats(0.0, 3.0), st.floats(-0.3, 0.3), st.floats(0.01, 100), st.floats(-9, 9)
)
def test_probabilities_have_the_properties_of_a_distribution_of_ranks(
    seed: int, candidates: int, level: float, growth: float, unit: float, origin: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = np.full((4, FIRST), -np.inf)
    drawn = -np.sort(-rng.choice([0.1, 0.5, 0.9, *rng.random(3)], (4, max(candidates, FIRST))), axis=1)[:, :FIRST]
    scores[:, : min(candidates, FIRST)] = drawn[:, : min(candidates, FIRST)]
    typical = rng.random(4)  # above the best score, sometimes
    count, read = np.full(4, candidates), rng.integers(1, 10**5, 4)
    calibration = Calibration(level=level, growth=growth)
    found = RankDistribution(AnswerScores(scores, typical, count, read), calibration)
    rows = found.rows(2 * candidates + 20)
    assert (rows >= 0).all() and np.isfinite(rows).all()
    assert rows[:, :candidates].sum(1) == pytest.approx(1, abs=0.01)
    assert not rows[:, candidates:].any()
    assert (np.diff(rows, axis=1) <= 1e-12).all(), "a better rank is not less probable"
    assert (np.diff([found.within(k) for k in range(1, candidates + 3)], axis=0) >= -1e-12).all()
    assert found.within(candidates).max() <= 1
    for k in (1, 5, 15):
        assert np.array_equal(found.rows(k), rows[:, :k]), "a probability does not depend on how many are returned"
    moved = AnswerScores(scores * unit + origin, typical * unit + origin, count, read)
    assert RankDistribution(moved, calibration).rows(20) == pytest.approx(rows[:, :20], rel=1e-6, abs=1e-12)


def test_candidates_with_equal_scores_are_equally_probable() -> None:
    of = AnswerScores(np.full((1, FIRST), 0.3), np.array([0.3]), np.array([250]), np.array([7]))
    assert RankDistribution(of, USUAL).rows(250) == pytest.approx(1 / 250, rel=1e-3)


def drawn_places(of: AnswerScores, calibration: Calibration, seed: int) -> Array:
    cumulated = RankDistribution(of, calibration).rows(FIRST).cumsum(1)
    return (np.random.default_rng(seed).random(len(cumulated))[:, None] > cumulated).sum(1)


def test_the_fit_finds_the_calibration_that_the_ranks_were_drawn_from() -> None:
    of, true = some_answers(8_000), Calibration(level=2.1, growth=0.12)
    found = fit(of, drawn_places(of, true, 1), np.arange(8_000) // 20)
    assert found.level == pytest.approx(true.level, abs=0.05)
    assert found.growth == pytest.approx(true.growth, abs=0.05)
    assert (found.rows, found.documents) == (8_000, 400)


def test_the_fit_is_the_minimum_of_its_loss_on_a_grid() -> None:
    of = some_answers(40, candidates=200)
    places, documents = drawn_places(of, Calibration(level=1.5, growth=0.0), 2), np.arange(40) // 4
    found = fit(of, places, documents)

    def loss(level: float, growth: float) -> float:
        total = 0.0
        rows = np.array([by_definition(of, n, Calibration(level=level, growth=growth))[:FIRST] for n in range(40)])
        for k in KS:
            p, came = rows[:, :k].sum(1), places < k
            total += float(-(np.log(p[came]).sum() + np.log(1 - p[~came]).sum())) / len(p) / len(KS)
        far = np.array([level - USUAL.level, growth - USUAL.growth]) / SPREADS
        return total + float((far**2).sum()) / 2 / len(np.unique(documents))

    best = loss(found.level, found.growth)
    for level in np.linspace(-0.05, 0.05, 3):
        for growth in np.linspace(-0.02, 0.02, 3):
            assert loss(found.level + level, found.growth + growth) >= best - 1e-5


def test_one_document_moves_the_usual_calibration_less_than_many() -> None:
    of = some_answers(600)
    places = drawn_places(of, Calibration(level=2.8, growth=0.03), 3)
    one, many = (fit(of, places, np.arange(600) // size).level for size in (600, 6))
    assert USUAL.level < one < many
    assert many == pytest.approx(2.8, abs=0.15)


@pytest.mark.parametrize("place", [0, FIRST])
def test_a_fit_to_answers_that_are_all_alike_stays_finite(place: int) -> None:
    of = some_answers(50)
    found = fit(of, np.full(50, place), np.zeros(50, np.int64))
    assert np.isfinite([found.level, found.growth]).all()
    assert (found.level > USUAL.level) == (place == 0)


def planted(clusters: int, size: int, documents: int, seed: int) -> Bank:
    """Documents that read the vectors of one cluster in random order.

    Vectors of a cluster have the product 0.5 with each other and 0 with all others. So after t of ``size`` vectors each of the
    others is the next with the probability 1 / (size - t), and any k of them hold it with k / (size - t).
    """
    rng = np.random.default_rng(seed)
    dim = clusters * (size + 1)
    vectors = np.zeros((clusters, size, dim), np.float32)
    for c in range(clusters):
        vectors[c, :, c] = vectors[c, np.arange(size), clusters + c * size + np.arange(size)] = np.sqrt(0.5)
    chosen = [vectors[rng.integers(clusters)][rng.permutation(size)] for _ in range(documents)]
    return Bank.from_numpy(np.concatenate(chosen), [size] * documents)


def test_on_a_planted_bank_the_probabilities_are_the_true_ones() -> None:
    size = 8
    bank, model = planted(20, size, 240, 0), CopyLast(20 * 9)
    exam = Exam.over(bank, np.arange(120), "known", None)
    found = answers(exam, model, predict_rows(model, bank, exam.rows, None), None)
    calibration = fit(found.scores, found.places, found.documents)
    engine = Engine(model, bank, calibration=calibration)
    for m in range(120, 122):  # documents that were not fitted on
        session = engine.session()
        for t, vector in enumerate(bank.document(m)[:-1].astype(np.float32), 1):
            session.push(vector)
            for k in (1, 3, 7):
                among = min(k, size - t)
                joint = joint_probability(session.predict(k))
                assert joint == pytest.approx(among / (size - t), abs=0.04), (t, k)
    later = Exam.over(bank, np.arange(120, 240), "later", None)
    tested = answers(later, model, predict_rows(model, bank, later.rows, None), None).reliability(calibration, 3)
    assert tested.error().value < tested.error_by_chance() + 0.02
    blunt = replace(calibration, level=calibration.level - 1.5)
    assert found.reliability(blunt, 3).error().value > 0.1, "another level would be wrong"


def judged(count: int = 1_000, seed: int = 7, wrong: float = 0.0) -> Reliability:
    rng = np.random.default_rng(seed)
    p = rng.random(count)
    return Reliability(5, np.clip(p + wrong, 0, 1), rng.random(count) < p, np.arange(count) // 25)


def test_the_calibration_error_is_that_of_its_definition() -> None:
    of = judged(1_003, wrong=0.05)
    order = sorted(range(1_003), key=lambda n: of.probabilities[n])
    sizes = [1_003 // BINS + (n < 1_003 % BINS) for n in range(BINS)]
    wanted, at = 0.0, 0
    for size in sizes:
        members = order[at : at + size]
        gap = np.mean([of.probabilities[n] for n in members]) - np.mean([float(of.found[n]) for n in members])
        wanted += size / 1_003 * abs(gap)
        at += size
    assert calibration_error(of.probabilities, of.found) == pytest.approx(wanted, abs=1e-12)
    assert of.error().value == pytest.approx(wanted, abs=1e-12)
    assert of.error().low <= wanted <= of.error().high
    assert [each.found.n for each in of.bins] == sizes


def test_right_probabilities_have_the_error_of_chance_and_wrong_ones_more() -> None:
    right, wrong = judged(4_000), judged(4_000, wrong=0.15)
    assert right.error().value == pytest.approx(right.error_by_chance(), abs=0.01)
    assert wrong.error().value > 0.1 > 3 * wrong.error_by_chance()
    many = judged(16_000)
    assert many.error_by_chance() == pytest.approx(right.error_by_chance() / 2, rel=0.15)


def test_the_interval_of_the_error_resamples_documents() -> None:
    rng = np.random.default_rng(4)
    easy = np.repeat(rng.random(20) < 0.5, 50)  # documents in which everything, or nothing, is found
    found = Reliability(5, np.full(1_000, 0.5), easy, np.arange(1_000) // 50)
    alone = replace(found, documents=np.arange(1_000))
    assert found.error().high - found.error().low > 2 * (alone.error().high - alone.error().low)


def test_a_prefetch_table_counts_what_is_fetched_and_found() -> None:
    of = Reliability(5, np.array([0.2, 0.55, 0.6, 0.9]), np.array([True, False, True, True]), np.arange(4))
    everything, *_ = of.prefetch()
    assert (everything.threshold, everything.fetched, everything.found, everything.precision) == (0.0, 1.0, 0.75, 0.75)
    rows = {row.threshold: (row.fetched, row.found, row.precision) for row in of.prefetch((0.5, 0.6, 0.95))}
    assert rows[0.5] == (0.75, 0.5, pytest.approx(2 / 3))
    assert rows[0.6] == (0.5, 0.5, 1.0)
    assert rows[0.95] == (0.0, 0.0, None)
