"""Ranks of the truth, and Hit@k and MRR with intervals.

A :class:`Rate` contains its ``n`` and its interval. :class:`Ranks` contain the
numbers of candidates and of ties.
"""

# Axes: Q queries, R resamples, C clusters.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from nextvec.errors import ExamError

RESAMPLES = 4_000
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A mean over ``n`` queries with its 95 % interval, all as shares of one."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.n:,}"

    def to_json(self) -> dict[str, float | int]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class Ranks:
    """For each query, the number of candidates that scored above the truth, and the number that tied with it.

    Attributes:
        above: candidates with a strictly higher score.
        tied: other candidates with exactly the truth's score.
        candidates: number of ranked candidates, the truth included.
        clusters: the document of each query. Queries of one document depend on
            each other, so intervals resample documents, not queries.
    """

    above: Int64[np.ndarray, " Q"]
    tied: Int64[np.ndarray, " Q"]
    candidates: Int64[np.ndarray, " Q"]
    clusters: Int64[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.above)

    def only(self, rows: Int64[np.ndarray, " kept"]) -> "Ranks":
        """The ranks of some of the queries."""
        return Ranks(self.above[rows], self.tied[rows], self.candidates[rows], self.clusters[rows])

    @staticmethod
    def joined(parts: Sequence["Ranks"]) -> "Ranks":
        """The ranks of several exams over different documents of one bank."""
        fields = ("above", "tied", "candidates", "clusters")
        return Ranks(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))

    def replaced(self, rows: Int64[np.ndarray, " kept"], other: "Ranks") -> "Ranks":
        """These ranks, with those of ``other`` for some of the queries.

        Raises:
            ExamError: the two did not answer the same queries among the same candidates.
        """
        _refuse_other_exam(self, other)
        chosen = np.zeros(len(self), dtype=bool)
        chosen[rows] = True
        above, tied = np.where(chosen, other.above, self.above), np.where(chosen, other.tied, self.tied)
        return Ranks(above, tied, self.candidates, self.clusters)

    def hits(self, k: int) -> Float64[np.ndarray, " Q"]:
        """The probability that the truth is among the first ``k`` when ties fall at random."""
        return np.clip((k - self.above) / (1 + self.tied), 0.0, 1.0)

    def reciprocals(self) -> Float64[np.ndarray, " Q"]:
        """Expected 1/rank when ties fall at random: the mean of 1/r over the tied places."""
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(self.candidates.max(initial=0)) + 2))])
        first, last = self.above, self.above + self.tied + 1
        return (harmonic[last] - harmonic[first]) / (1 + self.tied)

    def hit(self, k: int) -> Rate:
        """Hit@k with a 95 % interval that resamples documents, because their queries are not independent."""
        return clustered_rate(self.hits(k), self.clusters)

    def mrr(self) -> Rate:
        """Mean reciprocal rank."""
        return clustered_rate(self.reciprocals(), self.clusters)

    def chance(self, k: int) -> float:
        """Hit@k of a random scorer: the mean of k / candidates."""
        return float(np.minimum(k / self.candidates, 1.0).mean())


def candidate_terms(candidates: Int64[np.ndarray, " Q"]) -> dict[str, Any]:
    """The numbers of candidates, for JSON: ``pool``, ``all`` if queries differ, and the least and most of a query."""
    least, most = int(candidates.min()), int(candidates.max())
    return {"pool": least if least == most else "all", "candidates": {"least": least, "most": most}}


def candidates_in_words(terms: Mapping[str, Any]) -> str:
    """``terms`` of :func:`candidate_terms` as text: ``1,000``, or ``201 to 1,701`` if queries differ."""
    least, most = terms["candidates"]["least"], terms["candidates"]["most"]
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def wilson(value: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of ``n`` independent trials (Wilson 1927)."""
    denominator = 1 + Z95**2 / n
    centre = (value + Z95**2 / (2 * n)) / denominator
    half = Z95 / denominator * sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_rate(values: Float64[np.ndarray, " Q"], clusters: Int64[np.ndarray, " Q"]) -> Rate:
    """Mean and 95 % interval, which covers Wilson's and the cluster bootstrap's: with few documents, each is too narrow.

    Raises:
        ExamError: no values.
    """
    if len(values) == 0:
        raise ExamError("no rows were scored; a rate needs at least one")
    value = float(values.mean())
    low, high = wilson(min(max(value, 0.0), 1.0), len(values))
    boot_low, boot_high = _bootstrap(values, clusters)
    return Rate(value, min(low, boot_low), max(high, boot_high), len(values))


def paired_lift(a: Ranks, b: Ranks, k: int) -> Rate:
    """Hit@k of ``a`` minus that of ``b`` on the same queries, resampling documents in pairs.

    Raises:
        ExamError: the two did not answer the same queries among the same candidates.
    """
    _refuse_other_exam(a, b)
    difference = a.hits(k) - b.hits(k)
    low, high = _bootstrap(difference, a.clusters)
    return Rate(float(difference.mean()), low, high, len(difference))


def _refuse_other_exam(a: Ranks, b: Ranks) -> None:
    if len(a) != len(b) or (a.clusters != b.clusters).any() or (a.candidates != b.candidates).any():
        raise ExamError("these ranks come from different exams; a paired lift needs the same rows and candidates")


def _bootstrap(values: Float64[np.ndarray, " Q"], clusters: Int64[np.ndarray, " Q"]) -> tuple[float, float]:
    """Percentile interval of the mean over resampled clusters; with one cluster, its rows are resampled."""
    if len(np.unique(clusters)) == 1:
        clusters = np.arange(len(values))
    _, member = np.unique(clusters, return_inverse=True)
    sums = np.bincount(member, values)
    sizes = np.bincount(member)
    rng = np.random.default_rng(0)
    means: list[np.ndarray] = []
    for _ in range(20):  # in blocks, so that many clusters need little memory
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES // 20)
        means.append((drawn @ sums) / (drawn @ sizes))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
