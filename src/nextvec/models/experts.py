"""Sixteen experts behind one memory GRU: which of them speak is decided by what the text is about, by the state, or by both."""

# Axes: B passages, T positions, N = B T, D width, H hidden, E experts, K chosen experts, P projections, L positions of a block.

from collections.abc import Iterable
from math import log
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nextvec.kernels import steps
from nextvec.kernels.weights import WeightFormat
from nextvec.models.layers import feed_forward
from nextvec.models.memory_gru import MemoryGRU, MemoryGRUState
from nextvec.models.packed_layers import keep
from nextvec.models.protocol import Recurrent

BLOCK = 64
FAST = 0.8  # how much of a position's lane is that of the vectors before it
BITS, SIGNS = 4, 16  # random lanes: so many bits, each the parity of so many signs

Per = Literal["position", "document"]
On = Literal["lane", "state", "both"]


class LaneRead(NamedTuple):
    """Scores of all lanes, summed over what was read, and the weight of what was summed."""

    scores: Float[Tensor, "B E"]
    weight: Float[Tensor, "B 1"]


class LaneScores(nn.Module):
    """The mean score of every lane over what was read so far: cosine with its anchor, less its price.

    A score is linear in the row, so the lane of a mean row needs no mean row:
    E sums are the whole state. For a document all rows count alike; for a
    position a row counts ``FAST`` times as much as the one after it.

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
        """s(t) = keep s(t - 1) + x(t), in blocks, so that a passage needs no Python step per vector."""
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
    """The control: 16 lanes that mean nothing, yet are the same for the same row (hash layers, Roller et al. 2021).

    A bit is the parity of 16 signs of random projections, so that neighbours
    fall apart, and rounding changes nothing. Of a document the first row
    decides, of a position its own.
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


class Routing(NamedTuple):
    """Who speaks at each position.

    ``probabilities`` of all experts sum to one. ``weights`` are zero but for the chosen: with the k-th best p_k,
    w_i = max(0, p_i - p_(k+1)) / (p_1 + ... + p_k), so that an expert comes and goes with weight 0: the answer is a
    continuous function of what was read, whatever rounds it, and where no lane leads, none is heard.
    """

    probabilities: Float[Tensor, "*shape E"]
    weights: Float[Tensor, "*shape E"]


def chosen(logits: Float[Tensor, "*shape E"], top: int) -> Routing:
    """The routing of the ``top`` highest logits, as :class:`Routing` defines it."""
    probabilities = logits.softmax(-1)
    if top >= probabilities.shape[-1]:
        return Routing(probabilities, probabilities)
    best = probabilities.topk(top + 1, dim=-1).values
    weights = (probabilities - best[..., -1:]).clamp(min=0) / best[..., :-1].sum(-1, keepdim=True)
    return Routing(probabilities, weights)


