"""A memory GRU with experts, chosen at each position by the lane of the text, by the hidden state, or by both."""

# Axes: B passages, T positions, N = B T, D width, H hidden, E experts, P pairs of a position and an active expert.

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nextvec.models.hooks import AuxiliaryLoss, LastTrained, Routing
from nextvec.models.layers import feed_forward
from nextvec.models.memory_gru import MemoryGRU, MemoryGRUState
from nextvec.models.protocol import Recurrent
from nextvec.reproduction.gate import Gate, On, balance
from nextvec.reproduction.lane_scores import LaneRead, LaneScores, RandomLanes


def zero_blocks(blocks: Iterable[nn.Sequential]) -> nn.ModuleList:
    """The blocks, with the output of each initialised to zero."""
    made = nn.ModuleList()
    for block in blocks:
        last = block[-2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        made.append(block)
    return made


class Experts(nn.Module):
    """Feed-forward blocks; the output at a position is the weighted sum of its active experts. Others are not computed.

    Args:
        width: H of input and output.
        inner: inner width of each expert; narrow experts beside a shared block are adapters (Houlsby et al. 2019).
        count: number of experts.
    """

    def __init__(self, width: int, inner: int, count: int, dropout: float) -> None:
        super().__init__()
        self.blocks = zero_blocks(feed_forward(width, inner, dropout) for _ in range(count))

    def forward(self, h_BTH: Float[Tensor, "B T H"], weights_BTE: Float[Tensor, "B T E"]) -> Float[Tensor, "B T H"]:
        if torch.compiler.is_compiling():  # a graph cannot branch on its input: all experts are computed, most times 0
            return sum((block(h_BTH) * weights_BTE[..., e, None] for e, block in enumerate(self.blocks)), 0 * h_BTH)
        h_NH, weights_NE = h_BTH.flatten(0, 1), weights_BTE.flatten(0, 1)
        if len(h_NH) == 1:  # one position needs no gathering
            active = [e for e, weight in enumerate(weights_NE[0].tolist()) if weight > 0]
            return sum((weights_BTE[..., e, None] * self.blocks[e](h_BTH) for e in active), torch.zeros_like(h_BTH))
        place_P, expert_P = (weights_NE > 0).nonzero(as_tuple=True)
        answer_NH = torch.zeros_like(h_NH)
        for e in expert_P.unique().tolist():
            here = place_P[expert_P == e]
            answered = self.blocks[e](h_NH[here]) * weights_NE[here, e, None]
            answer_NH = answer_NH.index_add(0, here, answered.to(h_NH))
        return answer_NH.view_as(h_BTH)


class ExpertGRUState(NamedTuple):
    """The memory GRU's state, and the lanes' scores so far."""

    shared: MemoryGRUState
    lanes: LaneRead


class ExpertGRU(Recurrent[ExpertGRUState]):
    """A memory GRU whose hidden state passes through experts before it sets gates and reads the memories.

    h' = h + common(h) + sum of w_i expert_i(h). The last layers of the experts are 0 at the start, so that the untrained
    model is the memory GRU. With ``constants`` each expert also adds a learned vector to the mixture of means, which can
    model what all texts of its lane have in common.

    Args:
        shared: the memory GRU, with a GRU of width H.
        lanes: the scores of the experts' lanes; the caller sets the anchors of :class:`LaneScores`.
        inner: inner width of an expert; common: of the block that every position passes, 0 for none.
        on, temperature: see :class:`~nextvec.reproduction.gate.Gate`.
        top: active experts of each position.
        constants: whether each expert also adds a learned vector to the mixture of means.
        balance: weight of the load-balancing loss.
        router_fraction: share of the updates, the last ones, that train the gate alone.
    """

    vector_parameters = ("shared.trunk.", "shared.recall_weights", "constants")

    def __init__(
        self,
        shared: MemoryGRU,
        lanes: LaneScores | RandomLanes,
        inner: int,
        common: int = 0,
        on: On = "lane",
        top: int = 1,
        temperature: float = 0.05,
        dropout: float = 0.2,
        constants: bool = False,
        balance: float = 0.0,
        router_fraction: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = shared.dim
        self.num_experts = lanes.count
        self.balance, self.router_fraction = balance, router_fraction
        self.has_auxiliary = balance > 0
        hidden = shared.cell.hidden_size
        self.shared, self.lanes = shared, lanes
        self.common = zero_blocks([feed_forward(hidden, common, dropout)] if common else [])
        self.experts = Experts(hidden, inner, lanes.count, dropout)
        self.constants = nn.Parameter(torch.zeros(lanes.count, self.dim)) if constants else None
        self.gate = Gate(hidden, lanes.count, on, top, temperature)

    def start(self, batch: int) -> ExpertGRUState:
        return ExpertGRUState(self.shared.start(batch), self.lanes.start(batch))

    def run(self, state: ExpertGRUState, x_BTD: Float[Tensor, "B T D"]) -> tuple[ExpertGRUState, Float[Tensor, "B T D"]]:
        after, y_BTD, _ = self.routed(state, x_BTD)
        return after, y_BTD

    def routed(
        self, state: ExpertGRUState, x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[ExpertGRUState, Float[Tensor, "B T D"], Routing]:
        """As :meth:`run`, and the experts of each position."""
        read, h_BTH = self.shared.read(state.shared, x_BTD)
        lanes, scores_BTE = self.lanes(state.lanes, x_BTD)
        routing = self.gate(h_BTH, scores_BTE)
        residual_BTH = self.experts(h_BTH, routing.weights)
        for block in self.common:
            residual_BTH = residual_BTH + block(h_BTH)
        beside_BTD = None if self.constants is None else routing.weights @ self.constants
        shared, y_BTD = self.shared.answer(read, h_BTH + residual_BTH, beside_BTD)
        return ExpertGRUState(shared, lanes), y_BTD, routing

    def routing(self, x_BTD: Float[Tensor, "B T D"]) -> Routing:
        return self.routed(self.start(len(x_BTD)), x_BTD)[2]

    def with_auxiliary(
        self, x_BTD: Float[Tensor, "B T D"], scored_BT: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T D"], AuxiliaryLoss]:
        """As ``forward``, and the load-balancing loss."""
        _, y_BTD, routing = self.routed(self.start(len(x_BTD)), x_BTD)
        return y_BTD, AuxiliaryLoss("balance", self.balance, balance(routing, scored_BT))

    def last_trained(self) -> LastTrained:
        """The gate."""
        return LastTrained(self.router_fraction, list(self.gate.parameters()) if self.router_fraction else [])

    def take_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of another such model, or those of a memory GRU into the part that all experts share."""
        (self.shared if "trunk.centre" in tensors else self).load_state_dict(tensors)
