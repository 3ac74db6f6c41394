"""Baselines in a fitted space, and exams that rank by a model's own scores: against scores and ranks in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nextvec.bank import Bank
from nextvec.bank.moments import Moments, moments
from nextvec.evaluation import Exam, predict_rows
from nextvec.evaluation.baselines import (
    DECAYS,
    POOLED_POWERS,
    RAW_MEANS,
    baseline_ranks,
    baselines,
    strongest_decay,
    strongest_start,
    together,
)
from nextvec.models import Pooled, Recurrent
from nextvec.models.baselines import CopyLast, ExponentialMean, PooledLags
from nextvec.models.space import POWERS, InSpace, Space
from nextvec.ranks import Ranks, paired_lift
from tests import oracles

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
TRAIN, TEST, CONTEXT = np.arange(8), np.array([8, 9, 10, 11]), 20


def sat(bank: Bank, pool: int | None = 60) -> Exam:
    return Exam.over(bank, TEST, "test", pool)


def trained_on(bank: Bank) -> np.ndarray:
    return np.concatenate([bank.document(int(m)) for m in TRAIN])


def checked(bank: Bank, model: Recurrent[object], power: float, scores_of: Scores) -> None:
    """The model's scores of all rows of the bank, and its ranks, are those of ``scores_of(rows read, all rows)``."""
    exam = sat(bank)
    rows = oracles.in_space(bank.rows, trained_on(bank), power)
    predicted = predict_rows(model, bank, exam.rows, CONTEXT)
    with torch.no_grad():
        found = model.scores(predicted, model.candidates(torch.from_numpy(bank.rows.astype(np.float32)))).numpy()
    places = []
    for r, (first, row) in enumerate(oracles.contexts(exam, CONTEXT)):
        expected = scores_of(rows[first:row], rows)
        np.testing.assert_allclose(found[r], expected, rtol=0, atol=1e-5)
        places.append(oracles.above(exam, r, expected))
    assert exam.rank(predicted, model).above.tolist() == places


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_an_exponential_mean_in_a_space_is_its_definition(bank: Bank, power: float, decay: float) -> None:
    name = "centred last" if decay == 0 else f"exponential mean {decay:g}"
    model = dict(baselines(moments(bank, TRAIN)))[f"{name}, power {power:g}"]
    held = max(decay, 1e-4)  # the smallest decay that a mean may have
    checked(bank, model, power, lambda read, rows: rows @ oracles.unit(oracles.exponential_mean(read, held)))


@pytest.mark.parametrize("power", POOLED_POWERS)
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_pooled_lags_are_their_definition(bank: Bank, power: float, decay: float) -> None:
    model = dict(baselines(moments(bank, TRAIN)))[f"pooled lags {decay:g}, power {power:g}"]
    checked(bank, model, power, lambda read, rows: oracles.pooled(read, rows, decay, 16, 8.0))


@pytest.mark.parametrize("power", POOLED_POWERS)
@pytest.mark.parametrize(("decay", "lags"), [(0.6, 0.5), (0.9, 0.7)])
def test_a_mean_with_pooled_lags_is_the_sum_of_both(bank: Bank, power: float, decay: float, lags: float) -> None:
    model = dict(baselines(moments(bank, TRAIN)))[f"exponential mean {decay:g} with pooled lags {lags:g}, power {power:g}"]

    def scores(read: np.ndarray, rows: np.ndarray) -> np.ndarray:
        mean = oracles.unit(oracles.exponential_mean(read, decay))
        return rows @ mean + 2 * oracles.pooled(read, rows, lags, 16, 8.0)

    checked(bank, model, power, scores)


def test_a_first_row_that_is_the_mean_gives_finite_scores() -> None:
    model, x = PooledLags(4, 0.7), torch.zeros(1, 3, 4)
    assert torch.isfinite(model.scores(model(x)[0], torch.eye(4))).all()


def test_a_report_has_every_baseline_by_name(bank: Bank) -> None:
    names = [name for name, _ in baselines(moments(bank, TRAIN), (bank, TRAIN))]
    raw = ["copy last", "centred last", *RAW_MEANS, "mean of all", "mean vector"]
    assert names[: len(raw)] == raw
    assert len(names) == len(set(names)) == len(raw) + len(POWERS) * len(DECAYS) + 3 * (4 + 6) + 1


def test_the_strongest_decay_is_that_of_the_baseline_with_the_most_hits(bank: Bank) -> None:
    found, exam = moments(bank, TRAIN), sat(bank)
    every = baseline_ranks(exam, list(together(found)), None)
    hits = {d: every["centred last" if d == 0 else f"exponential mean {d:g}"].hits(5).mean() for d in DECAYS}
    assert hits[strongest_decay(exam, found)] == max(hits.values())


def test_the_start_has_the_strongest_decay_and_another_power_than_a_half_only_if_it_is_surely_better(bank: Bank) -> None:
    halves = [(sat(bank), moments(bank, TRAIN[:4])), (sat(bank), moments(bank, TRAIN[4:]))]
    ranked = [baseline_ranks(exam, list(together(found)), None) for exam, found in halves]

    def joined(power: float, decay: float) -> Ranks:
        name = f"{'centred last' if decay == 0 else f'exponential mean {decay:g}'}, power {power:g}"
        return Ranks.joined([ranks[name] for ranks in ranked])

    power, decay = strongest_start(halves, POWERS)
    assert joined(power, decay).hits(5).mean() == max(joined(power, d).hits(5).mean() for d in DECAYS)
    best = {p: max((joined(p, d) for d in DECAYS), key=lambda ranks: ranks.hits(5).mean()) for p in POWERS}
    surely = [p for p in POWERS if p != 0.5 and paired_lift(best[p], best[0.5], 5).low > 0]
    assert power == max(surely or [0.5], key=lambda p: best[p].hits(5).mean())


