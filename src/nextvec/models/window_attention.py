"""Causal attention over a bounded window. The keys and values of the window are the state."""

# Axes: B passages, T positions, Q positions of one block, W held, P = W + Q places, N heads, E keys, F values.

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nextvec.kernels import steps
from nextvec.kernels.weights import WeightFormat

BLOCK = 256


class Window(NamedTuple):
    """The last keys and values, at most one less than the size of the window, and which places are filled.

    A place is not filled only if passages of different lengths share a batch.
    """

    keys: Float[Tensor, "B W E"]
    values: Float[Tensor, "B W F"]
    filled: Bool[Tensor, "B W"]


class WindowAttention(nn.Module):
    """Each position attends to itself and to the ``size - 1`` positions before it. The module has no parameters.

    Positions are relative: a score is reduced by ``slope`` per position of distance (ALiBi, Press et al. 2022, arXiv
    2108.12409). Positions have no numbers, so a passage may be longer than the training passages, and the state needs no
    update of positions, as rotary keys would. Without ``fading`` the attention does not depend on the order in the window.

    A passage is computed in blocks of queries, so T positions need at most T x (size + 256) scores and not T x T.

    Args:
        size: positions a query can see, itself included.
        heads: that keys and values are split into.
        fading: whether scores fade with distance: slopes from 1/2 at most to 1/256, geometric over the heads.
        dropout: on the attention weights.
    """

    def __init__(self, size: int, heads: int = 1, fading: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.heads = heads
        self.dropout = dropout
        slopes_N = torch.exp2(-8 * torch.arange(1, heads + 1) / heads)
        self.slopes: Tensor
        self.register_buffer("slopes", slopes_N if fading else torch.zeros(heads), persistent=False)

    def start(self, batch: int, keys: int, values: int) -> Window:
        """The empty window, for keys and values of these widths."""
        nothing = torch.zeros(batch, 0, dtype=torch.bool, device=self.slopes.device)
        return Window(self.slopes.new_zeros(batch, 0, keys), self.slopes.new_zeros(batch, 0, values), nothing)

    def forward(
        self,
        held: Window,
        queries_BTE: Float[Tensor, "B T E"],
        keys_BTE: Float[Tensor, "B T E"],
        values_BTF: Float[Tensor, "B T F"],
    ) -> tuple[Window, Float[Tensor, "B T F"]]:
        """The window after the passage, and the attended value at every position."""
        already = held.keys.shape[1]
        filled = torch.cat([held.filled, held.filled.new_ones(keys_BTE.shape[:2])], dim=1)
        places = Window(torch.cat([held.keys, keys_BTE], dim=1), torch.cat([held.values, values_BTF], dim=1), filled)
        attended: list[Tensor] = []
        for start in range(0, queries_BTE.shape[1], BLOCK):
            block_BQE = queries_BTE[:, start : start + BLOCK]
            end = already + start + block_BQE.shape[1]
            seen = _between(places, already + start + 1 - self.size, end)
            attended.append(self._attend(block_BQE, seen, carried=start + 1 - self.size < 0 < already))
        return _between(places, filled.shape[1] + 1 - self.size, filled.shape[1]), torch.cat(attended, dim=1)

    def _attend(self, queries_BQE: Float[Tensor, "B Q E"], seen: Window, carried: bool) -> Float[Tensor, "B Q F"]:
        """One block of queries; ``carried`` says that it can see places which came with the state."""
        bias = self._bias(queries_BQE.shape[1], seen.filled.shape[1])[None]
        if carried:  # in a fresh passage every place is filled, and one bias serves the whole batch
            bias = bias.masked_fill(~seen.filled[:, None, None], -torch.inf)
        attended = scaled_dot_product_attention(
            self._split(queries_BQE),
            self._split(seen.keys),
            self._split(seen.values),
            attn_mask=bias.to(queries_BQE.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return attended.transpose(1, 2).flatten(2)

    def _bias(self, queries: int, places: int) -> Float[Tensor, "N Q P"]:
        place_P = torch.arange(places, device=self.slopes.device)
        lag_QP = place_P[-queries:, None] - place_P
        visible_QP = (lag_QP >= 0) & (lag_QP < self.size)
        return (-self.slopes[:, None, None] * lag_QP).masked_fill(~visible_QP, -torch.inf)

    def _split(self, wide_BPE: Float[Tensor, "B P E"]) -> Float[Tensor, "B N P e"]:
        return wide_BPE.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def packed(self, form: WeightFormat) -> nn.Module:
        return PackedWindowAttention(self) if steps.compiled() else self


def _between(places: Window, start: int, stop: int) -> Window:
    span = slice(max(0, start), stop)
    return Window(places.keys[:, span], places.values[:, span], places.filled[:, span])


class PackedWindowAttention(WindowAttention):
    """Window attention whose step is one compiled call; torch computes longer passages."""

    def __init__(self, source: WindowAttention) -> None:
        super().__init__(source.size, source.heads)
        self.slopes = source.slopes

    def forward(
        self,
        held: Window,
        queries_BTE: Float[Tensor, "B T E"],
        keys_BTE: Float[Tensor, "B T E"],
        values_BTF: Float[Tensor, "B T F"],
    ) -> tuple[Window, Float[Tensor, "B T F"]]:
        if queries_BTE.shape[1] != 1:
            return super().forward(held, queries_BTE, keys_BTE, values_BTF)
        filled = torch.cat([held.filled, held.filled.new_ones(len(queries_BTE), 1)], dim=1)
        places = Window(torch.cat([held.keys, keys_BTE], dim=1), torch.cat([held.values, values_BTF], dim=1), filled)
        attended_BF = steps.attend(queries_BTE[:, 0], *places, self.slopes)
        kept = slice(max(0, filled.shape[1] + 1 - self.size), None)
        return Window(places.keys[:, kept], places.values[:, kept], filled[:, kept]), attended_BF[:, None]
