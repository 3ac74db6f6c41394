"""One step of the model ``pooled`` as one compiled call, for passages that lie apart from each other in memory.

The rows that a state holds are the largest part of it, and a step does not copy
them: it appends the newest row to the log of the passage. The states of a
passage share its log. Each holds a range of its rows, and no row changes after
it was appended. One step alone can append behind the rows of a state. A second
step from the same state, and a step from a state at the end of its log, copies
the rows to a new log.
"""

# Axes: B passages, D width, E width of what is read, K means, V vectors mixed, L lags, P rows held, S numbers of a state,
# N numbers of a log, W width of an output.

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from nextvec.kernels.library import library
from nextvec.kernels.weights import Matrix
from nextvec.kernels.weights_library import MatrixC, Pointer, address

HEADER = 16  # numbers before those of a log and of a state, which hold counts
SHARE, LEAST = 8, 4  # a new log has one free place for this many rows, and at least so many


class PooledC(ctypes.Structure):
    _fields_ = (
        ("space", MatrixC),
        *((name, Pointer) for name in ("centre", "decays", "weights", "lag_logits")),
        *((name, Pointer) for name in ("inner", "inner_bias", "outer", "outer_bias", "sharpness", "fading", "sinks")),
        *((name, ctypes.c_int64) for name in ("dim", "means", "lags", "size", "hidden")),
        *((name, ctypes.c_float) for name in ("amplitude", "spread", "shortest", "absent")),
    )


class PassageC(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("before", "after", "log", "moved")),
        *((name, ctypes.c_int64) for name in ("places", "waits")),
    )


@dataclass(frozen=True, eq=False)
class PooledWeights:
    """What a step reads besides the state.

    Attributes:
        decays, weights, lag_logits: of the means, the mixture and the lags.
        heads: sharpness, fading and sink of the heads of the working memory.
        gates: the weights and biases of both layers of the gates, each weight before its bias; empty without gates.
        size: places of the working memory.
        amplitude: of the lags.
        spread, shortest, absent: the constants of the model.
        space: map of the vectors that are read: what is subtracted first, and the matrix; the result is scaled to unit length.
            None where vectors are read as they are.
    """

    decays: Float32[Tensor, " K"]
    weights: Float32[Tensor, " V"]
    lag_logits: Float32[Tensor, " L"]
    heads: tuple[Float32[Tensor, " 2"], Float32[Tensor, " 2"], Float32[Tensor, " 2"]]
    gates: tuple[Float32[Tensor, "..."], ...]
    dim: int
    size: int
    amplitude: float
    spread: float
    shortest: float
    absent: float
    space: tuple[Float32[Tensor, " E"], Matrix] | None = None

    @cached_property
    def output_width(self) -> int:
        """W: of several queries and their log weights, or of one query."""
        lags = len(self.lag_logits)
        return self.dim if lags < 2 else lags * (self.dim + 1)

    @cached_property
    def state_size(self) -> int:
        """Numbers of a state besides its rows."""
        return HEADER + (len(self.decays) + 1) * self.dim

    @cached_property
    def c(self) -> PooledC:
        centre, matrix = (None, MatrixC()) if self.space is None else (self.space[0], self.space[1].c)
        pointers = map(address, (centre, self.decays, self.weights, self.lag_logits, *(self.gates or [None] * 4), *self.heads))
        hidden = len(self.gates[1]) if self.gates else 0
        sizes = (self.dim, len(self.decays), len(self.lag_logits), self.size, hidden)
        return PooledC(matrix, *pointers, *sizes, self.amplitude, self.spread, self.shortest, self.absent)

    def __reduce__(self) -> tuple[Any, ...]:
        return PooledWeights, tuple(getattr(self, field.name) for field in fields(self))  # without the addresses in `c`


class Parts(NamedTuple):
    """The tensors of the state of one passage (``nextvec.models.pooled.PooledState``)."""

    means: Float32[Tensor, "1 K D"]
    total: Float32[Tensor, "1 D"]
    read: Float32[Tensor, " 1"]
    rows: Float32[Tensor, "1 P D"]
    written: Float32[Tensor, "1 P"]
    filled: Bool[Tensor, "1 P"]