def test_a_space_that_is_surely_better_is_chosen() -> None:
    bank = signal_in_nuisance()
    train, other = np.arange(0, bank.num_documents, 2), np.arange(1, bank.num_documents, 2)
    exam = Exam.over(bank, other, "valid", 200)
    assert strongest_start([(exam, moments(bank, train))], (0.0, 0.5))[0] == 0.5
    assert strongest_start([(exam, moments(bank, train))], (0.0, 0.25, 0.75, 1.0))[0] == 1.0


# A bank whose documents are recognised only in a fitted space

SIGNAL, NUISANCE, LENGTH = 30, 4, 6


def signal_in_nuisance(documents: int = 300) -> Bank:
    """Every document has a direction of its own, of small variance; each row adds a large nuisance that is drawn anew.

    A document is shorter than five candidates after its first row, so that its other rows cannot keep the truth from a hit.
    """
    rng = np.random.default_rng(0)
    signal = np.repeat(0.05 * rng.standard_normal((documents, SIGNAL)), LENGTH, axis=0)
    nuisance = 1.5 * rng.standard_normal((documents * LENGTH, NUISANCE))
    turn, _ = np.linalg.qr(rng.standard_normal((SIGNAL + NUISANCE, SIGNAL + NUISANCE)))
    return Bank.from_numpy((np.concatenate([signal, nuisance], axis=1) @ turn).astype(np.float32), [LENGTH] * documents)


def test_only_a_fitted_space_finds_a_signal_in_directions_of_small_variance() -> None:
    bank = signal_in_nuisance()
    train, test = np.arange(200), np.arange(200, 300)
    exam = Exam.over(bank, test, "test", 200)
    ranks = baseline_ranks(exam, list(together(moments(bank, train), (bank, train))), None)
    hits = {name: float(each.hits(5).mean()) for name, each in ranks.items()}
    raw = [hit for name, hit in hits.items() if "power" not in name or name.endswith(", power 0")]
    # Hit@5 of 83 % in the space, of at most 4.2 % in the raw rows; chance is 2.5 %.
    assert len(raw) == len(DECAYS) * 2 + 4
    assert hits["exponential mean 0.8, power 0.75"] > 0.8
    assert max(raw) < 0.06


# An exam that ranks by the scores of a model


def spaced(bank: Bank, model: Recurrent[object], power: float = 0.5) -> InSpace:
    found: Moments = moments(bank, TRAIN)
    return InSpace(Space.fitted(found.mean, found.covariance, power, found.rows), model).eval()


@pytest.mark.parametrize("pool", [5, 60, None])
def test_ranks_in_a_space_agree_with_the_definition(bank: Bank, pool: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions at random, candidates mapped a few at a time."""
    monkeypatch.setattr("nextvec.evaluation.exam.MAPPED", 7)
    exam, model = sat(bank, pool), spaced(bank, CopyLast(bank.dim))
    rows = oracles.in_space(bank.rows, trained_on(bank), 0.5)
    predicted = torch.randn(len(exam.rows), bank.dim, generator=torch.Generator().manual_seed(0))
    expected = [oracles.above(exam, r, rows @ predicted[r].double().numpy()) for r in range(len(exam.rows))]
    assert exam.rank(predicted, model).above.tolist() == expected
    # Without the map of candidates the ranks are others, so that a scorer that is left out would be seen.
    assert exam.rank(predicted).above.tolist() != expected


def test_ranks_by_several_queries_agree_with_the_definition(bank: Bank) -> None:
    torch.manual_seed(0)
    pooled = Pooled(bank.dim, 0.5, pooled=4, working=8)
    with torch.no_grad():
        for parameter in pooled.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    exam, model = sat(bank), spaced(bank, pooled)
    predicted = predict_rows(model, bank, exam.rows, CONTEXT)
    rows, sharpness = oracles.in_space(bank.rows, trained_on(bank), 0.5), float(pooled.sharpness.detach())
    expected = []
    for r in range(len(exam.rows)):
        vectors = predicted[r, : 4 * bank.dim].double().numpy().reshape(4, bank.dim)
        weights = np.exp(predicted[r, 4 * bank.dim :].double().numpy())
        expected.append(oracles.above(exam, r, np.log(weights @ np.exp(sharpness * vectors @ rows.T)) / sharpness))
    assert exam.rank(predicted, model).above.tolist() == expected


@torch.no_grad()
def test_predicting_the_mapped_truth_scores_everything(bank: Bank) -> None:
    exam, model = sat(bank), spaced(bank, ExponentialMean(torch.zeros(bank.dim), 0.5))
    assert exam.rank(model.candidates(exam.truths()), model).hits(1).tolist() == [1.0] * len(exam.rows)
    assert exam.rank(-model.candidates(exam.truths()), model).hits(10).sum() == 0
