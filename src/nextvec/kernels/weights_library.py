"""The compiled functions of packed weights, with their types and the structures that they take."""

import ctypes
from functools import cache

from torch import Tensor

from nextvec.kernels.library import level, library

Pointer = ctypes.c_void_p
# With more vectors than these, torch multiplies with widened weights. Measured: with AVX-512 the compiled product was
# faster up to 1,000 vectors in every format; AVX2 and plain C become slower than torch between 16 and 256.
MOST = {"avx512": 1024, "avx2": 64, "any": 64}


class MatrixC(ctypes.Structure):
    _fields_ = (
        *((field, Pointer) for field in ("codes", "scales")),
        *((field, ctypes.c_int64) for field in ("rows", "width")),
        ("form", ctypes.c_int32),
    )


class CellC(ctypes.Structure):
    _fields_ = (("input", MatrixC), ("hidden", MatrixC), ("input_bias", Pointer), ("hidden_bias", Pointer))


class StageC(ctypes.Structure):
    _fields_ = (
        ("w", MatrixC),
        *((field, Pointer) for field in ("scale", "bias")),
        ("epsilon", ctypes.c_float),
        ("kind", ctypes.c_int32),
    )


class Compiled:
    """The compiled functions with their types.

    Attributes:
        most: number of vectors up to which they are faster than torch.
    """

    def __init__(self, compiled: ctypes.CDLL, most: int) -> None:
        pointer, whole = ctypes.POINTER, ctypes.c_int64
        self.product = compiled.nextvec_weights_product
        self.product.argtypes = [pointer(MatrixC), Pointer, whole, Pointer, Pointer]
        self.chain = compiled.nextvec_weights_chain
        self.chain.argtypes = [pointer(StageC), whole, whole, Pointer, whole, whole, Pointer]
        self.run = compiled.nextvec_weights_run
        self.run.argtypes = [pointer(CellC), Pointer, Pointer, whole, whole, Pointer, Pointer, Pointer, Pointer]
        self.most = most


@cache
def loaded() -> Compiled | None:
    """The compiled functions; None where torch computes instead."""
    compiled = library()
    return None if compiled is None else Compiled(compiled, MOST[level()])


def address(x: Tensor | None) -> int | None:
    """Where the tensor starts in memory; None for None."""
    return None if x is None else x.data_ptr()


def check_done(done: int) -> None:
    """
    Raises:
        MemoryError: a compiled function returned 0.
    """
    if not done:
        raise MemoryError("memory for the intermediate results of a product is lacking")
