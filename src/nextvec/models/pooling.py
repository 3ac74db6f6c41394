"""Soft pooling of the last vectors: each becomes a query beside the prediction."""

# Axes: B passages, T positions, L lags, D width, W width of an output, P rows held before the passage.

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from nextvec.models.queries import ABSENT


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
        logits_BTL = (self.lag_logits + gates_BTL).masked_fill(~there_BTL, -torch.inf)
        queries_BTLD = predicted_BTD[:, :, None] + (self.amplitude + more_BT1)[..., None] * lags_BTLD
        return torch.cat([queries_BTLD.flatten(2), logits_BTL.log_softmax(-1).clamp(min=ABSENT)], dim=-1)
