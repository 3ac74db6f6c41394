"""The gate: which experts are active at each position, and with which weights."""

# Axes: B passages, T positions, N positions of all passages, H hidden, E experts.

from math import log
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nextvec.kernels import steps
from nextvec.kernels.weights import WeightFormat
from nextvec.models.hooks import Routing
from nextvec.models.packed_layers import keep

On = Literal["lane", "state", "both"]


def chosen(logits: Float[Tensor, "*shape E"], top: int) -> Routing:
    """The routing of the ``top`` highest logits.

    With the k-th highest probability p_k, the weight of expert i is max(0, p_i - p_(k+1)) / (p_1 + ... + p_k). So the
    weight of an expert is 0 where it becomes active or inactive, and the prediction is a continuous function of the
    input: rounding cannot change it by more than rounding. Where all probabilities are equal, no expert is active.
    """
    probabilities = logits.softmax(-1)
    if top >= probabilities.shape[-1]:
        return Routing(probabilities, probabilities)
    best = probabilities.topk(top + 1, dim=-1).values
    weights = (probabilities - best[..., -1:]).clamp(min=0) / best[..., :-1].sum(-1, keepdim=True)
    return Routing(probabilities, weights)


def balance(routing: Routing, counted: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The load-balancing loss of the Switch Transformer (Fedus et al. 2021): E sum f_i p_i over the experts.

    It is 1 if all experts are used equally and E if one is used alone. f is the share of positions whose best expert it
    is, p its mean probability; only p has a gradient.

    Args:
        counted: the positions that are part of the loss.
    """
    probabilities_NE = routing.probabilities[counted]
    count = probabilities_NE.shape[-1]
    first_N = probabilities_NE.argmax(-1)
    f_E = torch.bincount(first_N, minlength=count).to(probabilities_NE) / max(1, len(first_N))
    return count * (f_E * probabilities_NE.mean(0)).sum()


class Gate(nn.Module):
    """Chooses the ``top`` experts of each position by the scores of their lanes, by the hidden state, or by both.

    The logits are the learned sharpness times the scores (``on="lane"``), a linear map of the hidden state (``"state"``),
    or their sum, which starts as the lane's part alone (``"both"``).

    Args:
        temperature: of the scores at the start: the inverse of the sharpness.
    """

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
