"""Model states as trees of tensors, and batches of them: several sessions step as one batch."""

# Axes: B passages.

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nextvec.models import Recurrent

State = Any
"""A tensor, a number, or a tuple (named or not) of states."""


def leaves(state: State) -> list[Tensor | int]:
    """The tensors and numbers of a state, in their order."""
    if isinstance(state, Tensor | int):
        return [state]
    return [leaf for part in state for leaf in leaves(part)]


def tensors(state: State) -> list[Tensor]:
    """The leaves of a state that has tensors only, in their order."""
    found: list[Tensor] = []
    for leaf in leaves(state):
        assert isinstance(leaf, Tensor), "a state with a number cannot be traced"
        found.append(leaf)
    return found


def leaf_names(state: State, prefix: str = "") -> list[str]:
    """For each leaf, the fields that lead to it, joined by ``_``; ``state`` where the state is itself a leaf."""
    if isinstance(state, Tensor | int):
        return [prefix or "state"]
    fields: Sequence[Any] = getattr(state, "_fields", range(len(state)))
    paths = [f"{prefix}_{field}" if prefix else str(field) for field in fields]
    return [name for path, part in zip(paths, state, strict=True) for name in leaf_names(part, path)]


def like(state: State, parts: Iterable[Tensor | int]) -> State:
    """A state of the same form with other leaves."""
    return _rebuilt(state, iter(parts))


def num_bytes(state: State) -> int:
    """Memory in bytes of a state's tensors: of whole storages, each counted once."""
    storages = [leaf.untyped_storage() for leaf in leaves(state) if isinstance(leaf, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def owned(state: State) -> State:
    """The same state in storages of its own.

    A view of the last position of a passage would keep the memory of the whole passage.
    """
    return like(state, [_owned(leaf) for leaf in leaves(state)])


class Batches:
    """Joins the states of several passages of one model into a batch, and splits them again.

    The batch axis differs from tensor to tensor (a GRU's hidden state has its
    layers first). It is found by comparing the start of two passages with that
    of one.
    """

    def __init__(self, model: Recurrent[Any]) -> None:
        pairs = zip(leaves(model.start(1)), leaves(model.start(2)), strict=True)
        self._axes = [_axis(one, two) for one, two in pairs]

    def kind(self, state: State) -> Hashable:
        """States with equal keys can step together: their numbers are equal, and their shapes except for the batch axis."""
        return tuple(_kind(leaf, axis) for leaf, axis in zip(leaves(state), self._axes, strict=True))

    def join(self, states: Sequence[State]) -> State:
        """The states as one batch."""
        columns = zip(*map(leaves, states), strict=True)
        return like(
            states[0],
            [
                column[0] if axis is None else torch.cat(column, dim=axis)  # type: ignore[arg-type]
                for column, axis in zip(columns, self._axes, strict=True)
            ],
        )

    def split(self, state: State, count: int) -> list[State]:
        """The state of each of ``count`` passages, as copies: a view would keep the memory of the whole batch."""
        if count == 1:
            return [owned(state)]
        columns = [
            [leaf] * count if axis is None else [part.clone() for part in leaf.split(1, dim=axis)]  # type: ignore[union-attr]
            for leaf, axis in zip(leaves(state), self._axes, strict=True)
        ]
        return [like(state, parts) for parts in zip(*columns, strict=True)]


def _axis(one: Tensor | int, two: Tensor | int) -> int | None:
    """The batch axis; None for a number and for a tensor without a batch axis."""
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return None
    return next((axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b), None)


def _kind(leaf: Tensor | int, axis: int | None) -> Hashable:
    if isinstance(leaf, int):
        return leaf
    return tuple(size for n, size in enumerate(leaf.shape) if n != axis)


def _rebuilt(state: State, remaining: Iterator[Tensor | int]) -> State:
    if isinstance(state, Tensor | int):
        return next(remaining)
    make: Callable[[Any], State] = getattr(type(state), "_make", tuple)  # a named tuple, or a plain one
    return make([_rebuilt(part, remaining) for part in state])


def _owned(leaf: Tensor | int) -> Tensor | int:
    # A window of 256 places that dropped its oldest is a view of 257: not worth a copy.
    if isinstance(leaf, int) or 2 * leaf.untyped_storage().nbytes() <= 3 * leaf.numel() * leaf.element_size():
        return leaf
    return leaf.clone()
