"""Chains of layers of packed weights, which run as one call."""

# Axes: K input width, N output width.

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, normalize

from nextvec.kernels.weights import Matrix, check_vectors, product
from nextvec.kernels.weights_library import MatrixC, StageC, address, check_done, loaded

Kind = Literal["product", "layer_norm", "gelu", "unit", "softmax"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of weights_chain.c


@dataclass(frozen=True, eq=False)
class Stage:
    """One layer of a chain: a product, a layer norm, or a function without weights.

    Attributes:
        kind: ``gelu`` is the exact one; ``unit`` scales a vector to length 1.
        w: of a product.
        scale: of a layer norm.
        bias: of a layer norm, or of a product; a product may have none.
        epsilon: of a layer norm.
    """

    kind: Kind
    w: Matrix | None = None
    scale: Float32[Tensor, " K"] | None = None
    bias: Float32[Tensor, " N"] | None = None
    epsilon: float = 0.0

    @property
    def c(self) -> StageC:
        matrix = MatrixC() if self.w is None else self.w.c
        return StageC(matrix, address(self.scale), address(self.bias), self.epsilon, KINDS.index(self.kind))


@dataclass(frozen=True, eq=False)
class Chain:
    """A sequence of layers, from width K to width N."""

    stages: tuple[Stage, ...]

    @cached_property
    def reads(self) -> int:
        """The input width of the first layer with weights; 0 if no layer has weights."""
        for stage in self.stages:
            if stage.w is not None:
                return stage.w.width
            if stage.scale is not None:
                return len(stage.scale)
        return 0

    @cached_property
    def c(self) -> tuple["ctypes.Array[StageC]", int, int]:
        """The stages, the largest output width of a product and the last one; 0 if there is no product."""
        widths = [stage.w.rows for stage in self.stages if stage.w is not None]
        return (StageC * len(self.stages))(*(stage.c for stage in self.stages)), max(widths, default=0), (widths or [0])[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.stages,)


def run_chain(x: Float[Tensor, "*shape K"], chain: Chain) -> Float32[Tensor, "*shape N"]:
    """The output of all layers of the chain.

    Raises:
        SettingsError: vectors that are not float32 on the CPU, or that need a gradient.
        DataError: vectors of another width.
    """
    width = x.shape[-1]
    check_vectors(x, chain.reads or width)
    compiled, count = loaded(), x.numel() // width
    if compiled is None or count > compiled.most:
        return _run_chain_torch(x, chain)
    stages, widest, last = chain.c
    x = x.contiguous()
    y = torch.empty(*x.shape[:-1], last or width)
    check_done(compiled.chain(stages, len(stages), max(widest, width), x.data_ptr(), count, width, y.data_ptr()))
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
