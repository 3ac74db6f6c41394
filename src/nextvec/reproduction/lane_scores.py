"""The scores of lanes that experts are chosen by: of anchors, or random as a control."""

# Axes: B passages, T positions, D width, E lanes, L positions of a block.

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nextvec.kernels import steps
from nextvec.kernels.weights import WeightFormat

BLOCK = 64
FAST = 0.8  # decay of the weight of a row per position
BITS, SIGNS = 4, 16  # of random lanes: bits, each the parity of so many signs

Per = Literal["position", "document"]


class LaneRead(NamedTuple):
    """The summed scores of all lanes, and the sum of the weights of the summed rows."""

    scores: Float[Tensor, "B E"]
    weight: Float[Tensor, "B 1"]


class LaneScores(nn.Module):
    """The mean score of every lane over the rows read so far: the cosine with its anchor minus its price.

    A score is linear in the row, so E sums are the whole state: the mean row is not needed. With ``per="document"`` all
    rows have the same weight. With ``per="position"`` a row has ``FAST`` times the weight of the row after it.

    Anchors and prices are data (:class:`nextvec.lanes.Anchors`), not parameters.
    """

    def __init__(self, dim: int, count: int, per: Per) -> None:
        super().__init__()
        self.count, self.keep = count, 1.0 if per == "document" else FAST
        self.anchors: Tensor
        self.prices: Tensor
        self.register_buffer("anchors", torch.zeros(count, dim))
        self.register_buffer("prices", torch.zeros(count))

    def start(self, batch: int) -> LaneRead:
        return LaneRead(self.anchors.new_zeros(batch, self.count), self.anchors.new_zeros(batch, 1))

    def forward(self, state: LaneRead, x_BTD: Float[Tensor, "B T D"]) -> tuple[LaneRead, Float[Tensor, "B T E"]]:
        scores_BTE = x_BTD @ self.anchors.T - self.prices
        counted_BTE = torch.cat([scores_BTE, torch.ones_like(scores_BTE[..., :1])], dim=-1)
        after_BE, sums_BTE = self._discounted(torch.cat(state, dim=-1), counted_BTE)
        return LaneRead(after_BE[:, :-1], after_BE[:, -1:]), sums_BTE[..., :-1] / sums_BTE[..., -1:]

    def _discounted(
        self, carried_BE: Float[Tensor, "B E"], x_BTE: Float[Tensor, "B T E"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B T E"]]:
        """s(t) = keep s(t - 1) + x(t), computed in blocks instead of one Python step per vector."""
        sums: list[Tensor] = []
        for x_BLE in x_BTE.split(BLOCK, dim=1):
            place_L = torch.arange(x_BLE.shape[1], device=x_BLE.device)
            lag_LL = place_L[:, None] - place_L
            inside_LL = torch.where(lag_LL >= 0, torch.full_like(x_BLE[0, :1, :1], self.keep) ** lag_LL.clamp(min=0), 0)
            before_L = self.keep ** (place_L + 1).to(x_BLE)
            sums_BLE = inside_LL @ x_BLE + before_L[:, None] * carried_BE[:, None]
            carried_BE = sums_BLE[:, -1]
            sums.append(sums_BLE)
        return carried_BE, torch.cat(sums, dim=1)

    def packed(self, form: WeightFormat) -> nn.Module:
        return PackedLaneScores(self) if steps.compiled() else self


class RandomLanes(nn.Module):
    """The control: 16 lanes that are a hash of the row (hash layers, Roller et al. 2021).

    Each bit is the parity of 16 signs of random projections, so that neighbouring rows get different lanes and rounding
    changes no lane. The lane of a document is that of its first row; the lane of a position is that of its own row.
    """

    def __init__(self, dim: int, per: Per) -> None:
        super().__init__()
        self.count, self.per = 2**BITS, per
        self.projections: Tensor
        self.register_buffer("projections", torch.randn(BITS * SIGNS, dim))

    def start(self, batch: int) -> LaneRead:
        return LaneRead(self.projections.new_zeros(batch, self.count), self.projections.new_zeros(batch, 1))

    def forward(self, state: LaneRead, x_BTD: Float[Tensor, "B T D"]) -> tuple[LaneRead, Float[Tensor, "B T E"]]:
        signs = (x_BTD @ self.projections.T > 0).unflatten(-1, (BITS, SIGNS))
        bits = signs.sum(-1) % 2
        lane_BT = (bits * 2 ** torch.arange(BITS, device=bits.device)).sum(-1)
        scores_BTE = nn.functional.one_hot(lane_BT, self.count).to(x_BTD.dtype)
        if self.per == "document":
            first_B1E = torch.where(state.weight[:, None] > 0, state.scores[:, None], scores_BTE[:, :1])
            scores_BTE = first_B1E.expand_as(scores_BTE)
        return LaneRead(scores_BTE[:, -1], torch.ones_like(state.weight)), scores_BTE


class PackedLaneScores(LaneScores):
    """Lane scores that are one compiled call."""

    def __init__(self, source: LaneScores) -> None:
        super().__init__(source.anchors.shape[1], source.count, "document")
        self.load_state_dict(source.state_dict())
        self.keep = source.keep

    def forward(self, state: LaneRead, x_BTD: Float[Tensor, "B T D"]) -> tuple[LaneRead, Float[Tensor, "B T E"]]:
        *after, means_BTE = steps.lanes(x_BTD, self.anchors, self.prices, self.keep, *state)
        return LaneRead(*after), means_BTE
