"""Products of a few vectors with packed weights, as fast as memory gives the weights, and the recurrences made of them.

A step of a model at batch 1 reads every weight once and uses it once, so it
costs what reading its bytes costs. Packing makes them fewer, and puts them in
the order in which they are read.

- ``float32``: 4 bytes a weight.
- ``bfloat16``: 2, rounded to nearest even: wrong by at most 2^-9 of each weight.
- ``int8``: 1, and a float32 scale a row (symmetric, per output channel): wrong
  by at most 1/254 of the row's largest weight.

Only weights are rounded. Vectors stay float32; beside int8, where the
processor has VNNI, they become whole numbers of 24 bits times a scale, which
moves a sum by at most ``6.1e-8 max|x| sum|w|``, no more than summing floats may.
"""

# Axes: B passages, T positions, K width that is read, N rows, H hidden, G gates times H, L layers.

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, normalize, pad

from nextvec.errors import DataError, SettingsError
from nextvec.kernels.library import level, library
from nextvec.kernels.scan import aligned

WeightFormat = Literal["float32", "bfloat16", "int8"]
FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)  # in the order of weights.h
PANEL = 64  # rows, as in weights.c
ZERO = 128  # the code of 0 in int8, as in weights.c
BLOCK = 16  # panels that are widened at once
# More vectors than these are multiplied by torch with widened weights. Measured: with AVX-512 the compiled product was
# the faster one up to 1,000 vectors in every format; AVX2 and plain C lose to torch between 16 and 256.
MOST = {"avx512": 1024, "avx2": 64, "any": 64}


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix [N, K] in the order of weights.c.

    Attributes:
        codes: float32 [P, K, 64], bfloat16 [P, K, 2, 16, 2] or, of int8, uint8 [P, K / 4, 64, 4]: P panels of 64 rows.
        scales: [N] of int8, what its codes are multiplied with; else [0].
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
        """What the codes stand for."""
        return _widened(self.codes, self.width)[: self.rows] * (self.scales[:, None] if len(self.scales) else 1)

    @cached_property
    def c(self) -> "_MatrixC":
        form = FORMATS.index(self.form)
        return _MatrixC(self.codes.data_ptr(), self.scales.data_ptr(), self.rows, self.width, form)

    def __reduce__(self) -> tuple[Any, ...]:
        return Matrix, (self.codes, self.scales, self.rows, self.width)  # a copy lies elsewhere, and `c` says where


@dataclass(frozen=True, eq=False)
class Cell:
    """The weights of one layer of a GRU (three gates) or an LSTM (four), in torch's order."""

    input: Matrix
    hidden: Matrix
    input_bias: Float32[Tensor, " G"]
    hidden_bias: Float32[Tensor, " G"]

    @cached_property
    def c(self) -> "_CellC":
        return _CellC(self.input.c, self.hidden.c, self.input_bias.data_ptr(), self.hidden_bias.data_ptr())

    def widened(self) -> list[Tensor]:
        return [self.input.widened(), self.hidden.widened(), self.input_bias, self.hidden_bias]

    def __reduce__(self) -> tuple[Any, ...]:
        return Cell, (self.input, self.hidden, self.input_bias, self.hidden_bias)


