"""A local GRU that reads chunks, and a global GRU that reads their summaries."""

# Axes: B passages, T positions, D width, H hidden, K means, N chunks, L positions of one chunk, C = 2 H.

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nextvec.models.layers import silent_linear
from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk


class Reading(NamedTuple):
    """The states of the two GRUs, and how many vectors of the current chunk were read.

    All passages of a batch begin together, so they share one count.
    """

    local: Float[Tensor, "layers B H"]
    whole: Float[Tensor, "layers B H"]
    num_read: int


class HierarchicalState(NamedTuple):
    """Exponential means, and the states of the chunks' GRUs."""

    means: Float[Tensor, "B K D"]
    reading: Reading


class Hierarchical(Recurrent[HierarchicalState]):
    """y = normalize(trunk + W [local; global]), with W zero at the start.

    Chunks are counted from the start of the passage (5 x 200 for 1000). The state of the local GRU is reset at the start of
    each chunk. Its state at the end of a chunk is the summary of the chunk. The global GRU reads the summaries of finished
    chunks. All whole chunks of a passage are computed as one batch, so 1000 vectors take as long as 200.

    Args:
        centre: mean of the training rows, [D].
        decay: of the exponential mean it starts as.
        hidden: width of both GRUs.
        layers: of each GRU.
        dropout: on content and hidden states.
        chunk: vectors in one chunk.
    """

    def __init__(
        self,
        centre: Float[Tensor, " D"],
        decay: float,
        hidden: int = 512,
        layers: int = 1,
        dropout: float = 0.2,
        chunk: int = 200,
    ) -> None:
        super().__init__()
        self.dim = len(centre)
        self.chunk = chunk
        self.trunk = Trunk(centre, decay)
        self.dropout = nn.Dropout(dropout)
        self.local = nn.GRU(self.dim, hidden, layers, batch_first=True)
        self.whole = nn.GRU(hidden, hidden, layers, batch_first=True)
        self.residual = silent_linear(2 * hidden, self.dim)

    def start(self, batch: int) -> HierarchicalState:
        return HierarchicalState(self.trunk.start(batch), Reading(self._nothing(batch), self._nothing(batch), 0))

    def run(self, state: HierarchicalState, x_BTD: Float[Tensor, "B T D"]) -> tuple[HierarchicalState, Float[Tensor, "B T D"]]:
        means, centred_BTD, means_BTKD = self.trunk.read(state.means, x_BTD)
        # Unit rows have entries near 1/sqrt(D); the cells want them near 1.
        reading, h_BTC = self._read(state.reading, self.dropout(centred_BTD * self.dim**0.5))
        return HierarchicalState(means, reading), self._finish(means_BTKD, h_BTC)

    @property
    def window_length(self) -> int:
        return self.chunk

    def traceable(self) -> Recurrent[Any]:
        return Unbranched(self)

    def _nothing(self, batch: int) -> Float[Tensor, "layers B H"]:
        return self.trunk.centre.new_zeros(self.local.num_layers, batch, self.local.hidden_size)

    def _finish(self, means_BTKD: Float[Tensor, "B T K D"], h_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        return self.trunk.finish(self.trunk.mix(means_BTKD), self.residual(self.dropout(h_BTC)))

    def _read(self, reading: Reading, u_BTD: Float[Tensor, "B T D"]) -> tuple[Reading, Float[Tensor, "B T C"]]:
        """Read the rest of the current chunk, then all whole chunks as one batch, then the start of the next chunk."""
        length = u_BTD.shape[1]
        rest = min(length, -reading.num_read % self.chunk)
        last = (length - rest) % self.chunk
        parts: list[Tensor] = []
        for part_BTD, read in zip(
            u_BTD.split([rest, length - rest - last, last], dim=1),
            (self._read_part, self._read_whole, self._read_part),
            strict=True,
        ):
            if part_BTD.shape[1]:
                reading, h_BTC = read(reading, part_BTD)
                parts.append(h_BTC)
        return reading, torch.cat(parts, dim=1)

    def _read_part(self, reading: Reading, u_BTD: Float[Tensor, "B T D"]) -> tuple[Reading, Float[Tensor, "B T C"]]:
        """Continue in the current chunk, at most to its end."""
        h_BTH, local = self.local(u_BTD, reading.local.contiguous())
        outlook_BTH = reading.whole[-1][:, None].expand_as(h_BTH)
        count = reading.num_read + u_BTD.shape[1]
        if count == self.chunk:
            _, whole = self.whole(h_BTH[:, -1:], reading.whole.contiguous())
            after = Reading(self._nothing(len(u_BTD)), whole, 0)
        else:
            after = Reading(local, reading.whole, count)
        return after, torch.cat([h_BTH, outlook_BTH], dim=-1)

    def _read_whole(self, reading: Reading, u_BTD: Float[Tensor, "B T D"]) -> tuple[Reading, Float[Tensor, "B T C"]]:
        """Read whole chunks as one batch; then the global GRU takes one step per chunk."""
        batch, chunks = len(u_BTD), u_BTD.shape[1] // self.chunk
        u_MLD = u_BTD.reshape(batch * chunks, self.chunk, self.dim)
        h_MLH, _ = self.local(u_MLD, self._nothing(batch * chunks))
        h_BNLH = h_MLH.unflatten(0, (batch, chunks))
        whole, outlook_BNH = self._outlook(reading.whole, h_BNLH[:, :, -1])
        h_BNLC = torch.cat([h_BNLH, outlook_BNH[:, :, None].expand_as(h_BNLH)], dim=-1)
        return Reading(reading.local, whole, 0), h_BNLC.flatten(1, 2)

    def _outlook(
        self, whole: Float[Tensor, "layers B H"], summaries_BNH: Float[Tensor, "B N H"]
    ) -> tuple[Float[Tensor, "layers B H"], Float[Tensor, "B N H"]]:
        """The state of the global GRU after these chunks, and its output before each of them."""
        after_BNH, last = self.whole(summaries_BNH, whole.contiguous())
        return last, torch.cat([whole[-1][:, None], after_BNH[:, :-1]], dim=1)


class UnbranchedState(NamedTuple):
    """Exponential means, states of the two GRUs, and the number of vectors that each passage has read of its chunk."""

    means: Float[Tensor, "B K D"]
    local: Float[Tensor, "layers B H"]
    whole: Float[Tensor, "layers B H"]
    num_read: Int64[Tensor, " B"]


class Unbranched(Recurrent[UnbranchedState]):
    """A :class:`Hierarchical` model that reads one vector at a time, without branches at the end of a chunk.

    The global GRU computes a step after every vector. Its result is selected
    by value: it is kept where a chunk has ended and dropped elsewhere.
    """

    run_length = 1

    def __init__(self, model: Hierarchical) -> None:
        super().__init__()
        self.dim = model.dim
        self.model = model

    @property
    def window_length(self) -> int:
        return self.model.window_length

    def start(self, batch: int) -> UnbranchedState:
        means, reading = self.model.start(batch)
        return UnbranchedState(means, reading.local, reading.whole, torch.zeros(batch, dtype=torch.int64))

    def run(self, state: UnbranchedState, x_BTD: Float[Tensor, "B 1 D"]) -> tuple[UnbranchedState, Float[Tensor, "B 1 D"]]:
        model = self.model
        means, centred_BTD, means_BTKD = model.trunk.read(state.means, x_BTD)
        h_BTH, local = model.local(centred_BTD * self.dim**0.5, state.local)
        _, whole = model.whole(h_BTH, state.whole)
        residual_BTD = model.residual(torch.cat([h_BTH, state.whole[-1][:, None]], dim=-1))
        num_read = state.num_read + 1
        ended_B = num_read == model.chunk
        after = UnbranchedState(
            means,
            torch.where(ended_B[:, None], torch.zeros_like(local), local),
            torch.where(ended_B[:, None], whole, state.whole),
            torch.where(ended_B, torch.zeros_like(num_read), num_read),
        )
        return after, model.trunk.finish(model.trunk.mix(means_BTKD), residual_BTD)
