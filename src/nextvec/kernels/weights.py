"""Matrices of packed weights, and their products with a few vectors.

A step of a model at batch 1 reads every weight once and uses it once, so its
time is the time of reading their bytes. Packing reduces the bytes and puts
them in the order in which they are read.

- ``float32``: 4 bytes a weight.
- ``bfloat16``: 2 bytes, rounded to nearest even: an error of at most 2^-9 of each weight.
- ``int8``: 1 byte, and a float32 scale per row (symmetric, per output channel):
  an error of at most 1/254 of the largest weight of the row.

Only weights are rounded. Vectors stay float32. For int8, where the processor
has VNNI, they become integers of 24 bits times a scale, which changes a sum by
at most ``6.1e-8 max|x| sum|w|``, no more than the summation of floats may.
"""

# Axes: K input width, N rows, P panels, R rows of some panels.

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor
from torch.nn.functional import linear, pad

from nextvec.errors import DataError, SettingsError
from nextvec.kernels.memory import aligned
from nextvec.kernels.weights_library import MatrixC, address, check_done, loaded

WeightFormat = Literal["float32", "bfloat16", "int8"]
FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)  # in the order of weights.h
PANEL = 64  # rows, as in weights.c
ZERO = 128  # the code of 0 in int8, as in weights.c
BLOCK = 16  # panels that are widened at once


@dataclass(frozen=True, eq=False)
class Matrix:
    """A packed matrix [N, K], in the order of weights.c.

    Attributes:
        codes: float32 [P, K, 64], bfloat16 [P, K, 2, 16, 2] or, of int8, uint8 [P, K / 4, 64, 4]: P panels of 64 rows.
        scales: [N] factors of int8 codes; else [0].
        rows, width: N and K.
    """

    codes: Shaped[Tensor, "P ..."]
    scales: Float32[Tensor, " _"]
    rows: int
    width: int

    @property
    def form(self) -> WeightFormat:
        forms: dict[torch.dtype, WeightFormat] = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "int8"}
        return forms[self.codes.dtype]

    def widened(self) -> Float32[Tensor, "N K"]:
        """The matrix that the codes stand for."""
        return _widened(self.codes, self.width)[: self.rows] * (self.scales[:, None] if len(self.scales) else 1)

    @cached_property
    def c(self) -> MatrixC:
        form = FORMATS.index(self.form)
        return MatrixC(self.codes.data_ptr(), self.scales.data_ptr(), self.rows, self.width, form)

    def __reduce__(self) -> tuple[Any, ...]:
        return Matrix, (
            self.codes,
            self.scales,
            self.rows,
            self.width,
        )  # without the addresses in `c`


def pack_matrix(matrix_NK: Float[Tensor, "N K"], form: WeightFormat) -> Matrix:
    """A matrix, rounded to a format and put in the order of weights.c.

    Raises:
        SettingsError: a format that does not exist.
        DataError: an empty matrix, or a number that is not finite.
    """
    if form not in FORMATS:
        raise SettingsError(f"weights {form!r}: choose {', '.join(FORMATS)}")
    rows, width = matrix_NK.shape
    values_NK = matrix_NK.detach().float().cpu()
    if not values_NK.numel() or not values_NK.isfinite().all():
        raise DataError(f"a matrix of shape {list(matrix_NK.shape)} is empty or not finite; its weights cannot be packed")
    scales, zero, quads = torch.empty(0), 0, 0
    if form == "int8":
        scales, zero, quads = (
            values_NK.abs().amax(1).clamp(min=1e-30) / 127,
            ZERO,
            -width % 4,
        )  # a row of zeros has no scale
        values_NK = (values_NK / scales[:, None]).round() + ZERO
    panels = pad(values_NK, (0, quads, 0, -rows % PANEL), value=zero).unflatten(0, (-1, PANEL))
    if form == "float32":
        codes = panels.transpose(1, 2)
    elif form == "bfloat16":
        codes = panels.transpose(1, 2).unflatten(2, (-1, 2, 16)).transpose(3, 4).bfloat16()
    else:
        codes = panels.unflatten(2, (-1, 4)).transpose(1, 2).to(torch.uint8)
    return Matrix(_placed(codes), scales, rows, width)


def product(
    x: Float[Tensor, "*shape K"], w: Matrix, bias_N: Float32[Tensor, " N"] | None = None
) -> Float32[Tensor, "*shape N"]:
    """x Wᵀ + bias.

    Raises:
        SettingsError: vectors that are not float32 on the CPU, or that need a gradient.
        DataError: vectors of another width.
    """
    check_vectors(x, w.width)
    compiled, count = loaded(), x.numel() // w.width
    if compiled is None or count > compiled.most:
        return _product_torch(x, w, bias_N)
    x = x.contiguous()
    y = torch.empty(*x.shape[:-1], w.rows)
    check_done(compiled.product(w.c, x.data_ptr(), count, address(bias_N), y.data_ptr()))
    return y


def check_vectors(x: Tensor, width: int) -> None:
    """
    Raises:
        SettingsError: vectors that are not float32 on the CPU, or that need a gradient.
        DataError: vectors of another width.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.requires_grad:
        what = f"{x.dtype} on {x.device}" + (", with a gradient" if x.requires_grad else "")
        raise SettingsError(f"packed weights multiply float32 on cpu, without gradients, not {what}")
    if x.shape[-1] != width:
        raise DataError(f"vectors of shape {list(x.shape)} for weights of width {width}")


def _product_torch(x: Tensor, w: Matrix, bias_N: Tensor | None) -> Tensor:
    """The product with weights that are widened block by block, because a whole matrix of floats would not fit the cache."""
    blocks: list[Tensor] = []
    for start in range(0, len(w.codes), BLOCK):
        rows = slice(start * PANEL, min((start + BLOCK) * PANEL, w.rows))
        wide = _widened(w.codes[start : start + BLOCK], w.width)[: rows.stop - rows.start]
        y = linear(x, wide)
        blocks.append(y * w.scales[rows] if len(w.scales) else y)
    whole = torch.cat(blocks, dim=-1)
    return whole if bias_N is None else whole + bias_N


def _widened(codes: Shaped[Tensor, "P ..."], width: int) -> Float32[Tensor, "R K"]:
    """All rows of some panels, before scaling."""
    if codes.dtype == torch.uint8:
        return codes.transpose(1, 2).flatten(2).flatten(0, 1)[:, :width].float() - ZERO
    if codes.dtype == torch.bfloat16:
        codes = codes.transpose(3, 4).flatten(2)
    return codes.transpose(1, 2).flatten(0, 1).float()


def _placed(x: Tensor) -> Tensor:
    """A copy that starts at a cache line. NumPy allocates it, because NumPy asks for large pages."""
    raw = aligned((x.numel() * x.element_size(),), np.dtype(np.uint8))
    return torch.from_numpy(raw).view(x.dtype).view(x.shape).copy_(x)
