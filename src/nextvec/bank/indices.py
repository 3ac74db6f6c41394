"""Values of ``index`` from Python or NumPy as Arrow values: numbers, dates, times and durations."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

COARSE = ("W", "D", "h", "m")  # units of NumPy that Arrow lacks; as durations, Y and M have no fixed number of seconds


def index_kind(value: Any) -> pa.DataType | None:
    """The type of a column that begins with ``value``, or None where it is not a number, date, time or duration.

    The type is the widest of its kind, so that every later value fits: int64 (uint64 from 2**63 on), float64, microseconds
    (nanoseconds where ``value`` has them). Times with any time zone are UTC.
    """
    held = _scalar(value)
    if held is None:
        return None
    kind: Any = held.type
    if pa.types.is_integer(kind):
        return pa.uint64() if held.as_py() >= 2**63 else pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    unit = "ns" if getattr(kind, "unit", None) == "ns" else "us"
    if pa.types.is_timestamp(kind):
        return pa.timestamp(unit, "UTC" if kind.tz else None)
    if pa.types.is_duration(kind):
        return pa.duration(unit)
    return kind if pa.types.is_temporal(kind) else None


def index_value(value: Any, kind: pa.DataType) -> Any:
    """``value`` as ``kind``, or None where it is of another kind or would change, as 1.5 would as a whole number.

    Times with and without a time zone, and dates and times, are of different kinds.
    """
    if type(value) is int and kind == pa.int64() and -(2**63) <= value < 2**63:
        return value  # the usual case, ten times as fast
    found, held = index_kind(value), _scalar(value)
    if found is None or held is None or _family(found) != _family(kind):
        return None
    try:
        return held.cast(kind)
    except (pa.ArrowException, ValueError):
        return None


def indices(values: Sequence[Any] | np.ndarray) -> pa.Array:
    """A column of values in the type that Arrow chooses, because one column may mix kinds of numbers.

    Raises:
        ValueError: times with and without a time zone, whose order is open.
    """
    times = (datetime.datetime, datetime.time)
    if len({value.tzinfo is None for value in values if isinstance(value, times)}) > 1:
        raise ValueError("times with and without a time zone; give all of them one, or none")
    return pa.array([with_arrow_unit(value) if isinstance(value, np.generic) else value for value in values])


def with_arrow_unit(value: Any) -> Any:
    """Times and durations of NumPy in a unit that Arrow has; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "mM":
        dtype: Any = value.dtype
        unit, kind = np.datetime_data(dtype)[0], dtype.kind
        if unit in COARSE or (kind == "M" and unit in ("Y", "M")):
            return value.astype(f"{kind}8[s]")
    return value


def _scalar(value: Any) -> pa.Scalar | None:
    if isinstance(value, datetime.time):
        return pa.scalar(value) if value.tzinfo is None else None  # Arrow would leave the zone out
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item") and getattr(value.dtype, "kind", "") not in "mM":
        value = value.item()  # a number of NumPy or torch
    try:
        return pa.scalar(with_arrow_unit(value))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _family(kind: pa.DataType) -> str:
    """A name that is equal for types whose values can be compared."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return f"{type(kind).__name__} {getattr(kind, 'tz', None)}"
