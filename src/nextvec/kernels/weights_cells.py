"""GRU and LSTM layers of packed weights."""

# Axes: B passages, T positions, K input width, H hidden, G gates times H, L layers.

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from nextvec.errors import DataError
from nextvec.kernels.weights import Matrix, check_vectors, product
from nextvec.kernels.weights_library import CellC, Compiled, check_done, loaded


@dataclass(frozen=True, eq=False)
class Cell:
    """The weights of one layer of a GRU (three gates) or an LSTM (four), in torch's order."""

    input: Matrix
    hidden: Matrix
    input_bias: Float32[Tensor, " G"]
    hidden_bias: Float32[Tensor, " G"]

    @cached_property
    def c(self) -> CellC:
        return CellC(self.input.c, self.hidden.c, self.input_bias.data_ptr(), self.hidden_bias.data_ptr())

    def widened(self) -> list[Tensor]:
        return [self.input.widened(), self.hidden.widened(), self.input_bias, self.hidden_bias]

    def __reduce__(self) -> tuple[Any, ...]:
        return Cell, (self.input, self.hidden, self.input_bias, self.hidden_bias)


def gru(
    x_BTK: Float[Tensor, "B T K"], hidden_LBH: Float[Tensor, "L B H"], cells: Sequence[Cell]
) -> tuple[Float32[Tensor, "B T H"], Float32[Tensor, "L B H"]]:
    """The outputs of the last of L layers, and the states after the last position; as ``torch.nn.GRU``, batch first.

    Raises:
        SettingsError: vectors that are not float32 on the CPU, or that need a gradient.
        DataError: vectors of another width, or another number of states.
    """
    compiled = _ready(x_BTK, hidden_LBH, cells)
    if compiled is None:
        flat = [part for cell in cells for part in cell.widened()]
        return torch.gru(x_BTK, hidden_LBH, flat, True, len(cells), 0.0, False, False, True)
    return _run(compiled, x_BTK, hidden_LBH, None, cells)


def lstm(
    x_BTK: Float[Tensor, "B T K"], hidden_LBH: Float[Tensor, "L B H"], cell_LBH: Float[Tensor, "L B H"], cells: Sequence[Cell]
) -> tuple[Float32[Tensor, "B T H"], Float32[Tensor, "L B H"], Float32[Tensor, "L B H"]]:
    """The outputs of the last of L layers, and the states and cells after the last position; as ``torch.nn.LSTM``, batch first.

    Raises:
        SettingsError: vectors that are not float32 on the CPU, or that need a gradient.
        DataError: vectors of another width, or another number of states.
    """
    check_vectors(cell_LBH, cells[0].hidden.width)
    compiled = _ready(x_BTK, hidden_LBH, cells)
    if compiled is None:
        flat = [part for cell in cells for part in cell.widened()]
        return torch.lstm(x_BTK, (hidden_LBH, cell_LBH), flat, True, len(cells), 0.0, False, False, True)
    after_LBH = cell_LBH.clone(memory_format=torch.contiguous_format)
    return *_run(compiled, x_BTK, hidden_LBH, after_LBH, cells), after_LBH


def _run(
    compiled: Compiled, x_BTK: Tensor, hidden_LBH: Tensor, kept_LBH: Tensor | None, cells: Sequence[Cell]
) -> tuple[Tensor, Tensor]:
    batch, length, _ = x_BTK.shape
    hidden_LBH = hidden_LBH.contiguous()
    after_LBH = torch.empty_like(hidden_LBH)
    size = hidden_LBH[0].numel() * 4
    many = batch * length > compiled.most
    for n, cell in enumerate(cells):
        read = product(x_BTK, cell.input, cell.input_bias) if many else x_BTK.contiguous()
        x, projected = (None, read.data_ptr()) if many else (read.data_ptr(), None)
        kept = None if kept_LBH is None else kept_LBH.data_ptr() + n * size
        x_BTK = torch.empty(batch, length, cell.hidden.width)
        before, after, out = hidden_LBH.data_ptr() + n * size, after_LBH.data_ptr() + n * size, x_BTK.data_ptr()
        check_done(compiled.run(cell.c, x, projected, batch, length, before, kept, after, out))
    return x_BTK, after_LBH


def _ready(x_BTK: Tensor, hidden_LBH: Tensor, cells: Sequence[Cell]) -> Compiled | None:
    """The compiled functions; None where torch runs these cells."""
    check_vectors(x_BTK, cells[0].input.width)
    check_vectors(hidden_LBH, cells[0].hidden.width)
    if len(hidden_LBH) != len(cells) or hidden_LBH.shape[1] != len(x_BTK):
        raise DataError(f"states {list(hidden_LBH.shape)} do not match {len(cells)} layers and passages {list(x_BTK.shape)}")
    compiled = loaded()
    return compiled if compiled is not None and len(x_BTK) <= compiled.most else None
