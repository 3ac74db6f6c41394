"""A linear recurrence whose gates depend on the input alone, so that all positions are computed at once.

It is minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201) in residual blocks with a gated output, as in
Griffin (De et al. 2024, arXiv 2402.19427). Its output is a residual on the trunk.
"""

# Axes: B passages, T positions, D width, H hidden.

from math import log
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from nextvec.models.layers import feed_forward, silent_linear
from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk

LONGEST = 1000  # vectors that the slowest hidden unit remembers for, before training


def scan(
    carried_BH: Float[Tensor, "B H"], keep_BTH: Float[Tensor, "B T H"], add_BTH: Float[Tensor, "B T H"]
) -> Float[Tensor, "B T H"]:
    """h_t = keep_t h_(t-1) + add_t at every position, from h = ``carried``.

    Two consecutive steps are one step of the same form. So the odd positions are a recurrence of half the length, and each
    even position is one step after an odd one. This takes 2 log2(T) Python steps and 2 T updates. It computes products and
    sums only, never a quotient, so gates of 0 or 1 and products that underflow cause no error.
    """
    first_BTH = torch.addcmul(add_BTH[:, :1], keep_BTH[:, :1], carried_BH[:, None])
    if keep_BTH.shape[1] == 1:
        return first_BTH
    pairs = keep_BTH.shape[1] // 2
    keep_second, add_second = keep_BTH[:, 1::2], add_BTH[:, 1::2]
    keep_pair = keep_BTH[:, 0 : 2 * pairs : 2] * keep_second
    add_pair = torch.addcmul(add_second, keep_second, add_BTH[:, 0 : 2 * pairs : 2])
    second_BPH = scan(carried_BH, keep_pair, add_pair)
    later_BPH = torch.addcmul(add_BTH[:, 2::2], keep_BTH[:, 2::2], second_BPH[:, : (keep_BTH.shape[1] - 1) // 2])
    first_BPH = torch.cat([first_BTH, later_BPH], dim=1)
    paired = torch.stack([first_BPH[:, :pairs], second_BPH], dim=2).flatten(1, 2)
    return torch.cat([paired, first_BPH[:, pairs:]], dim=1)


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_(t-1) + z_t c_t, where gate z and candidate c depend on the input alone. The output is h, gated.

    Before training the units remember from one vector to ``LONGEST`` vectors, evenly in the logarithm.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        with torch.no_grad():
            # z = 1 / (1 + n) remembers for n vectors; its logit is -log n.
            self.projections.bias[:width] = -torch.linspace(0, log(LONGEST), width)

    def forward(
        self, carried_BH: Float[Tensor, "B H"], x_BTH: Float[Tensor, "B T H"]
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B T H"]]:
        """The hidden state after the passage, and the output at every position."""
        update_BTH, candidate_BTH, gate_BTH = self.projections(self.norm(x_BTH)).chunk(3, dim=-1)
        # In half precision 1 - z is too coarse for a slow unit, so the recurrence keeps the precision of the state.
        update_BTH, candidate_BTH = update_BTH.to(carried_BH.dtype), candidate_BTH.to(carried_BH.dtype)
        # 1 - z is computed as the sigmoid of the negative, exact where z is near 1.
        h_BTH = scan(carried_BH, torch.sigmoid(-update_BTH), torch.sigmoid(update_BTH) * candidate_BTH)
        return h_BTH[:, -1], self.output(h_BTH * silu(gate_BTH))


class LinearRecurrenceState(NamedTuple):
    """Exponential means and the hidden state of every layer."""

    means: Float[Tensor, "B K D"]
    hidden: tuple[Float[Tensor, "B H"], ...]


class LinearRecurrence(Recurrent[LinearRecurrenceState]):
    """y = normalize(trunk + W h), with W zero at the start and h from residual blocks of minGRU and feed-forward.

    Args:
        centre: mean of the training rows, [D].
        decay: decay of the exponential mean that the untrained model equals.
        hidden: width of the blocks.
        layers: number of blocks.
        dropout: on content and on both parts of every block.
    """

    def __init__(
        self, centre: Float[Tensor, " D"], decay: float, hidden: int = 512, layers: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.dim = len(centre)
        self.trunk = Trunk(centre, decay)
        self.dropout = nn.Dropout(dropout)
        self.content = nn.Linear(self.dim, hidden)
        self.recurrences = nn.ModuleList(MinGRU(hidden) for _ in range(layers))
        self.feed_forwards = nn.ModuleList(feed_forward(hidden, 2 * hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.residual = silent_linear(hidden, self.dim)

    def start(self, batch: int) -> LinearRecurrenceState:
        nothing = self.trunk.centre.new_zeros(batch, self.content.out_features)
        return LinearRecurrenceState(self.trunk.start(batch), (nothing,) * len(self.recurrences))

    def run(
        self, state: LinearRecurrenceState, x_BTD: Float[Tensor, "B T D"]
    ) -> tuple[LinearRecurrenceState, Float[Tensor, "B T D"]]:
        means, centred_BTD, means_BTKD = self.trunk.read(state.means, x_BTD)
        # Unit rows have entries near 1/sqrt(D); the blocks want them near 1.
        h_BTH = self.content(self.dropout(centred_BTD * self.dim**0.5))
        hidden: list[Tensor] = []
        for recurrence, feed, carried in zip(self.recurrences, self.feed_forwards, state.hidden, strict=True):
            after, answer_BTH = recurrence(carried, h_BTH)
            h_BTH = h_BTH + self.dropout(answer_BTH)
            h_BTH = h_BTH + feed(h_BTH)
            hidden.append(after)
        residual_BTD = self.residual(self.norm(h_BTH))
        return LinearRecurrenceState(means, tuple(hidden)), self.trunk.finish(self.trunk.mix(means_BTKD), residual_BTD)
