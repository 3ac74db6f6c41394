"""The working memory of one passage: attention over its last vectors.

Each new vector is compared with the last W vectors. One head recalls the vectors *after* the most similar ones ("followed",
the induction head of Olsson et al. 2022 on vectors). The other recalls the most similar vectors themselves ("resembled").
No parameter depends on the content, so the memory generalises to unseen texts. It is part of the state.
"""

# Axes: B passages, T positions, Q positions of one block, W memory, P = W + Q window, D width.

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nextvec.kernels import steps
from nextvec.kernels.weights import WeightFormat

BLOCK = 256
ABSENT = -1e9


class Held(NamedTuple):
    """The last rows (unit length, W at most), how firmly each was written (log gate), and which places are filled.

    A place is unfilled only where passages of different lengths share a batch.
    """

    rows: Float[Tensor, "B W D"]
    written: Float[Tensor, "B W"]
    filled: Bool[Tensor, "B W"]


class WorkingMemory(nn.Module):
    """Attention over the last ``size`` vectors with a learned sharpness, fading, write gate and a sink.

    Both the time and the memory of a step are bounded by ``size``; training
    over T positions needs T x (size + 256) scores, not T x T.
    """

    HEADS = 2

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        # Training on documentation and on novels converged near these values.
        self.log_sharpness = nn.Parameter(torch.full((self.HEADS,), 2.5))
        self.sink = nn.Parameter(torch.full((self.HEADS,), 8.0))
        self.log_fading = nn.Parameter(torch.full((self.HEADS,), -4.0))

    def start(self, batch: int, dim: int) -> Held:
        like = self.sink
        nothing = torch.zeros(batch, 0, dtype=torch.bool, device=like.device)
        return Held(like.new_zeros(batch, 0, dim), like.new_zeros(batch, 0), nothing)

    def forward(
        self, held: Held, unit_BTD: Float[Tensor, "B T D"], written_BT: Float[Tensor, "B T"]
    ) -> tuple[Held, Float[Tensor, "B T 2 D"]]:
        """Recall at every position; a head that finds no similar vector gives its weight to the sink and returns almost 0."""
        rows = torch.cat([held.rows, unit_BTD], dim=1)
        written = torch.cat([held.written, written_BT], dim=1)
        filled = torch.cat([held.filled, torch.ones_like(written_BT, dtype=torch.bool)], dim=1)
        already = held.rows.shape[1]
        recalled: list[Tensor] = []
        for start in range(0, unit_BTD.shape[1], BLOCK):
            stop = min(start + BLOCK, unit_BTD.shape[1])
            window = slice(max(0, already + start - self.size), already + stop)
            recalled.append(self._recall(unit_BTD[:, start:stop], rows[:, window], written[:, window], filled[:, window]))
        last = slice(max(0, rows.shape[1] - self.size), None)
        return Held(rows[:, last], written[:, last], filled[:, last]), torch.cat(recalled, dim=1)

    def row_weights(self, held: Held) -> Float[Tensor, "B 2 W"]:
        """The weights of the held rows in the recall at the newest of them.

        They equal those of the step that read it, as long as no row has left the memory.
        """
        heads = self._weights(held.rows[:, -1:], held.rows, held.written, held.filled)
        return torch.cat(heads, dim=1)

    def _recall(
        self,
        queries_BQD: Float[Tensor, "B Q D"],
        rows_BPD: Float[Tensor, "B P D"],
        written_BP: Float[Tensor, "B P"],
        filled_BP: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B Q 2 D"]:
        heads = self._weights(queries_BQD, rows_BPD, written_BP, filled_BP)
        return torch.stack([weights_BQP @ rows_BPD for weights_BQP in heads], dim=2)

    def _weights(
        self,
        queries_BQD: Float[Tensor, "B Q D"],
        rows_BPD: Float[Tensor, "B P D"],
        written_BP: Float[Tensor, "B P"],
        filled_BP: Bool[Tensor, "B P"],
    ) -> list[Float[Tensor, "B Q P"]]:
        """The weights of the rows in both heads; the sink has the rest."""
        alike_BQP = queries_BQD @ rows_BPD.transpose(1, 2)
        # The key of a value is the row one place earlier.
        before_BQP = alike_BQP.roll(1, dims=2)
        filled_before_BP = filled_BP.roll(1, dims=1)
        filled_before_BP[:, 0] = False
        place_P = torch.arange(rows_BPD.shape[1], device=rows_BPD.device)
        lag_QP = place_P[-queries_BQD.shape[1] :, None] - place_P
        followed = (lag_QP >= 0) & (lag_QP < self.size) & filled_before_BP[:, None]
        resembled = (lag_QP >= 1) & (lag_QP <= self.size) & filled_BP[:, None]
        return [
            self._head(n, scores, allowed, lag_QP, written_BP)
            for n, (scores, allowed) in enumerate(((before_BQP, followed), (alike_BQP, resembled)))
        ]

    def _head(
        self,
        n: int,
        scores_BQP: Float[Tensor, "B Q P"],
        allowed_BQP: Bool[Tensor, "B Q P"],
        lag_QP: Tensor,
        written_BP: Float[Tensor, "B P"],
    ) -> Float[Tensor, "B Q P"]:
        fading = self.log_fading[n].exp() * lag_QP
        logits = self.log_sharpness[n].exp() * scores_BQP - fading + written_BP[:, None]
        logits = logits.masked_fill(~allowed_BQP, ABSENT)
        sink = self.sink[n].expand(*logits.shape[:2], 1)
        return torch.cat([logits, sink], dim=-1).softmax(-1)[..., :-1]

    def packed(self, form: WeightFormat) -> nn.Module:
        return PackedWorkingMemory(self) if steps.compiled() else self


class PackedWorkingMemory(WorkingMemory):
    """Working memory whose recall at a step is one compiled call; torch computes longer passages."""

    def __init__(self, source: WorkingMemory) -> None:
        super().__init__(source.size)
        self.load_state_dict(source.state_dict())
        self.recalling = (self.log_sharpness.exp(), self.log_fading.exp(), self.sink.detach())

    def _recall(
        self,
        queries_BQD: Float[Tensor, "B Q D"],
        rows_BPD: Float[Tensor, "B P D"],
        written_BP: Float[Tensor, "B P"],
        filled_BP: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B Q 2 D"]:
        if queries_BQD.shape[1] != 1:
            return super()._recall(queries_BQD, rows_BPD, written_BP, filled_BP)
        return steps.recall(queries_BQD[:, 0], rows_BPD, written_BP, filled_BP, self.recalling)[:, None]