def balance(routing: Routing, counted: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """E sum f_i p_i over the experts (Fedus et al. 2021, Switch Transformer): 1 when all are used alike, E when one is.

    f is the share of positions whose best expert it is, p its mean probability; only p has a gradient.
    """
    probabilities_NE = routing.probabilities[counted]
    count = probabilities_NE.shape[-1]
    first_N = probabilities_NE.argmax(-1)
    f_E = torch.bincount(first_N, minlength=count).to(probabilities_NE) / max(1, len(first_N))
    return count * (f_E * probabilities_NE.mean(0)).sum()


def silent(blocks: Iterable[nn.Sequential]) -> nn.ModuleList:
    """Blocks that answer zero until they are trained."""
    made = nn.ModuleList()
    for block in blocks:
        last = block[-2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        made.append(block)
    return made


class Experts(nn.Module):
    """Feed-forward blocks of which each position hears only the chosen, weighted; the others are not computed.

    Args:
        width: H of what is read and answered.
        inner: of each expert; narrow ones are adapters (Houlsby et al. 2019) beside what all share.
        count: of experts.
    """

    def __init__(self, width: int, inner: int, count: int, dropout: float) -> None:
        super().__init__()
        self.blocks = silent(feed_forward(width, inner, dropout) for _ in range(count))

    def forward(self, h_BTH: Float[Tensor, "B T H"], weights_BTE: Float[Tensor, "B T E"]) -> Float[Tensor, "B T H"]:
        if torch.compiler.is_compiling():  # a graph cannot depend on what it is given: all are computed, most times zero
            return sum((block(h_BTH) * weights_BTE[..., e, None] for e, block in enumerate(self.blocks)), 0 * h_BTH)
        h_NH, weights_NE = h_BTH.flatten(0, 1), weights_BTE.flatten(0, 1)
        if len(h_NH) == 1:  # a step gathers nothing
            heard = [e for e, weight in enumerate(weights_NE[0].tolist()) if weight > 0]
            return sum((weights_BTE[..., e, None] * self.blocks[e](h_BTH) for e in heard), torch.zeros_like(h_BTH))
        place_P, expert_P = (weights_NE > 0).nonzero(as_tuple=True)
        answer_NH = torch.zeros_like(h_NH)
        for e in expert_P.unique().tolist():
            here = place_P[expert_P == e]
            answered = self.blocks[e](h_NH[here]) * weights_NE[here, e, None]
            answer_NH = answer_NH.index_add(0, here, answered.to(h_NH))
        return answer_NH.view_as(h_BTH)


class Gate(nn.Module):
    """Who is heard: the ``top`` experts by the scores of their lanes, by the hidden state, or by both."""

    def __init__(self, hidden: int, count: int, on: On, top: int, temperature: float) -> None:
        super().__init__()
        self.on, self.top = on, top
        if on != "state":
            self.log_sharpness = nn.Parameter(torch.tensor(-log(temperature)))
        if on != "lane":
            self.state = nn.Linear(hidden, count)
        if on == "both":
            nn.init.zeros_(self.state.weight)
            nn.init.zeros_(self.state.bias)

    def forward(self, h_BTH: Float[Tensor, "B T H"], scores_BTE: Float[Tensor, "B T E"]) -> Routing:
        return chosen(self.logits(h_BTH, scores_BTE), self.top)

    def logits(self, h_BTH: Float[Tensor, "B T H"], scores_BTE: Float[Tensor, "B T E"]) -> Float[Tensor, "B T E"]:
        if self.on == "state":
            return self.state(h_BTH)
        logits = self.log_sharpness.exp() * scores_BTE
        return logits + self.state(h_BTH) if self.on == "both" else logits

    def packed(self, form: WeightFormat) -> nn.Module:
        return PackedGate(self) if steps.compiled() else self


class ExpertGRUState(NamedTuple):
    """The memory GRU's state, and the lanes' scores so far."""

    shared: MemoryGRUState
    lanes: LaneRead


class ExpertGRU(Recurrent[ExpertGRUState]):
    """A memory GRU whose hidden state passes through experts before it gates, writes and asks the memories.

    h' = h + shared(h) + sum of w_i expert_i(h); the experts' last layers are
    zero at the start, so that before training it is the memory GRU. With
    ``constants`` each expert also adds a vector of its own to the mixture of
    means, which takes off what all texts of its lane have in common.

    The gate's logits are ``sharpness`` times the mean score of every lane
    (``on="lane"``), a linear map of h (``"state"``), or their sum, which starts
    as the lane's alone (``"both"``).

    Args:
        shared: the memory GRU, whose GRU is ``hidden`` wide.
        lanes: what scores the experts' lanes; :class:`LaneScores` must be given its anchors.
        inner: width of an expert's inner layer; common: of the block that every position passes, 0 for none.
        on, top: see above; how many experts each position hears.
        temperature: of lane scores at the start; learned.
    """

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
    ) -> None:
        super().__init__()
        self.dim = shared.dim
        hidden = shared.cell.hidden_size
        self.shared, self.lanes = shared, lanes
        self.common = silent([feed_forward(hidden, common, dropout)] if common else [])
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
        """As :meth:`run`, and who spoke at each position."""
        read, h_BTH = self.shared.read(state.shared, x_BTD)
        lanes, scores_BTE = self.lanes(state.lanes, x_BTD)
        routing = self.gate(h_BTH, scores_BTE)
        residual_BTH = self.experts(h_BTH, routing.weights)
        for block in self.common:
            residual_BTH = residual_BTH + block(h_BTH)
        beside_BTD = None if self.constants is None else routing.weights @ self.constants
        shared, y_BTD = self.shared.answer(read, h_BTH + residual_BTH, beside_BTD)
        return ExpertGRUState(shared, lanes), y_BTD, routing


class PackedLaneScores(LaneScores):
    """Lane scores that are one compiled call."""

    def __init__(self, source: LaneScores) -> None:
        super().__init__(source.anchors.shape[1], source.count, "document")
        self.load_state_dict(source.state_dict())
        self.keep = source.keep

    def forward(self, state: LaneRead, x_BTD: Float[Tensor, "B T D"]) -> tuple[LaneRead, Float[Tensor, "B T E"]]:
        *after, means_BTE = steps.lanes(x_BTD, self.anchors, self.prices, self.keep, *state)
        return LaneRead(*after), means_BTE


class PackedGate(nn.Module):
    """A gate whose top-k choice is one compiled call."""

    def __init__(self, source: Gate) -> None:
        super().__init__()
        self.on, self.top = source.on, source.top
        self.sharpness = keep(self, "sharpness", source.log_sharpness.exp() if source.on != "state" else None)
        self.state = source.state if source.on != "lane" else None

    def forward(self, h_BTH: Float[Tensor, "B T H"], scores_BTE: Float[Tensor, "B T E"]) -> Routing:
        parts = [] if self.sharpness is None else [self.sharpness * scores_BTE]
        if self.state is not None:
            parts.append(self.state(h_BTH))
        logits_BTE = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if self.top >= logits_BTE.shape[-1]:
            return chosen(logits_BTE, self.top)
        return Routing(*steps.choose(logits_BTE, self.top))
