"""One step of the model ``pooled`` as one compiled call, for passages that lie apart from each other in memory.

The rows that a state holds are the largest part of it, and a step does not copy
them. They lie in memory with free places behind them, and a step writes the
newest row into the first of these places. The states of a passage share this
memory: each is a view of its own rows, and no row is ever overwritten. One step
alone can claim a place. A second step from the same state, and a step from a
state without free places behind it, copies the rows to new memory.
"""

# Axes: B passages, D width, E width of what is read, K means, V vectors mixed, L lags, G hidden, F features, O outputs of the
# gates, P rows held, W width of an output.

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from nextvec.kernels.library import library
from nextvec.kernels.weights import Matrix
from nextvec.kernels.weights_library import MatrixC, Pointer, address

SHARE, LEAST = 8, 4  # new memory has one free place for this many rows, and at least so many


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
        *((f"{name}_before", Pointer) for name in ("means", "total", "read", "written", "filled")),
        *((f"{name}_after", Pointer) for name in ("means", "total", "read", "written", "filled")),
        *((name, Pointer) for name in ("rows", "moved")),
        *((name, ctypes.c_int64) for name in ("places", "room", "claimed")),
    )


class Parts(NamedTuple):
    """The tensors of the state of one passage (``nextvec.models.pooled.PooledState``)."""

    means: Float32[Tensor, "1 K D"]
    total: Float32[Tensor, "1 D"]
    read: Float32[Tensor, " 1"]
    rows: Float32[Tensor, "1 P D"]
    written: Float32[Tensor, "1 P"]
    filled: Bool[Tensor, "1 P"]


@dataclass(frozen=True, eq=False)
class PooledWeights:
    """What a step reads besides the state.

    Attributes:
        decays, weights, lag_logits: of the means, the mixture and the lags.
        heads: sharpness, fading and sink of the heads of the working memory.
        gates: the weights [G, F] and [O, G] and the biases [G] and [O] of both layers of the gates, each weight before its
            bias; empty without gates.
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

    @property
    def output_width(self) -> int:
        """W: of several queries and their log weights, or of one query."""
        lags = len(self.lag_logits)
        return self.dim if lags < 2 else lags * (self.dim + 1)

    @cached_property
    def c(self) -> PooledC:
        centre, matrix = (None, MatrixC()) if self.space is None else (self.space[0], self.space[1].c)
        pointers = map(address, (centre, self.decays, self.weights, self.lag_logits, *(self.gates or [None] * 4), *self.heads))
        hidden = len(self.gates[1]) if self.gates else 0
        sizes = (self.dim, len(self.decays), len(self.lag_logits), self.size, hidden)
        return PooledC(matrix, *pointers, *sizes, self.amplitude, self.spread, self.shortest, self.absent)

    def __reduce__(self) -> tuple[Any, ...]:
        return PooledWeights, tuple(getattr(self, field.name) for field in fields(self))  # without the addresses in `c`


def step(
    weights: PooledWeights, states: Sequence[Parts], x_BE: Float32[Tensor, "B E"]
) -> tuple[list[Parts], Float32[Tensor, "B W"]]:
    """Read one vector per passage: the states after it, and the outputs.

    Raises:
        MemoryError: memory for the intermediate results is lacking.
    """
    call, x_BE = loaded(), x_BE.contiguous()
    y_BW = torch.empty(len(states), weights.output_width)
    before = [[part.contiguous() for part in state] for state in states]
    after = [_made(parts, weights.size) for parts in before]
    passages = (PassageC * len(states))(*map(_passage, before, after))
    given = (weights.c, passages, len(states), x_BE.data_ptr(), y_BW.data_ptr())
    done = call(*given)
    memory: dict[int, Tensor] = {}
    if not done:
        memory = {n: _new_memory(passage, weights.dim) for n, passage in enumerate(passages) if not passage.claimed}
        done = call(*given)
    if done < 0:
        raise MemoryError("memory for the intermediate results of a step is lacking")
    ended = [
        Parts(means, total, read, _rows_after(memory.get(n), parts[3], written), written, filled)
        for n, (parts, (means, total, read, written, filled)) in enumerate(zip(before, after, strict=True))
    ]
    return ended, y_BW


def _made(before: list[Tensor], size: int) -> list[Tensor]:
    """Memory for the state after the step, but for its rows."""
    kept = min(before[3].shape[1] + 1, size)
    return [*map(torch.empty_like, before[:3]), torch.empty(1, kept), torch.empty(1, kept, dtype=torch.bool)]


def _passage(before: list[Tensor], after: list[Tensor]) -> PassageC:
    means, total, read, rows, written, filled = before
    _, places, dim = rows.shape
    behind = rows.untyped_storage().nbytes() // rows.element_size() - rows.storage_offset() - places * dim
    parts = (means, total, read, written, filled, *after)
    return PassageC(*[part.data_ptr() for part in parts], rows.data_ptr(), None, places, behind // dim, 0)


def _new_memory(passage: PassageC, dim: int) -> Float32[Tensor, "_ D"]:
    passage.room = max(LEAST, passage.places // SHARE)
    memory = torch.empty(passage.places + 1 + passage.room, dim)
    passage.moved = memory.data_ptr()
    return memory


def _rows_after(
    memory: Float32[Tensor, "_ D"] | None, rows: Float32[Tensor, "1 P D"], written: Float32[Tensor, "1 Q"]
) -> Float32[Tensor, "1 Q D"]:
    """The rows of the state after the step: the last of those before it, and the newest behind them."""
    (_, places, dim), kept = rows.shape, written.shape[1]
    held, first = (rows, rows.storage_offset()) if memory is None else (memory, 0)
    return held.as_strided((1, kept, dim), (kept * dim, dim, 1), first + (places + 1 - kept) * dim)


@cache
def loaded() -> Callable[..., int]:
    compiled_library = library()
    assert compiled_library is not None, "callers check steps.compiled() first"
    function = compiled_library.nextvec_pooled_step
    function.argtypes = [ctypes.POINTER(PooledC), ctypes.POINTER(PassageC), ctypes.c_int64, Pointer, Pointer]
    function.restype = ctypes.c_int32
    return function
