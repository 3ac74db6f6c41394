"""The memory-augmented GRU: learned slots for all texts, a working memory of the passage, and a GRU that gates both."""

# Axes: B passages, T positions, D width, H hidden, K means, N slots, E address width, C candidates, V vectors mixed, R heads,
# P rows held.

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from nextvec.kernels.weights import WeightFormat
from nextvec.models.attribution import Attribution
from nextvec.models.packed_layers import PackedChain, slot_layers
from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk
from nextvec.models.working_memory import Held, WorkingMemory

CONTENT = 32  # dimensions of the content that the GRU reads: few, because full-rank projections overfit at these data sizes


class Slots(nn.Module):
    """A long-term memory of N learned slots, read by content: softmax(s cos(query, keys)) values.

    Sharpness s, keys and values are trained. Values start at 0, so an untrained memory adds nothing.
    """

    def __init__(self, source: int, dim: int, count: int, width: int = 64) -> None:
        super().__init__()
        self.query = nn.Linear(source, width)
        self.keys = nn.Parameter(torch.randn(count, width))
        self.values = nn.Parameter(torch.zeros(count, dim))
        self.log_sharpness = nn.Parameter(torch.tensor(2.5))

    def forward(self, source_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        cosines = normalize(self.query(source_BTC), dim=-1) @ normalize(self.keys, dim=-1).T
        return (self.log_sharpness.exp() * cosines).softmax(-1) @ self.values

    def packed(self, form: WeightFormat) -> nn.Module:
        keys_NE = self.log_sharpness.exp() * normalize(self.keys, dim=-1)
        return PackedChain(slot_layers(self.query, keys_NE, self.values), form)


class MemoryGRUState(NamedTuple):
    """The state of one passage; its size is bounded, whatever the length of the passage."""

    means: Float[Tensor, "B K D"]
    hidden: Float[Tensor, "1 B H"]
    held: Held


class Read(NamedTuple):
    """A passage between the two halves of a run. ``after``: the state after it, except for the working memory."""

    after: MemoryGRUState
    centred: Float[Tensor, "B T D"]
    means: Float[Tensor, "B T K D"]
    content: Float[Tensor, "B T C"]


class MemoryGRU(Recurrent[MemoryGRUState]):
    """Trunk, working memory and learned slots, mixed by gates that a GRU sets at every position.

    Before training every gate and residual is neutral: the model is the
    centred exponential mean.

    Args:
        centre: mean of the training rows, [D].
        decay: of the exponential mean it starts as.
        hidden: width of the GRU.
        slots: learned vectors of the long-term memory, the same for all texts; 0 for no such memory.
        working: last vectors of the passage that the working memory holds; 0 for no working memory.
        dropout: on the content, the hidden state and the output of the slots.
    """

    vector_parameters = ("trunk.", "recall_weights")

    def __init__(
        self,
        centre: Float[Tensor, " D"],
        decay: float,
        hidden: int = 512,
        slots: int = 2048,
        working: int = 256,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.dim = len(centre)
        self.trunk = Trunk(centre, decay)
        self.content = nn.Linear(self.dim, CONTENT)
        self.cell = nn.GRU(self.trunk.num_features + CONTENT, hidden, batch_first=True)
        self.working = WorkingMemory(working) if working else None
        self.slots = Slots(hidden + CONTENT, self.dim, slots) if slots else None
        heads = WorkingMemory.HEADS if working else 0
        self.names_rows = self.working is not None
        self.gates = nn.Linear(hidden, self.trunk.num_means + heads)
        self.write = nn.Linear(hidden, 1)
        self.recall_weights = nn.Parameter(torch.zeros(heads, self.dim))
        self.dropout = nn.Dropout(dropout)
        # The content overfits most, so its dropout is higher.
        self.content_dropout = nn.Dropout(min(0.5, 2.5 * dropout))
        for layer in (self.gates, self.write):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def start(self, batch: int) -> MemoryGRUState:
        hidden = self.trunk.centre.new_zeros(1, batch, self.cell.hidden_size)
        held = (self.working or WorkingMemory(0).to(hidden)).start(batch, self.dim)
        return MemoryGRUState(self.trunk.start(batch), hidden, held)

    def run(self, state: MemoryGRUState, x_BTD: Float[Tensor, "B T D"]) -> tuple[MemoryGRUState, Float[Tensor, "B T D"]]:
        read, h_BTH = self.read(state, x_BTD)
        return self.answer(read, h_BTH)

    def read(self, state: MemoryGRUState, x_BTD: Float[Tensor, "B T D"]) -> tuple[Read, Float[Tensor, "B T H"]]:
        """The first half of a run: the hidden states of the GRU, and the other inputs of the second half."""
        means, centred_BTD, means_BTKD = self.trunk.read(state.means, x_BTD)
        content_BTC = self.content(self.content_dropout(centred_BTD * self.dim**0.5))
        features_BTF = self.trunk.features(centred_BTD, means_BTKD)
        h_BTH, hidden = self.cell(torch.cat([features_BTF, content_BTC], dim=-1), state.hidden.contiguous())
        return Read(MemoryGRUState(means, hidden, state.held), centred_BTD, means_BTKD, content_BTC), h_BTH

    def answer(
        self, read: Read, h_BTH: Float[Tensor, "B T H"], beside_BTD: Float[Tensor, "B T D"] | None = None
    ) -> tuple[MemoryGRUState, Float[Tensor, "B T D"]]:
        """The second half: the hidden states ``h`` set the gates and read both memories.

        Args:
            h_BTH: of the GRU, or of another module that has changed them.
            beside_BTD: added to the mixture of means.
        """
        h_BTH = self.dropout(h_BTH)
        gates = 1 + self.gates(h_BTH)
        mixed_BTD = self.trunk.mix(read.means, gates[..., : self.trunk.num_means])
        held = read.after.held
        if self.working is not None:
            written_BT = logsigmoid(4 + self.write(h_BTH)[..., 0])  # open at the start
            held, recalled_BTRD = self.working(held, normalize(read.centred, dim=-1), written_BT)
            mixed_BTD = mixed_BTD + (self._recall_weights(gates) * recalled_BTRD).sum(2)
        if beside_BTD is not None:
            mixed_BTD = mixed_BTD + beside_BTD
        residual_BTD = self._residual(h_BTH, read.content, mixed_BTD)
        return read.after._replace(held=held), self.trunk.finish(mixed_BTD, residual_BTD)

    def attribution(self, state: MemoryGRUState, mapped_CE: Float[Tensor, "C D"]) -> Attribution:
        """See :class:`~nextvec.models.attribution.Attribution`; the constants of the trunk and the slots are learned."""
        if self.working is None:
            return super().attribution(state, mapped_CE)
        h_BTH, rows_PD = state.hidden.transpose(0, 1), state.held.rows[0]
        gates = 1 + self.gates(h_BTH)
        recall_RP = self.working.row_weights(state.held)[0]
        recall_weights_RD = self._recall_weights(gates)[0, 0]
        mixed_BTD = self.trunk.mix(state.means[:, None], gates[..., : self.trunk.num_means])
        mixed_BTD = mixed_BTD + (recall_weights_RD * (recall_RP @ rows_PD)).sum(0)
        # The means mix centred rows, whose lengths the memory does not hold.
        lengths_P = self.trunk.lengths(rows_PD)
        content_BTC = self.content((lengths_P[-1] * rows_PD[-1] * self.dim**0.5)[None, None])
        residual_BTD = self._residual(h_BTH, content_BTC, mixed_BTD)
        linear = self.trunk.linear(mixed_BTD[0, 0], residual_BTD[0, 0])
        weights_VD = torch.cat([gates[0, 0, : self.trunk.num_means, None] * self.trunk.weights, recall_weights_RD])
        shares_VP = torch.cat([self.trunk.means.row_weights(len(rows_PD)) * lengths_P, recall_RP])
        products_CVP = (mapped_CE * linear.scale)[:, None] * weights_VD @ rows_PD.T
        return Attribution((products_CVP * shares_VP).sum(1), mapped_CE @ linear.constant)

    def _recall_weights(self, gates: Float[Tensor, "B T _"]) -> Float[Tensor, "B T R D"]:
        """The weights of the recalled vectors in the mixture, in each dimension."""
        return gates[..., self.trunk.num_means :, None] * self.recall_weights

    def _residual(
        self, h_BTH: Float[Tensor, "B T H"], content_BTC: Float[Tensor, "B T C"], mixed_BTD: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """What the slots add to the direction of the mixture."""
        if self.slots is None:
            return torch.zeros_like(mixed_BTD)
        return self.dropout(self.slots(torch.cat([h_BTH, content_BTC], dim=-1)))
