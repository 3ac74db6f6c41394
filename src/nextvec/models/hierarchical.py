"""A local GRU that reads chunks, a global GRU that reads their summaries, and a cache that reads no chunk twice."""

# Axes: B passages, T positions, D width, H hidden, K means, N chunks, L positions of one chunk, C = 2 H.

from collections import OrderedDict
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nextvec.errors import SettingsError
from nextvec.models.layers import silent_linear
from nextvec.models.protocol import Recurrent
from nextvec.models.trunk import Trunk


class Reading(NamedTuple):
    """Where the two GRUs stand, and how many vectors of the current chunk were read.

    A passage of a batch begins when the others do, so one count holds for all.
    """

    local: Float[Tensor, "layers B H"]
    whole: Float[Tensor, "layers B H"]
    num_read: int


class HierarchicalState(NamedTuple):
    """Exponential means, and the reading of chunks."""

    means: Float[Tensor, "B K D"]
    reading: Reading


class Hierarchical(Recurrent[HierarchicalState]):
    """y = normalize(trunk + W [local; global]), with W zero at the start.

    Chunks are counted from the start of the passage (5 x 200 for 1000). The
    local GRU begins anew at each of them, so what it ends with, the chunk's
    summary, depends on the chunk alone and can be kept (:class:`SummaryCache`).
    The global GRU reads the summaries of finished chunks. All whole chunks of
    a passage are computed as one batch, so 1000 vectors cost the time of 200.

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

    def summarise(self, x_NLD: Float[Tensor, "N L D"]) -> tuple[Float[Tensor, "N H"], Float[Tensor, "N K D"]]:
        """Of every chunk its summary, and its exponential means from nothing: all that later vectors need of it."""
        means_NKD, centred_NLD, _ = self.trunk.read(self.trunk.start(len(x_NLD)), x_NLD)
        h_NLH, _ = self.local(self.dropout(centred_NLD * self.dim**0.5), self._nothing(len(x_NLD)))
        return h_NLH[:, -1], means_NKD

    def resume(
        self, summaries_NH: Float[Tensor, "N H"], means_NKD: Float[Tensor, "N K D"]
    ) -> tuple[HierarchicalState, Float[Tensor, " D"]]:
        """The state and the prediction after N summarised chunks."""
        carried_KD = torch.zeros_like(means_NKD[0])
        for chunk_KD in means_NKD:
            carried_KD = chunk_KD + self.trunk.means.decays[:, None] ** self.chunk * carried_KD
        before, outlook_BNH = self._outlook(self._nothing(1), summaries_NH[None])
        h_C = torch.cat([summaries_NH[-1], outlook_BNH[0, -1]])
        y_BTD = self._finish(carried_KD[None, None], h_C[None, None])
        return HierarchicalState(carried_KD[None], Reading(self._nothing(1), before, 0)), y_BTD[0, 0]

    def _nothing(self, batch: int) -> Float[Tensor, "layers B H"]:
        return self.trunk.centre.new_zeros(self.local.num_layers, batch, self.local.hidden_size)

    def _finish(self, means_BTKD: Float[Tensor, "B T K D"], h_BTC: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        return self.trunk.finish(self.trunk.mix(means_BTKD), self.residual(self.dropout(h_BTC)))

    def _read(self, reading: Reading, u_BTD: Float[Tensor, "B T D"]) -> tuple[Reading, Float[Tensor, "B T C"]]:
        """What the current chunk still lacks, then all whole chunks at once, then what begins the next."""
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
        """Go on in the current chunk, to its end at most."""
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
        """Whole chunks, side by side in one batch; the global GRU then takes one step a chunk."""
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
        """The global GRU after these chunks, and what it told each of them: all before it, not itself."""
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


class Summary(NamedTuple):
    """What is kept of a chunk."""

    summary: Float[Tensor, " H"]
    means: Float[Tensor, "K D"]


class SummaryCache:
    """Predictions after whole contexts, reading no chunk twice.

    A summary is kept under the hash of its chunk's bytes and of the weights,
    so a changed chunk or a changed model is a miss, never a wrong answer.
    Appending a vector reads only the last, unfinished chunk again. Chunks are
    counted from the start of the context: one that loses its oldest vector has
    other chunks.

    Args:
        model: in ``eval`` mode; dropout would make summaries of chance.
        capacity: summaries kept; the least recently used goes first.

    ``hits`` and ``misses`` count whole chunks that were, and were not, found.
    """

    def __init__(self, model: Hierarchical, capacity: int = 4096) -> None:
        if capacity < 1:
            raise SettingsError(f"a cache of {capacity} summaries keeps nothing; capacity must be at least 1")
        self.model = model
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[bytes, Summary] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def predict(self, context_TD: Float[Tensor, "T D"]) -> Float[Tensor, " D"]:
        """The prediction after the context, ``model(context)[-1]`` to rounding."""
        if self.model.training:
            raise SettingsError("a model in training has no fixed summaries; call model.eval() first")
        whole = len(context_TD) // self.model.chunk * self.model.chunk
        rest_BTD = context_TD[None, whole:]
        if not whole:
            return self.model(rest_BTD)[0, -1]
        found = self._summaries(context_TD[:whole].unflatten(0, (-1, self.model.chunk)))
        state, y_D = self.model.resume(torch.stack([f.summary for f in found]), torch.stack([f.means for f in found]))
        return self.model.run(state, rest_BTD)[1][0, -1] if len(rest_BTD[0]) else y_D

    def _summaries(self, chunks_NLD: Float[Tensor, "N L D"]) -> list[Summary]:
        weights = self._weights()
        keys = [sha256(weights + _bytes(chunk_LD)).digest() for chunk_LD in chunks_NLD]
        # Of equal chunks the first stands for all.
        absent = {key: n for n, key in reversed(list(enumerate(keys))) if key not in self._kept}
        self.hits += len(keys) - len(absent)
        self.misses += len(absent)
        if absent:
            summaries_NH, means_NKD = self.model.summarise(chunks_NLD[list(absent.values())])
            for key, summary_H, means_KD in zip(absent, summaries_NH, means_NKD, strict=True):
                self._kept[key] = Summary(summary_H.clone(), means_KD.clone())  # a view would keep all positions alive
        found = [self._kept[key] for key in keys]
        for key in keys:
            self._kept.move_to_end(key)
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return found

    def _weights(self) -> bytes:
        """Of all that a summary depends on; hashed anew each time, because training changes weights in place."""
        digest = sha256()
        for part in (self.model.local, self.model.trunk):
            for tensor in part.state_dict().values():
                digest.update(_bytes(tensor))
        return digest.digest()


def _bytes(tensor: Tensor) -> bytes:
    """The type and the raw bytes, of any type: NumPy has no bfloat16."""
    raw = tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return str(tensor.dtype).encode() + raw
