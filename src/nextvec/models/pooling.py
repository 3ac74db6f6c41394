"""Soft pooling of the last vectors: each becomes a query beside the prediction."""

# Axes: B passages, T positions, L lags, D width, W width of an output, P rows held before the passage, C candidates, N nodes.

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from nextvec.models.queries import ABSENT

# Quadrature from -1 to 1. Parts add up to 1e-5 where sharpness times amplitude is at most 100; the shipped weights have 45.
NODES, SHARES = map(torch.from_numpy, np.polynomial.legendre.leggauss(64))


class LagPooling(nn.Module):
    """Query l is the prediction plus ``amplitude`` times the unit vector that was read l positions ago.

    The score of a candidate is then its product with the prediction plus the
    log-mean-exp of its products with the last vectors: the score of a kernel
    density of the context. At the start the amplitude is 0 and every query is the
    prediction, so pooling changes nothing until it is trained.
    """

    def __init__(self, lags: int) -> None:
        super().__init__()
        self.lags = lags
        self.amplitude = nn.Parameter(torch.zeros(()))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(8.0)))
        # Training on several banks converged to weights that halve about every three lags.
        self.lag_logits = nn.Parameter(-torch.arange(lags) * (math.log(2) / 3))

    @property
    def sharpness(self) -> Float[Tensor, ""]:
        return self.log_sharpness.exp()

    def last(
        self, before_BPD: Float[Tensor, "B P D"], filled_BP: Bool[Tensor, "B P"], unit_BTD: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T L D"], Bool[Tensor, "B T L"]]:
        """The last vectors at every position, the newest first, and which of them exist.

        Args:
            before_BPD: unit vectors read before the passage, the latest last; ``filled_BP`` says which of them exist.
            unit_BTD: unit vectors of the passage.
        """
        first = max(0, before_BPD.shape[1] - self.lags + 1)
        before_BPD, filled_BP = before_BPD[:, first:], filled_BP[:, first:]
        missing = self.lags - 1 - before_BPD.shape[1]
        rows = pad(torch.cat([before_BPD, unit_BTD], dim=1), (0, 0, missing, 0))
        there = pad(torch.cat([filled_BP, torch.ones_like(unit_BTD[..., 0], dtype=torch.bool)], dim=1), (missing, 0))
        return rows.unfold(1, self.lags, 1).flip(-1).transpose(2, 3), there.unfold(1, self.lags, 1).flip(-1)

    def forward(
        self,
        predicted_BTD: Float[Tensor, "B T D"],
        lags_BTLD: Float[Tensor, "B T L D"],
        there_BTL: Bool[Tensor, "B T L"],
        gates_BTL: Float[Tensor, "B T L"],
        more_BT1: Float[Tensor, "B T 1"],
    ) -> Float[Tensor, "B T W"]:
        """The queries and their log weights.

        Args:
            lags_BTLD, there_BTL: of :meth:`last`.
            gates_BTL: added to the log weights of the lags.
            more_BT1: added to the amplitude.
        """
        queries_BTLD = predicted_BTD[:, :, None] + (self.amplitude + more_BT1)[..., None] * lags_BTLD
        return torch.cat([queries_BTLD.flatten(2), self._log_weights(there_BTL, gates_BTL)], dim=-1)

    def parts(
        self,
        products_CL: Float[Tensor, "C L"],
        there_L: Bool[Tensor, " L"],
        gates_L: Float[Tensor, " L"],
        more: Float[Tensor, "1"],
    ) -> Float[Tensor, "C L"]:
        """What each lag adds to the scores of candidates: its integrated gradient (:mod:`nextvec.models.attribution`).

        With amplitude a, sharpness s, products z and log weights w, the lags add log(sum over l of exp(s a z_l + w_l)) / s
        to a score. The part of lag l is a z_l times the integral over t from 0 to 1 of softmax(t s a z + w)_l. At t = 0 the
        lags add nothing, because their weights sum to one, so the parts add up to all that the lags add. The integral is
        computed by Gauss-Legendre quadrature.

        Args:
            products_CL: of each candidate and the vector of each lag.
            there_L, gates_L, more: as of :meth:`forward`, at one position.
        """
        scaled_CL = (self.amplitude + more).double() * products_CL.double()
        log_weights_L = self._log_weights(there_L, gates_L).double()
        line_N11 = (1 + NODES.to(scaled_CL.device))[:, None, None] / 2
        weights_NCL = (line_N11 * self.sharpness.double() * scaled_CL + log_weights_L).softmax(-1)
        return (scaled_CL * torch.einsum("n,ncl->cl", SHARES.to(scaled_CL.device) / 2, weights_NCL)).to(products_CL.dtype)

    def _log_weights(self, there: Bool[Tensor, "*shape L"], gates: Float[Tensor, "*shape L"]) -> Float[Tensor, "*shape L"]:
        logits = (self.lag_logits + gates).masked_fill(~there, -torch.inf)
        return logits.log_softmax(-1).clamp(min=ABSENT)