Kind = Literal["product", "layer_norm", "gelu", "unit", "softmax"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of weights_chain.c


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer of a chain: a product, a layer norm, or one of those that have no weights.

    Attributes:
        kind: ``gelu`` is the exact one, ``unit`` brings to unit length.
        w: of a product.
        scale: of a layer norm.
        bias: of a layer norm, or of a product that has one.
        epsilon: of a layer norm.
    """

    kind: Kind
    w: Matrix | None = None
    scale: Float32[Tensor, " K"] | None = None
    bias: Float32[Tensor, " N"] | None = None
    epsilon: float = 0.0

    @property
    def c(self) -> "_StageC":
        matrix = _MatrixC() if self.w is None else self.w.c
        return _StageC(matrix, _address(self.scale), _address(self.bias), self.epsilon, KINDS.index(self.kind))


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers one after another, from width K to width N."""

    stages: tuple[Stage, ...]

    @cached_property
    def reads(self) -> int:
        """The width that the first layer with weights reads; 0 where none has any."""
        for stage in self.stages:
            if stage.w is not None:
                return stage.w.width
            if stage.scale is not None:
                return len(stage.scale)
        return 0

    @cached_property
    def c(self) -> tuple["ctypes.Array[_StageC]", int, int]:
        """The stages, and where products lead: the widest place and the last; 0 where there is none."""
        widths = [stage.w.rows for stage in self.stages if stage.w is not None]
        return (_StageC * len(self.stages))(*(stage.c for stage in self.stages)), max(widths, default=0), (widths or [0])[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.stages,)


def pack_matrix(matrix_NK: Float[Tensor, "N K"], form: WeightFormat) -> Matrix:
    """A matrix, rounded and put in order.

    Raises:
        SettingsError: a format that does not exist.
        DataError: a matrix without numbers, or with one that is not finite.
    """
    if form not in FORMATS:
        raise SettingsError(f"weights {form!r}: choose {', '.join(FORMATS)}")
    rows, width = matrix_NK.shape
    values_NK = matrix_NK.detach().float().cpu()
    if not values_NK.numel() or not values_NK.isfinite().all():
        raise DataError(f"a matrix of shape {list(matrix_NK.shape)} is empty or not finite; its weights cannot be packed")
    scales, zero, quads = torch.empty(0), 0, 0
    if form == "int8":
        scales, zero, quads = values_NK.abs().amax(1).clamp(min=1e-30) / 127, ZERO, -width % 4  # a row of zeros has no scale
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
        SettingsError: vectors that are not float32 on the processor, or that want a gradient.
        DataError: vectors of another width.
    """
    _check(x, w.width)
    loaded, count = _loaded(), x.numel() // w.width
    if loaded is None or count > loaded.most:
        return _product_torch(x, w, bias_N)
    x = x.contiguous()
    y = torch.empty(*x.shape[:-1], w.rows)
    _done(loaded.product(w.c, x.data_ptr(), count, _address(bias_N), y.data_ptr()))
    return y


def run_chain(x: Float[Tensor, "*shape K"], chain: Chain) -> Float32[Tensor, "*shape N"]:
    """All layers of the chain.

    Raises:
        SettingsError: vectors that are not float32 on the processor, or that want a gradient.
        DataError: vectors of another width.
    """
    width = x.shape[-1]
    _check(x, chain.reads or width)
    loaded, count = _loaded(), x.numel() // width
    if loaded is None or count > loaded.most:
        return _run_chain_torch(x, chain)
    stages, widest, last = chain.c
    x = x.contiguous()
    y = torch.empty(*x.shape[:-1], last or width)
    _done(loaded.chain(stages, len(stages), max(widest, width), x.data_ptr(), count, width, y.data_ptr()))
    return y


def _run_chain_torch(x: Tensor, chain: Chain) -> Tensor:
    for stage in chain.stages:
        if stage.w is not None:
            x = product(x, stage.w, stage.bias)
        elif stage.kind == "layer_norm":
            x = layer_norm(x, x.shape[-1:], stage.scale, stage.bias, stage.epsilon)
        else:
            x = gelu(x) if stage.kind == "gelu" else normalize(x, dim=-1) if stage.kind == "unit" else x.softmax(-1)
    return x


def gru(
    x_BTK: Float[Tensor, "B T K"], hidden_LBH: Float[Tensor, "L B H"], cells: Sequence[Cell]
) -> tuple[Float32[Tensor, "B T H"], Float32[Tensor, "L B H"]]:
    """What the last of L layers shows at every position, and the states after the last; ``torch.nn.GRU``'s, batch first.

    Raises:
        SettingsError: vectors that are not float32 on the processor, or that want a gradient.
        DataError: vectors of another width, or states of another number.
    """
    loaded = _ready(x_BTK, hidden_LBH, cells)
    if loaded is None:
        flat = [part for cell in cells for part in cell.widened()]
        return torch.gru(x_BTK, hidden_LBH, flat, True, len(cells), 0.0, False, False, True)
    return _run(loaded, x_BTK, hidden_LBH, None, cells)


def lstm(
    x_BTK: Float[Tensor, "B T K"], hidden_LBH: Float[Tensor, "L B H"], cell_LBH: Float[Tensor, "L B H"], cells: Sequence[Cell]
) -> tuple[Float32[Tensor, "B T H"], Float32[Tensor, "L B H"], Float32[Tensor, "L B H"]]:
    """What the last of L layers shows at every position, and the states and cells after the last; ``torch.nn.LSTM``'s.

    Raises:
        SettingsError: vectors that are not float32 on the processor, or that want a gradient.
        DataError: vectors of another width, or states of another number.
    """
    _check(cell_LBH, cells[0].hidden.width)
    loaded = _ready(x_BTK, hidden_LBH, cells)
    if loaded is None:
        flat = [part for cell in cells for part in cell.widened()]
        return torch.lstm(x_BTK, (hidden_LBH, cell_LBH), flat, True, len(cells), 0.0, False, False, True)
    after_LBH = cell_LBH.clone(memory_format=torch.contiguous_format)
    return *_run(loaded, x_BTK, hidden_LBH, after_LBH, cells), after_LBH


def _run(
    loaded: "_Loaded", x_BTK: Tensor, hidden_LBH: Tensor, kept_LBH: Tensor | None, cells: Sequence[Cell]
) -> tuple[Tensor, Tensor]:
    batch, length, _ = x_BTK.shape
    hidden_LBH = hidden_LBH.contiguous()
    after_LBH = torch.empty_like(hidden_LBH)
    size = hidden_LBH[0].numel() * 4
    many = batch * length > loaded.most
    for n, cell in enumerate(cells):
        read = product(x_BTK, cell.input, cell.input_bias) if many else x_BTK.contiguous()
        x, projected = (None, read.data_ptr()) if many else (read.data_ptr(), None)
        kept = None if kept_LBH is None else kept_LBH.data_ptr() + n * size
        x_BTK = torch.empty(batch, length, cell.hidden.width)
        before, after, out = hidden_LBH.data_ptr() + n * size, after_LBH.data_ptr() + n * size, x_BTK.data_ptr()
        _done(loaded.run(cell.c, x, projected, batch, length, before, kept, after, out))
    return x_BTK, after_LBH


def _ready(x_BTK: Tensor, hidden_LBH: Tensor, cells: Sequence[Cell]) -> "_Loaded | None":
    """The compiled functions, if they are to run these cells."""
    _check(x_BTK, cells[0].input.width)
    _check(hidden_LBH, cells[0].hidden.width)
    if len(hidden_LBH) != len(cells) or hidden_LBH.shape[1] != len(x_BTK):
        raise DataError(f"states {list(hidden_LBH.shape)} do not fit {len(cells)} layers and passages {list(x_BTK.shape)}")
    loaded = _loaded()
    return loaded if loaded is not None and len(x_BTK) <= loaded.most else None


def _product_torch(x: Tensor, w: Matrix, bias_N: Tensor | None) -> Tensor:
    """Widened block by block: a whole matrix of floats would not stay in the cache."""
    blocks: list[Tensor] = []
    for start in range(0, len(w.codes), BLOCK):
        rows = slice(start * PANEL, min((start + BLOCK) * PANEL, w.rows))
        wide = _widened(w.codes[start : start + BLOCK], w.width)[: rows.stop - rows.start]
        y = linear(x, wide)
        blocks.append(y * w.scales[rows] if len(w.scales) else y)
    whole = torch.cat(blocks, dim=-1)
    return whole if bias_N is None else whole + bias_N


def _widened(codes: Shaped[Tensor, "P ..."], width: int) -> Float32[Tensor, "R K"]:
    """All rows of some panels, before they are scaled."""
    if codes.dtype == torch.uint8:
        return codes.transpose(1, 2).flatten(2).flatten(0, 1)[:, :width].float() - ZERO
    if codes.dtype == torch.bfloat16:
        codes = codes.transpose(3, 4).flatten(2)
    return codes.transpose(1, 2).flatten(0, 1).float()


def _placed(x: Tensor) -> Tensor:
    """A copy that begins where a cache line does; NumPy asks for large pages, which fewer addresses have to be found for."""
    raw = aligned((x.numel() * x.element_size(),), np.dtype(np.uint8))
    return torch.from_numpy(raw).view(x.dtype).view(x.shape).copy_(x)


def _check(x: Tensor, width: int) -> None:
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.requires_grad:
        what = f"{x.dtype} on {x.device}" + (", with a gradient" if x.requires_grad else "")
        raise SettingsError(f"packed weights are read beside float32 on cpu, without gradients, not {what}")
    if x.shape[-1] != width:
        raise DataError(f"vectors of shape {list(x.shape)} beside weights that read width {width}")


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _done(done: int) -> None:
    if not done:
        raise MemoryError("no memory for the intermediate results of a product")


# Compiled.

_Pointer = ctypes.c_void_p


class _MatrixC(ctypes.Structure):
    _fields_ = (
        *((field, _Pointer) for field in ("codes", "scales")),
        *((field, ctypes.c_int64) for field in ("rows", "width")),
        ("form", ctypes.c_int32),
    )


class _CellC(ctypes.Structure):
    _fields_ = (("input", _MatrixC), ("hidden", _MatrixC), ("input_bias", _Pointer), ("hidden_bias", _Pointer))


class _StageC(ctypes.Structure):
    _fields_ = (
        ("w", _MatrixC),
        *((field, _Pointer) for field in ("scale", "bias")),
        ("epsilon", ctypes.c_float),
        ("kind", ctypes.c_int32),
    )


class _Loaded:
    """The compiled functions with their types, and the most vectors that they are the faster way for."""

    def __init__(self, compiled: ctypes.CDLL, most: int) -> None:
        pointer, whole = ctypes.POINTER, ctypes.c_int64
        self.product = compiled.nextvec_weights_product
        self.product.argtypes = [pointer(_MatrixC), _Pointer, whole, _Pointer, _Pointer]
        self.chain = compiled.nextvec_weights_chain
        self.chain.argtypes = [pointer(_StageC), whole, whole, _Pointer, whole, whole, _Pointer]
        self.run = compiled.nextvec_weights_run
        self.run.argtypes = [pointer(_CellC), _Pointer, _Pointer, whole, whole, _Pointer, _Pointer, _Pointer, _Pointer]
        self.most = most


@cache
def _loaded() -> _Loaded | None:
    compiled = library()
    return None if compiled is None else _Loaded(compiled, MOST[level()])
