"""States of many passages as one batch, and back: what lets many sessions step together."""

# Axes: B passages.

from collections.abc import Hashable, Sequence
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


def like(state: State, parts: Sequence[Tensor | int]) -> State:
    """A state of the same form with other leaves."""
    remaining = iter(parts)
    return _like(state, remaining)


def num_bytes(state: State) -> int:
    """What the tensors of a state occupy, with all that they keep alive."""
    return sum(leaf.untyped_storage().nbytes() for leaf in leaves(state) if isinstance(leaf, Tensor))


def owned(state: State) -> State:
    """The same, without the passage it was read from: the last position of a tensor keeps all of its positions alive."""
    return like(state, [_owned(leaf) for leaf in leaves(state)])


class Batches:
    """How the states of one model lie beside each other.

    The axis of a batch differs from tensor to tensor (a GRU's hidden state has
    its layers first); it is the one along which two passages differ from one.
    """

    def __init__(self, model: Recurrent[Any]) -> None:
        pairs = zip(leaves(model.start(1)), leaves(model.start(2)), strict=True)
        self._axes = [_axis(one, two) for one, two in pairs]

    def kind(self, state: State) -> Hashable:
        """States of one kind can step together: equal shapes but for the batch, equal numbers."""
        return tuple(_kind(leaf, axis) for leaf, axis in zip(leaves(state), self._axes, strict=True))

    def join(self, states: Sequence[State]) -> State:
        """One state of a batch of them all."""
        columns = zip(*map(leaves, states), strict=True)
        return like(
            states[0],
            [
                column[0] if axis is None else torch.cat(column, dim=axis)  # type: ignore[arg-type]
                for column, axis in zip(columns, self._axes, strict=True)
            ],
        )

    def split(self, state: State, count: int) -> list[State]:
        """The states of each of ``count`` passages; copies, so that one passage does not keep the others' memory."""
        if count == 1:
            return [owned(state)]
        columns = [
            [leaf] * count if axis is None else [part.clone() for part in leaf.split(1, dim=axis)]  # type: ignore[union-attr]
            for leaf, axis in zip(leaves(state), self._axes, strict=True)
        ]
        return [like(state, parts) for parts in zip(*columns, strict=True)]


def _axis(one: Tensor | int, two: Tensor | int) -> int | None:
    """None for a number, and for what is the same whatever the batch."""
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return None
    return next((axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b), None)


def _kind(leaf: Tensor | int, axis: int | None) -> Hashable:
    if isinstance(leaf, int):
        return leaf
    return tuple(size for n, size in enumerate(leaf.shape) if n != axis)


def _like(state: State, remaining: Any) -> State:
    if isinstance(state, Tensor | int):
        return next(remaining)
    parts = [_like(part, remaining) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _owned(leaf: Tensor | int) -> Tensor | int:
    # A window that lost its oldest place lies in one of 257 places and not 256: not worth a copy.
    if isinstance(leaf, int) or 2 * leaf.untyped_storage().nbytes() <= 3 * leaf.numel() * leaf.element_size():
        return leaf
    return leaf.clone()
