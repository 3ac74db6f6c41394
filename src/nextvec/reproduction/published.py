"""The predecessor's memory-augmented GRU, as its code had it, kept only to be measured against.

11,292,160 trainable parameters at its published size (768 wide, hidden 512, 4
layers) and a buffer of 2048 slots that no gradient reaches. Its code read the
memory twice (once with the constant query 0, once with the last hidden state)
and wrote it inside ``forward``; here the second read happens at every
position, and writing is a method of its own, called between updates, so that
the laws hold.
"""

# Axes: B passages, T positions, D width, H hidden, N slots.

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from nextvec.kernels import steps
from nextvec.kernels.weights import WeightFormat
from nextvec.models.packed import pack_layers
from nextvec.models.packed_layers import PackedChain, PackedGRU, slot_layers
from nextvec.models.protocol import Recurrent

KEPT = 0.9  # share of the old memory that survives a write


class PublishedMemoryGRU(Recurrent[Tensor]):
    """y = normalize(x + u), u the unit output of a GRU that sees one constant memory read."""

    def __init__(self, dim: int = 768, hidden: int = 512, layers: int = 4, slots: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.recurrence = nn.GRU(2 * dim, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.query = nn.Linear(hidden, dim)
        self.write_gate = nn.Linear(hidden, slots)
        self.fusion = nn.Sequential(nn.Linear(hidden + dim, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout))
        self.output = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * hidden, dim))
        self.memory: Tensor
        self.register_buffer("memory", torch.randn(slots, dim) * 0.02)

    def start(self, batch: int) -> Tensor:
        cell = self.recurrence
        return self.memory.new_zeros(cell.num_layers, batch, cell.hidden_size)

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T D"]]:
        after, h_BTH = self._recur(state, x_BTD)
        return after, normalize(x_BTD + self._delta(h_BTH), dim=-1)

    def last(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        return normalize(x_BTD[:, -1] + self.difference(x_BTD), dim=-1)

    def difference(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """u after a whole passage: what the network itself puts out, of unit length."""
        _, h_BTH = self._recur(self.start(len(x_BTD)), x_BTD)
        return self._delta(h_BTH[:, -1:])[:, 0]

    @torch.no_grad()
    def after_update(self, x_BTD: Float[Tensor, "B T D"]) -> None:
        """Write the memory as published, without gradient.

        memory <- 0.9 memory + 0.1 outer(mean write gate, mean output), means over the batch.
        """
        _, h_BTH = self._recur(self.start(len(x_BTD)), x_BTD)
        address_N = self.write_gate(h_BTH[:, -1]).softmax(-1).mean(0)
        content_D = self._delta(h_BTH[:, -1:]).mean((0, 1))
        self.memory.mul_(KEPT).add_((1 - KEPT) * torch.outer(address_N, content_D))

    def _recur(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T H"]]:
        constant_D = self._read(self.query.bias)
        seen = torch.cat([self.norm(x_BTD), constant_D.expand_as(x_BTD)], dim=-1)
        h_BTH, after = self.recurrence(seen, state.contiguous())
        return after, h_BTH

    def _delta(self, h_BTH: Float[Tensor, "B T H"]) -> Float[Tensor, "B T D"]:
        read_BTD = self._read(self.query(h_BTH))
        return normalize(self.output(self.fusion(torch.cat([h_BTH, read_BTD], dim=-1))), dim=-1)

    def _read(self, query: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
        # No temperature: over 2048 slots the weights stay within e**2 of uniform, so this is close to a constant.
        return (normalize(query, dim=-1) @ normalize(self.memory, dim=-1).T).softmax(-1) @ self.memory

    def packed(self, form: WeightFormat) -> nn.Module:
        return PackedPublishedMemoryGRU(self, form)


class PackedPublishedMemoryGRU(Recurrent[Tensor]):
    """A :class:`PublishedMemoryGRU` with packed weights, whose memory is fixed.

    The read with the constant query then returns a constant, so its share of
    the first layer's product is added to that layer's bias.
    """

    def __init__(self, model: PublishedMemoryGRU, form: WeightFormat) -> None:
        super().__init__()
        self.dim = model.dim
        self.ones = torch.ones(model.dim)
        self.norm = deepcopy(model.norm)
        self.memory = PackedChain(slot_layers(model.query, normalize(model.memory, dim=-1), model.memory), form)
        self.recurrence = PackedGRU(_with_constant(model), form)
        self.fusion, self.output = deepcopy(model.fusion), deepcopy(model.output)
        pack_layers(self, form)

    def start(self, batch: int) -> Tensor:
        return torch.zeros(self.recurrence.num_layers, batch, self.recurrence.hidden_size)

    def run(self, state: Tensor, x_BTD: Float[Tensor, "B T D"]) -> tuple[Tensor, Float[Tensor, "B T D"]]:
        h_BTH, after = self.recurrence(self.norm(x_BTD), state)
        return after, self._predict(x_BTD, h_BTH)

    def last(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        h_BTH, _ = self.recurrence(self.norm(x_BTD), self.start(len(x_BTD)))
        return self._predict(x_BTD[:, -1:], h_BTH[:, -1:])[:, 0]

    def _predict(self, x_BTD: Float[Tensor, "B T D"], h_BTH: Float[Tensor, "B T H"]) -> Float[Tensor, "B T D"]:
        delta_BTD = self.output(self.fusion(torch.cat([h_BTH, self.memory(h_BTH)], dim=-1)))
        if steps.compiled():
            return steps.finish(delta_BTD, x_BTD, self.ones)
        return normalize(x_BTD + normalize(delta_BTD, dim=-1), dim=-1)


@torch.no_grad()
def _with_constant(model: PublishedMemoryGRU) -> nn.GRU:
    """The model's GRU, which reads the vectors only: the constant half of its input is part of the bias."""
    source, dim = model.recurrence, model.dim
    shares_M = (normalize(model.memory, dim=-1) @ normalize(model.query.bias, dim=-1)).softmax(-1)
    alone = nn.GRU(dim, source.hidden_size, source.num_layers, batch_first=True)
    state = source.state_dict()
    constant_G = state["weight_ih_l0"][:, dim:] @ (shares_M @ model.memory)
    state.update(weight_ih_l0=state["weight_ih_l0"][:, :dim], bias_ih_l0=state["bias_ih_l0"] + constant_G)
    alone.load_state_dict(state)
    return alone
