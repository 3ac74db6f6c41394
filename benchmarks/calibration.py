"""Compare ways to give an answer its probability, on runs; or fit the calibration of the weights of the package.

    python benchmarks/calibration.py runs/books runs/technical ...
    python benchmarks/calibration.py runs/books runs/technical ... --shipped

Every way is fitted on the valid documents and on the training documents in the spaces that were fitted without them, as the end
of a training does. The event is "the next vector is among the first five of all vectors of the bank". The tables show the
logarithmic loss on the documents that were fitted on, cross-validated by document, which a choice may use; and the calibration
error and the loss on the test documents, which it may not.

With --shipped the model is that of the package in the space of the training documents of each run's bank. The calibration of a
bank is compared with the mean of those of the other banks.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from rich.console import Console
from rich.table import Table

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.confidence import USUAL, AnswerScores, Calibration, RankDistribution, Reliability, fit
from nextvec.confidence.fit import log_loss
from nextvec.evaluation.answers import Answers, answers
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.inference import bank_of
from nextvec.models import Recurrent
from nextvec.models.space import Space
from nextvec.recipes import recipe
from nextvec.runs import Run, load_model
from nextvec.runs.shipped import POWER, shipped_model
from nextvec.training.begin import VALID_ROWS
from nextvec.training.calibrate import known_answers
from nextvec.training.folds import Fold, folds

K, PARTS = 5, 4
Probabilities = Callable[[Answers], Float64[np.ndarray, " R"]]
Way = Callable[[Answers], Probabilities]


def constant(known: Answers) -> Probabilities:
    """The share found, for every answer."""
    share = float((known.places < K).mean())
    return lambda other: np.full(len(other.places), share)


def temperature(known: Answers) -> Probabilities:
    """Temperature scaling (Guo et al. 2017): a softmax of scores, whose tail falls in the logarithm of the rank."""
    width = float(np.median(known.scores.first[:, 0] - known.scores.typical))
    best = min(np.geomspace(1, 100, 121) / width, key=lambda scale: log_loss(_softmax(known, scale), known.places < K))
    return lambda other: _softmax(other, best)


def platt(known: Answers) -> Probabilities:
    """A logistic function of the logit of temperature scaling."""
    before = temperature(known)
    weights = _logistic(_logit(before(known))[:, None], known.places < K)
    return lambda other: _sigmoid(_with_one(_logit(before(other))[:, None]) @ weights)


def isotonic(known: Answers) -> Probabilities:
    """Isotonic regression (Zadrozny and Elkan 2002) on the probability of temperature scaling."""
    before = temperature(known)
    at = before(known)
    order = np.argsort(at, kind="stable")
    levels = _pool_adjacent((known.places < K)[order].astype(np.float64))
    return lambda other: np.clip(np.interp(before(other), at[order], levels), 1e-3, 1 - 1e-3)


def features(known: Answers) -> Probabilities:
    """Logistic regression on six numbers of an answer that have no unit."""
    x = _features(known)
    mean, spread = x.mean(0), x.std(0)
    weights = _logistic((x - mean) / spread, known.places < K)
    return lambda other: _sigmoid(_with_one((_features(other) - mean) / spread) @ weights)


def ranks(known: Answers, usual: Calibration = USUAL) -> Probabilities:
    """The distribution over ranks of nextvec."""
    calibration = fit(known.scores, known.places, known.documents, usual)
    return lambda other: RankDistribution(other.scores, calibration).within(K)


WAYS: dict[str, Way] = {
    "constant": constant,
    "temperature": temperature,
    "temperature, then Platt": platt,
    "temperature, then isotonic": isotonic,
    "logistic regression": features,
    "ranks, linear exponent": lambda known: ranks(known, replace(USUAL, concavity=0.0)),
    "ranks (nextvec)": ranks,
}


@dataclass(frozen=True, eq=False)
class Source:
    """A run, or the weights of the package in the space of its bank.

    Attributes:
        known: the answers that a calibration is fitted to.
        test: the answers to the test documents.
    """

    name: str
    known: Answers
    test: Answers


def source(path: str, shipped: bool) -> Source:
    """The answers of a run; with ``shipped`` those of the weights of the package."""
    run = Run.open(path)
    bank, context = bank_of(run), run.settings.passages.context
    parts, settings = run.split(bank), run.settings
    if shipped:
        settings = recipe("default", len(bank)).replaced(device="cpu", seed=run.settings.seed)
    model = _shipped(bank, parts.train) if shipped else load_model(run)
    valid = Exam.over(bank, parts.valid, "valid", settings.validation.pool, VALID_ROWS)
    dealt: list[Fold] = folds(settings, bank, parts.train, POWER if shipped else run.origin.power)
    test = Exam.over(bank, parts.test, "test")
    found = answers(test, model, predict_rows(model, bank, test.rows, context), context)
    return Source(run.name, known_answers(model, valid, dealt), found)


def _shipped(bank: Bank, documents: np.ndarray) -> Recurrent[Any]:
    found = moments(bank, documents)
    return shipped_model(Space.fitted(found.mean, found.covariance, POWER))


def compare(sources: Sequence[Source]) -> None:
    """A table for each source: the ways, chosen by the first column alone."""
    for each in sources:
        found = f"{(each.test.places < K).mean():.1%} of {len(each.test.places):,} test rows found"
        table = Table(
            "way", "loss, fitted documents", "loss, test", "calibration error, test", "by chance", box=None, title=found
        )
        for name, way in WAYS.items():
            tested = Reliability(K, way(each.known)(each.test), each.test.places < K, each.test.documents)
            error = tested.error()
            table.add_row(
                f"{each.name}: {name}",
                f"{cross_validated(each.known, way):.4f}",
                f"{log_loss(tested.probabilities, tested.found):.4f}",
                f"{error.value:.3f} [{error.low:.3f}, {error.high:.3f}]",
                f"{tested.error_by_chance():.3f}",
            )
        Console(width=150).print(table, "")


def cross_validated(known: Answers, way: Way) -> float:
    """The loss on documents that were not fitted on, each a quarter of all."""
    documents = np.random.default_rng(0).permutation(np.unique(known.documents))
    probabilities = np.empty(len(known.places))
    for part in np.array_split(documents, PARTS):
        held = np.isin(known.documents, part)
        probabilities[held] = way(_only(known, ~held))(_only(known, held))
    return log_loss(probabilities, known.places < K)


def fit_shipped(sources: Sequence[Source]) -> None:
    """The mean calibration, and the calibration error of each source with its own and with the mean of all others."""
    own = {each.name: fit(each.known.scores, each.known.places, each.known.documents) for each in sources}
    print("mean", _mean(list(own.values())))
    table = Table("bank", "mean of the others", "calibration error", "of this bank", "calibration error", box=None)
    for each in sources:
        row: list[str] = []
        for calibration in (_mean([of for name, of in own.items() if name != each.name]), own[each.name]):
            error = each.test.reliability(calibration, K).error()
            row.append(f"{calibration.level:.2f} {calibration.growth:+.3f}")
            row.append(f"{error.value:.3f} [{error.low:.3f}, {error.high:.3f}]")
        table.add_row(each.name, *row)
    Console(width=150).print(table)


def _mean(calibrations: Sequence[Calibration]) -> Calibration:
    level, growth = (float(np.mean([getattr(of, name) for of in calibrations])) for name in ("level", "growth"))
    return replace(USUAL, level=level, growth=growth)


def _only(known: Answers, rows: np.ndarray) -> Answers:
    of = known.scores
    scores = AnswerScores(of.first[rows], of.typical[rows], of.candidates[rows], of.read[rows])
    return Answers(scores, known.places[rows], known.documents[rows])


def _softmax(of: Answers, scale: float) -> Float64[np.ndarray, " R"]:
    """The mass of the first five. Scores behind the tenth fall to the typical one, linearly in the logarithm of the rank."""
    first, typical = of.scores.first.astype(np.float64), of.scores.typical.astype(np.float64)[:, None]
    begin, end = np.log(10.5), np.log(of.scores.candidates + 0.5)[:, None]
    at = (np.arange(200) + 0.5) / 200
    log_ranks = begin + at * (end - begin)
    tail_scores = first[:, -1:] + at * (typical - first[:, -1:])
    weights = np.exp(scale * (first - first[:, :1]))
    tail = (np.exp(scale * (tail_scores - first[:, :1]) + log_ranks)).mean(1) * (end - begin)[:, 0]
    return weights[:, :K].sum(1) / (weights.sum(1) + tail)


def _features(of: Answers) -> Float64[np.ndarray, "R X"]:
    above = of.scores.first.astype(np.float64) - of.scores.typical[:, None]
    shares = above[:, [1, 4, 9]] / above[:, :1]
    return np.column_stack([shares, shares[:, 1] - shares[:, 2], np.log(of.scores.read), np.log(of.scores.candidates)])


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(x)), x])


def _logistic(x: np.ndarray, came: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression with a small ridge, by Newton's method."""
    x = _with_one(x)
    weights = np.zeros(x.shape[1])
    ridge = np.diag([0.0, *[1e-3 * len(x)] * (x.shape[1] - 1)]) + 1e-9 * np.eye(x.shape[1])
    for _ in range(30):
        p = _sigmoid(x @ weights)
        weights += np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge, x.T @ (came - p) - ridge @ weights)
    return weights


def _pool_adjacent(values: np.ndarray) -> np.ndarray:
    """The nearest ascending sequence: pool adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.concatenate([np.full(count, value) for value, count in blocks])


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--shipped", action="store_true", help="calibrate the weights of the package on the banks of the runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = [source(str(path), given.shipped) for path in given.runs]
    (fit_shipped if given.shipped else compare)(made)
