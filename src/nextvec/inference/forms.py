"""The form of a model's state: the shapes and types that are checked before compiled code reads a state from outside."""

# Axes: B passages, T positions, D width.

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nextvec.errors import DataError
from nextvec.inference.states import State, leaves, like
from nextvec.models import Recurrent

PROBE = 256  # vectors read at once to measure the window


class Forms:
    """The shapes and types of the states of one model, for one passage.

    The tensors of a state have a fixed shape, except those that are empty at the start: they hold one place for each vector
    read, up to the window of the model.
    """

    def __init__(self, model: Recurrent[Any]) -> None:
        self._model = model
        self._start = leaves(model.start(1))

    def __len__(self) -> int:
        """Number of tensors and numbers of a state."""
        return len(self._start)

    @property
    def output_width(self) -> int:
        """W, the width of an output of the model."""
        return self._model.output_width

    @cached_property
    def window(self) -> int:
        """The most places that a state holds; 0 if none of its tensors grows."""
        growing = [(n, axis) for n, leaf in enumerate(self._start) for axis in _growing(leaf)]
        if not growing:
            return 0
        vectors_BTD = torch.zeros(1, PROBE, self._model.dim)
        vectors_BTD[..., 0] = 1.0
        (number, axis), state, read, held = growing[0], self._model.start(1), 0, 0
        with torch.inference_mode():
            while held == read:
                state, _ = self._model.run(state, vectors_BTD)
                leaf = leaves(state)[number]
                assert isinstance(leaf, Tensor)
                read, held = read + PROBE, leaf.shape[axis]
        return held

    def full_start(self, batch: int) -> State:
        """The state before the first vector, with all places that it will ever have and none of them filled.

        Its shapes are those of every later state.
        """
        start = self._model.start(batch)
        return like(start, [self._padded(leaf) for leaf in leaves(start)])

    def state(self, parts: Sequence[Any], length: int) -> State:
        """The state of this model after ``length`` vectors, from its tensors and numbers in their order.

        Raises:
            DataError: a part that is missing, of another shape or type, NaN, or a number outside ``0:length``.
        """
        places = min(length, self.window)
        for n, (part, start) in enumerate(zip(parts, self._start, strict=True)):
            if isinstance(start, Tensor):
                shape = tuple(size or places for size in start.shape)
                sound = isinstance(part, Tensor) and part.dtype == start.dtype and part.shape == shape
                sound = sound and not part.isnan().any()
            else:
                sound = type(part) is int and 0 <= part <= length
            if not sound:
                raise DataError(f"this snapshot's state is not of this model: part {n} has another form")
        return like(self._model.start(1), parts)

    def _padded(self, leaf: Tensor | int) -> Tensor | int:
        if not isinstance(leaf, Tensor) or not _growing(leaf):
            return leaf
        return leaf.new_zeros([size or self.window for size in leaf.shape])


def _growing(leaf: Tensor | int) -> list[int]:
    return [axis for axis, size in enumerate(leaf.shape) if not size] if isinstance(leaf, Tensor) else []
