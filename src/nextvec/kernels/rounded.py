"""Products of many vectors with int8 weights, the vectors rounded to 8 bits as well.

Codes from -127 to 127 times a scale stand for each vector, and for each row of
the weights. A few numbers of a transformer's vectors are far larger than the
rest and would leave the rest few codes. So each block of 128 numbers is
multiplied by a Hadamard matrix before it is rounded, which spreads them over
the block, and the weights hold the inverse (QuaRot, Ashkboos et al. 2024).
Products of codes are summed without error.
"""

# Axes: K input width, N rows.

import ctypes
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import linear

from nextvec.errors import DataError
from nextvec.kernels.library import level, library
from nextvec.kernels.weights import Matrix, check_vectors, pack_matrix
from nextvec.kernels.weights_library import MatrixC, Pointer, check_done

BLOCK = 128  # numbers that are rotated together, as in rounded.c
PANEL = 64  # rows, as in rounded.c
LARGEST = 127
WIDEST = 65_536  # columns whose sums of products of codes stay within 32 bits: 255 * 127 * 65536 < 2^31
COMPILED = ("avx2", "avx512")  # the levels of rounded.c


@dataclass(frozen=True, eq=False)
class Rotated:
    """An int8 matrix [N, K] for rotated vectors, with its bias."""

    w: Matrix
    bias: Float32[Tensor, " N"]

    @cached_property
    def widened(self) -> Float32[Tensor, "N K"]:
        return self.w.widened()


def pack_rotated(matrix_NK: Float[Tensor, "N K"], bias_N: Float[Tensor, " N"]) -> Rotated:
    """The matrix, rotated and rounded.

    Raises:
        DataError: N is no multiple of 64, K is no multiple of 128 or above 65,536, or a number is not finite.
    """
    rows, width = matrix_NK.shape
    if rows % PANEL or width % BLOCK or width > WIDEST:
        raise DataError(
            f"a matrix of shape {[rows, width]}: rows must be a multiple of {PANEL}, columns one of {BLOCK} up to {WIDEST}"
        )
    rotated = rotate(matrix_NK.double()) / BLOCK
    return Rotated(pack_matrix(rotated, "int8"), bias_N.detach().float().contiguous())


def rotate(x: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
    """Each block of 128 numbers, times the Hadamard matrix; its rows have the length sqrt(128)."""
    return (x.unflatten(-1, (-1, BLOCK)) @ _hadamard(x.dtype)).flatten(-2)


def rounded_product(x: Float32[Tensor, "B K"], w: Rotated) -> Float32[Tensor, "B N"]:
    """x Wᵀ + bias; the error is at most ``max|r| / 254 · sum|w|`` of the rotated vector r and the rotated row w.

    Raises:
        SettingsError: vectors that are not float32 on the CPU, or that need a gradient.
        DataError: vectors of another width.
    """
    check_vectors(x, w.w.width)
    compiled = loaded()
    if compiled is None:
        rotated = rotate(x)
        scales = rotated.abs().amax(-1, keepdim=True).clamp(min=1e-30) / LARGEST
        return linear((rotated / scales).round(), w.widened) * scales + w.bias
    y = torch.empty(len(x), w.w.rows)
    rotated = x.clone(memory_format=torch.contiguous_format)
    check_done(compiled.nextvec_rounded_product(w.w.c, rotated.data_ptr(), len(x), w.bias.data_ptr(), y.data_ptr()))
    return y


@cache
def loaded() -> ctypes.CDLL | None:
    """The compiled library with the types of its product; None where torch computes instead."""
    compiled = library()
    if compiled is None or level() not in COMPILED:
        return None
    compiled.nextvec_rounded_product.argtypes = [ctypes.POINTER(MatrixC), Pointer, ctypes.c_int64, Pointer, Pointer]
    return compiled


@cache
def _hadamard(dtype: torch.dtype) -> Float[Tensor, "128 128"]:
    """Sylvester's construction: in the order of the fast Walsh-Hadamard transform."""
    matrix = torch.ones(1, 1, dtype=dtype)
    while len(matrix) < BLOCK:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
