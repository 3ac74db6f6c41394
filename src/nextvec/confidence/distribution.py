"""The probability of every rank of the next vector, from the ten best scores of an answer.

Let ``t`` be the best score, ``m`` the typical score of a candidate, and
``u = (score - m) / (t - m)``, so that the best candidate has u = 1 and a typical
one has u = 0. The next vector is the candidate at rank r with the probability

    p(r) proportional to exp(sharpness * sqrt(log N) * (u_r - concavity * u_r^2))

among N candidates. So p does not depend on the unit of the scores, which ranking
losses leave open, and not on their origin. The exponent is concave, because
large scores promise less than a softmax of scores says. The largest of N normal
numbers is about sqrt(2 log N) standard deviations above their mean, so
``sqrt(log N)`` keeps the sharpness the same in banks of different sizes.

The first ten ranks use their own scores. Behind them u falls to 0 at rank N,
linearly in the logarithm of the rank. Scores of other candidates are not needed,
so a probability costs little beside the search.
"""

# Axes: N predictions, F first scores, K ranks, P nodes.

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

FIRST = 10  # best scores that are read
USUAL, MOST = 50, 250  # vectors read: where the sharpness is stated, and after how many it no longer grows
NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)  # of an integral from -1 to 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The numbers of a distribution, and what they were fitted on.

    Attributes:
        level: logarithm of the sharpness after 50 vectors.
        growth: by how much it grows with the logarithm of the number of vectors read, up to 250 vectors.
        concavity: how much less than in proportion the exponent grows with a score; not fitted. Below 0.5 the exponent grows
            everywhere, so that a better rank is never less probable.
        rows, documents: predicted rows that it was fitted on, and the documents that hold them.
    """

    level: float
    growth: float
    concavity: float = 0.35
    rows: int = 0
    documents: int = 0

    def sharpness(self, read: Int64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """After a number of vectors, at least one."""
        return np.exp(self.level + self.growth * np.log(np.clip(read, 1, MOST) / USUAL))


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What the probabilities of predictions depend on.

    Attributes:
        first: the ``FIRST`` best scores, the best first; -inf where there are fewer candidates.
        typical: the score of a candidate that is the mean of all candidates.
        candidates: their number.
        read: vectors of the context.
    """

    first: Float[np.ndarray, "N F"]
    typical: Float[np.ndarray, " N"]
    candidates: Int64[np.ndarray, " N"]
    read: Int64[np.ndarray, " N"]


class RankDistribution:
    """The distribution of the rank of the next vector, for each of some predictions."""

    def __init__(self, answers: AnswerScores, calibration: Calibration) -> None:
        there, typical = np.isfinite(answers.first), answers.typical.astype(np.float64)[:, None]
        first = np.where(there, answers.first, typical)
        self._count = np.where(there.all(1), answers.candidates, there.sum(1))[:, None]
        self._concavity = calibration.concavity
        self._strength = calibration.sharpness(answers.read)[:, None] * np.sqrt(np.log(np.maximum(self._count, 2)))
        span = first[:, :1] - typical
        u = (first - typical) / np.where(span > 0, span, np.inf)  # no candidate above the typical one: all are equal
        self._last = u[:, -1:]
        self._begin, self._end = np.log(FIRST + 0.5), np.log(np.maximum(self._count, FIRST + 1) + 0.5)
        logits = np.where(there, self._logits(u), -np.inf)
        self._best = logits[:, :1]
        weights = np.exp(logits - self._best)
        self._total = weights.sum(1, keepdims=True) + self._tail()
        self._first = weights / self._total

    def rows(self, k: int) -> Float64[np.ndarray, "N K"]:
        """The probability of each of the first ``k`` ranks; 0 where there are fewer candidates."""
        if k <= FIRST:
            return self._first[:, :k]
        ranks = np.broadcast_to(np.arange(FIRST + 1.0, k + 1), (len(self._first), k - FIRST))
        behind = self._behind(np.log(ranks)) / self._total
        return np.hstack([self._first, np.where(ranks <= self._count, behind, 0.0)])

    def within(self, k: int) -> Float64[np.ndarray, " N"]:
        """The probability that the next vector is among the first ``k``."""
        return np.minimum(self.rows(k).sum(1), 1.0)

    def bits(self, ranks: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
        """The surprise of the next vector at its rank, -log2 p.

        Args:
            ranks: from 1; the mean rank of several candidates that tie.
        """
        column = np.clip(np.rint(ranks).astype(np.int64), 1, FIRST)[:, None] - 1
        inside = np.take_along_axis(self._first, column, axis=1)[:, 0]
        behind = (self._behind(np.log(np.maximum(ranks, FIRST + 1.0))[:, None]) / self._total)[:, 0]
        return -np.log2(np.where(ranks <= FIRST, inside, behind))

    def _logits(self, u: Float64[np.ndarray, "N P"]) -> Float64[np.ndarray, "N P"]:
        return self._strength * (u - self._concavity * u * u)

    def _behind(self, log_ranks: Float64[np.ndarray, "N P"]) -> Float64[np.ndarray, "N P"]:
        """The weights of ranks after the first ten. u falls to 0 at the last rank, and stays where it is below 0 already."""
        left = 1 - (log_ranks - self._begin) / (self._end - self._begin)
        u = np.maximum(self._last, 0.0) * np.clip(left, 0.0, 1.0) + np.minimum(self._last, 0.0)
        return np.exp(self._logits(u) - self._best)

    def _tail(self) -> Float64[np.ndarray, "N 1"]:
        """The sum of the weights of all ranks after the first ten, as an integral over the logarithm of the rank."""
        half = (self._end - self._begin) / 2
        log_ranks = self._begin + half * (NODES + 1)
        tail = half * ((self._behind(log_ranks) * np.exp(log_ranks)) @ WEIGHTS)[:, None]
        return np.where(self._count > FIRST, tail, 0.0)
