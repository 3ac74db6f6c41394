"""The probabilities of the answers of an engine."""

# Axes: N predictions, W width of an output, K ranks, M ranks searched, A rows that a mask knows.

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from nextvec.bank import Bank
from nextvec.candidate_map import mean_candidate
from nextvec.confidence import FIRST, AnswerScores, Calibration, RankDistribution
from nextvec.models import Recurrent


class Confidence:
    """Gives every answer the probability of its candidates.

    The probability is that of being the next vector, if the next vector is one
    of the candidates: the vectors of the bank (or of the documents that are
    searched) which the context does not hold.
    """

    def __init__(self, calibration: Calibration, model: Recurrent[Any], bank: Bank) -> None:
        self.calibration, self._model, self._bank = calibration, model, bank
        self._mean = mean_candidate(bank, model)

    @torch.inference_mode()
    def probabilities(
        self,
        predictions: Float32[np.ndarray, "N W"],
        scores: Float32[np.ndarray, "N M"],
        k: int,
        read: Int64[np.ndarray, " N"],
        excluded: Sequence[Int64[np.ndarray, "..."]],
        allowed: Bool[np.ndarray, " A"] | None,
        added: int,
    ) -> Float64[np.ndarray, "N K"]:
        """The probability of each of the first ``k`` candidates.

        Args:
            predictions: outputs of the model.
            scores: of at least the ``FIRST`` best candidates, -inf where there are fewer.
            read: number of vectors of each context.
            excluded: for each prediction, the vectors of the bank that are left out, each by one row.
            allowed: as for the search.
            added: number of rows that were added to the index.
        """
        typical = self._model.scores(torch.from_numpy(predictions), self._mean)[:, 0].numpy()
        count = self._candidates(excluded, allowed, added)
        return RankDistribution(AnswerScores(scores[:, :FIRST], typical, count, read), self.calibration).rows(k)

    def _candidates(
        self, excluded: Sequence[Int64[np.ndarray, "..."]], allowed: Bool[np.ndarray, " A"] | None, added: int
    ) -> Int64[np.ndarray, " N"]:
        """The number of candidates of each prediction."""
        distinct = self._bank.distinct
        if allowed is None:
            return np.array([len(distinct) + added - len(rows) for rows in excluded])
        inside = np.zeros(len(distinct), bool)
        inside[distinct.numbers[np.flatnonzero(allowed[: len(self._bank.table)])]] = True
        return np.array([int(inside.sum()) - int(inside[distinct.numbers[rows]].sum()) for rows in excluded])
