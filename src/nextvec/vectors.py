"""Validation and scaling of vectors; banks, indexes, sessions, servers and clients all use it."""

# Axes: T vectors, D width.

from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from nextvec.errors import DataError

KINDS = "fiu"  # NumPy kinds that are accepted: floats and integers
MODEST = 2.0**64  # magnitudes from 1/MODEST to MODEST are converted to float32 without scaling


def unit_rows(vectors: Any, dim: int | None = None, where: str = "") -> Float32[np.ndarray, "T D"]:
    """``vectors`` [T, D] scaled to unit length, float32.

    Every vector of finite floats or integers is accepted unless it is zero.
    Its values may be as small as float32 subnormals or 1e-300, or as large as 1e300.

    Args:
        dim: the required width; any when None.
        where: prefix of the message, such as ``document 'a', ``.

    Raises:
        DataError: other values than numbers, another shape, no rows, NaN, infinity, or a zero vector; names the row.
    """
    rows_TD = as_float32(vectors, dim, where)
    wide_TD = rows_TD.astype(np.float64)
    wide_TD *= (1 / _lengths(wide_TD, where))[:, None]
    return wide_TD.astype(np.float32)


def check_usable(vectors: Float32[np.ndarray, "T D"], where: str = "") -> None:
    """
    Raises:
        DataError: a vector that :func:`unit_rows` refuses.
    """
    _lengths(vectors, where)


def as_float32(vectors: Any, dim: int | None = None, where: str = "") -> Float32[np.ndarray, "T D"]:
    """``vectors`` [T, D] as float32 of the same directions.

    float16 and float32 keep their values. A row of another dtype whose largest
    magnitude is outside 2**-64 to 2**64 is multiplied by a power of two, which
    is exact, so that it does not leave the range of float32.

    Raises:
        DataError: other values than numbers, masked values, another shape, or no rows.
    """
    given = _numbers(vectors, where)
    if given.ndim != 2 or not len(given) or not given.shape[1]:
        raise DataError(f"{where}vectors have shape {list(given.shape)}; want [rows, {dim or 'width'}], at least one row")
    if dim is not None and given.shape[1] != dim:
        raise DataError(f"{where}vectors are {given.shape[1]} wide; want {dim}")
    if given.dtype.itemsize <= 4 and given.dtype.kind == "f":
        return given.astype(np.float32)
    wide_TD = given if given.dtype.kind == "f" else given.astype(np.float64)
    largest_T = np.abs(wide_TD).max(axis=1)
    extreme = np.isfinite(largest_T) & (largest_T > 0) & ((largest_T < 1 / MODEST) | (largest_T > MODEST))
    if extreme.any():
        exponents = np.where(extreme, np.frexp(largest_T)[1], 0)
        wide_TD = np.ldexp(wide_TD, -exponents[:, None])
    return wide_TD.astype(np.float32)


def _numbers(vectors: Any, where: str) -> Shaped[np.ndarray, "..."]:
    if np.ma.is_masked(vectors):
        raise DataError(f"{where}vectors have masked values; leave their rows out or fill them")
    try:
        given = np.asarray(vectors)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor that needs gradients
        raise DataError(f"{where}vectors are not an array of numbers: {str(error).splitlines()[0]}") from None
    if given.dtype.kind not in KINDS:
        raise DataError(f"{where}vectors are {given.dtype}; want floats or whole numbers")
    return given


def _lengths(vectors: Shaped[np.ndarray, "T D"], where: str) -> Float64[np.ndarray, " T"]:
    """The length of each row, in float64, where the square of a float32 neither overflows nor underflows."""
    lengths_T = np.sqrt(np.einsum("td,td->t", vectors, vectors, dtype=np.float64))
    usable = np.isfinite(lengths_T) & (lengths_T > 0)
    if not usable.all():
        row = int(usable.argmin())
        what = "a zero vector has no direction" if lengths_T[row] == 0 else "not a finite vector (NaN or infinity)"
        raise DataError(f"{where}row {row}: {what}")
    return lengths_T
