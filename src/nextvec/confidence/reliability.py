"""How well probabilities agree with what came: the reliability diagram, the calibration error, and what a prefetch is worth."""

# Axes: N predictions.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from nextvec.ranks import Rate, clustered_rate

BINS = 10
RESAMPLES, SIMULATIONS = 400, 200
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Bin:
    """A tenth of the predictions, by probability.

    Attributes:
        probability: mean of the probabilities.
        found: share of the predictions whose next vector was among the first k.
    """

    probability: float
    found: Rate

    def to_json(self) -> dict[str, Any]:
        return {"probability": self.probability, "found": self.found.to_json()}


@dataclass(frozen=True)
class Prefetch:
    """What fetching k candidates in advance is worth, if only answers of at least this probability are fetched.

    Attributes:
        threshold: least probability.
        fetched: share of the predictions that are fetched.
        found: share of all next vectors that are among what was fetched.
        precision: share of the fetched answers that hold the next vector; None if none is fetched.
    """

    threshold: float
    fetched: float
    found: float
    precision: float | None


@dataclass(frozen=True, eq=False)
class Reliability:
    """The probabilities that the next vector is among the first k, and whether it was.

    Attributes:
        k: candidates of an answer.
        documents: of each prediction; intervals resample documents.
    """

    k: int
    probabilities: Float64[np.ndarray, " N"]
    found: Bool[np.ndarray, " N"]
    documents: Int64[np.ndarray, " N"]

    @property
    def bins(self) -> list[Bin]:
        """Tenths of the predictions, ordered by their probability: bins of equal mass."""
        return [
            Bin(float(self.probabilities[of].mean()), clustered_rate(self.found[of].astype(np.float64), self.documents[of]))
            for of in _bins(self.probabilities)
        ]

    def error(self) -> Rate:
        """The expected calibration error: the mean distance of probability and share over ten bins of equal mass.

        The interval resamples documents. A resample has larger errors than the sample, because chance enters twice, so the
        interval lies high rather than low.
        """
        value = calibration_error(self.probabilities, self.found)
        rng, members = np.random.default_rng(0), _members(self.documents)
        drawn = [self._resampled(members, rng) for _ in range(RESAMPLES)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        return Rate(value, min(value, float(low)), max(value, float(high)), len(self.found))

    def error_by_chance(self) -> float:
        """The mean calibration error of as many predictions whose probabilities are exactly right.

        Drawn as independent events, so the chance level of rows that depend on each other is higher.
        """
        rng = np.random.default_rng(0)
        draws = (rng.random(len(self.found)) < self.probabilities for _ in range(SIMULATIONS))
        return float(np.mean([calibration_error(self.probabilities, came) for came in draws]))

    def prefetch(self, thresholds: Sequence[float] = THRESHOLDS) -> list[Prefetch]:
        """The shares fetched and found at each threshold."""
        table: list[Prefetch] = []
        for threshold in (0.0, *thresholds):
            fetched = self.probabilities >= threshold
            both = fetched & self.found
            precision = float(both.sum() / fetched.sum()) if fetched.any() else None
            table.append(Prefetch(threshold, float(fetched.mean()), float(both.mean()), precision))
        return table

    def to_json(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "found": clustered_rate(self.found.astype(np.float64), self.documents).to_json(),
            "probability": float(self.probabilities.mean()),
            "calibration_error": self.error().to_json(),
            "calibration_error_by_chance": self.error_by_chance(),
            "bins": [each.to_json() for each in self.bins],
            "prefetch": [vars(each) for each in self.prefetch()],
        }

    def _resampled(self, members: Sequence[Int64[np.ndarray, "..."]], rng: np.random.Generator) -> float:
        rows = np.concatenate([members[m] for m in rng.integers(len(members), size=len(members))])
        return calibration_error(self.probabilities[rows], self.found[rows])


def calibration_error(probabilities: Float64[np.ndarray, " N"], found: Bool[np.ndarray, " N"]) -> float:
    """The distance between the mean probability and the share found, weighted by the size of each bin of equal mass.

    Naeini, Cooper and Hauskrecht (2015) with bins of equal mass in place of equal width, which have less bias (Roelofs, Cain,
    Shlens and Mozer 2022).
    """
    gaps = [abs(float((probabilities[of] - found[of]).sum())) for of in _bins(probabilities)]
    return sum(gaps) / len(found)


def _bins(probabilities: Float64[np.ndarray, " N"]) -> list[Int64[np.ndarray, "..."]]:
    order = np.argsort(probabilities, kind="stable")
    return [part for part in np.array_split(order, BINS) if len(part)]


def _members(documents: Int64[np.ndarray, " N"]) -> list[Int64[np.ndarray, "..."]]:
    """The predictions of each document; of one document alone, each prediction for itself."""
    names, of = np.unique(documents, return_inverse=True)
    if len(names) == 1:
        of = np.arange(len(documents))
    return np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
