"""The form of a model's state: what is checked of one that comes from outside before compiled code reads it by its shapes."""

# Axes: B passages, T positions, D width.

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nextvec.errors import DataError
from nextvec.inference.states import leaves
from nextvec.models import Recurrent

PROBE = 256  # vectors read at once to measure the window


class Forms:
    """The shapes and types of the states of one model, for one passage.

    A state's tensors keep their shape whatever was read, but for those that are empty at the start: these hold one place for
    each vector, up to the model's window.
    """

    def __init__(self, model: Recurrent[Any]) -> None:
        self._model = model
        self._start = leaves(model.start(1))

    @cached_property
    def window(self) -> int:
        """Places that a state holds at most; 0 where no tensor of it grows."""
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

    def check(self, parts: Sequence[Any], length: int) -> None:
        """Refuse what is not the state of this model after ``length`` vectors.

        Args:
            parts: the tensors and numbers of a state, in their order.

        Raises:
            DataError: a part that is missing, or of another shape or type, NaN, or a number outside ``0:length``.
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


def _growing(leaf: Tensor | int) -> list[int]:
    return [axis for axis, size in enumerate(leaf.shape) if not size] if isinstance(leaf, Tensor) else []
