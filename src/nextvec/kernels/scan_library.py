"""The compiled functions of the search, with their types and the structures that they take."""

import ctypes
from functools import cache

from nextvec.kernels.library import library

Pointer = ctypes.c_void_p


class StoredC(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("codes", "rows", "scales", "errors")),
        *((name, ctypes.c_int64) for name in ("first", "dim")),
        *((name, ctypes.c_int32) for name in ("code", "row")),
    )


class FiltersC(ctypes.Structure):
    _fields_ = (
        ("allowed", Pointer),
        ("allowed_rows", ctypes.c_int64),
        ("excluded", Pointer),
        ("ends", Pointer),
        ("words", ctypes.c_int64),
    )


class PieceC(ctypes.Structure):
    _fields_ = (("part", Pointer), ("start", ctypes.c_int64), ("stop", ctypes.c_int64))


@cache
def loaded() -> ctypes.CDLL | None:
    """The compiled functions with their types; None where torch computes instead."""
    compiled = library()
    if compiled is None:
        return None
    pointer, whole = ctypes.POINTER, ctypes.c_int64
    compiled.nextvec_scan_longest.argtypes = [Pointer, ctypes.c_int32, whole, whole]
    compiled.nextvec_scan_longest.restype = ctypes.c_float
    compiled.nextvec_scan_products.argtypes = [Pointer, ctypes.c_int32, whole, Pointer, whole, Pointer, whole, Pointer]
    compiled.nextvec_scan_products.restype = None
    terms = [Pointer, whole, whole, ctypes.c_int32, *3 * [ctypes.c_double]]
    compiled.nextvec_scan_nearest.argtypes = [
        Pointer,
        whole,
        *terms,
        pointer(FiltersC),
        Pointer,
        Pointer,
        whole,
        Pointer,
        whole,
    ]
    compiled.nextvec_scan_nearest.restype = whole
    compiled.nextvec_scan_upper.argtypes = [pointer(StoredC), Pointer, whole, *terms, Pointer]
    compiled.nextvec_scan_upper.restype = ctypes.c_int32
    return compiled