class LoggedState:
    """The state of one passage as a step reads it. It never changes. Iteration gives its parts, in their order.

    Attributes:
        own: the structure ``State`` of pooled.c.
        log: the structure ``Log`` of pooled.c, shared with other states of the passage.
        dim: D.
    """

    __slots__ = ("dim", "log", "own")

    def __init__(self, own: Float32[Tensor, " S"], log: Float32[Tensor, " N"], dim: int) -> None:
        self.own, self.log, self.dim = own, log, dim

    @classmethod
    def of(cls, parts: Parts) -> "LoggedState":
        """A copy of a state."""
        held, dim = parts.rows.shape[1:]
        log, places = _new_log(held, dim)
        _whole(log)[:2] = torch.tensor([held, places])
        for mine, part in zip(_rows_of(log, 0, held, dim), parts[3:], strict=True):
            mine.copy_(part)
        own = torch.empty(HEADER + (parts.means.shape[1] + 1) * dim)
        _whole(own)[:2] = torch.tensor([0, held])
        state = cls(own, log, dim)
        for mine, part in zip(state.parts()[:3], parts[:3], strict=True):
            mine.copy_(part)
        return state

    @classmethod
    def _make(cls, parts: Sequence[Tensor]) -> "LoggedState":
        return cls.of(Parts(*parts))

    def parts(self) -> Parts:
        """Views of its tensors."""
        first, held = _whole(self.own)[:2].tolist()
        sums = self.own[HEADER:].view(1, -1, self.dim)
        return Parts(sums[:, :-1], sums[:, -1], self.own[4:5], *_rows_of(self.log, first, held, self.dim))

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parts())


def step(
    weights: PooledWeights, states: Sequence[LoggedState], x_BE: Float32[Tensor, "B E"]
) -> tuple[list[LoggedState], Float32[Tensor, "B W"]]:
    """Read one vector per passage: the states after it, and the outputs.

    Raises:
        MemoryError: memory for the intermediate results is lacking.
    """
    count, dim, call, x_BE = len(states), weights.dim, loaded(), x_BE.contiguous()
    y_BW = torch.empty(count, weights.output_width)
    after = [LoggedState(torch.empty(weights.state_size), state.log, dim) for state in states]
    passages = (PassageC * count)(
        *[
            (before.own.data_ptr(), new.own.data_ptr(), new.log.data_ptr(), None, 0, 1)
            for before, new in zip(states, after, strict=True)
        ]
    )
    given = (weights.c, passages, count, x_BE.data_ptr(), y_BW.data_ptr())
    done = call(*given)
    if not done:
        for before, new, passage in zip(states, after, passages, strict=True):
            if passage.waits:
                new.log, passage.places = _new_log(int(_whole(before.own)[1]) + 1, dim)
                passage.moved = new.log.data_ptr()
        done = call(*given)
    if done < 0:
        raise MemoryError("memory for the intermediate results of a step is lacking")
    return after, y_BW


def _new_log(rows: int, dim: int) -> tuple[Float32[Tensor, " N"], int]:
    """Memory for some rows and for free places behind them, and the number of its places."""
    places = -(-(rows + max(LEAST, rows // SHARE)) // 4) * 4  # whole numbers of 4 bytes for the filled places
    return torch.empty(HEADER + places * (dim + 1) + places // 4), places


def _whole(numbers: Float32[Tensor, " N"]) -> Tensor:
    """The counts of a log or a state: whole numbers of 8 bytes."""
    return numbers[:4].view(torch.int64)


def _rows_of(
    log: Float32[Tensor, " N"], first: int, count: int, dim: int
) -> tuple[Float32[Tensor, "1 P D"], Float32[Tensor, "1 P"], Bool[Tensor, "1 P"]]:
    places = int(_whole(log)[1])
    own = slice(first, first + count)
    rows, written, filled = log[HEADER:].split([places * dim, places, places // 4])
    return rows.view(1, places, dim)[:, own], written[None, own], filled.view(torch.bool)[None, own]


@cache
def loaded() -> Callable[..., int]:
    compiled_library = library()
    assert compiled_library is not None, "callers check steps.compiled() first"
    function = compiled_library.nextvec_pooled_step
    function.argtypes = [ctypes.POINTER(PooledC), ctypes.POINTER(PassageC), ctypes.c_int64, Pointer, Pointer]
    function.restype = ctypes.c_int32
    return function
