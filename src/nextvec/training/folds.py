"""Cross-fitting: every training document is read in a space that was fitted without it.

An exponential mean finds more of the rows of documents that its space was fitted
on than of others, and long means gain most: on court transcripts 24.6 % against
21.4 % of the same rows among the same candidates at decay 0.95
(``benchmarks/crossfit.py``). A model that is trained in the space of its own
documents learns this difference and loses it on every other document.

Negatives are rows of the fold, so that they come from about as many documents as
the candidates of an exam: a negative of the same document is harder.
"""

# Axes: M documents, K folds.

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.moments import Moments, moments
from nextvec.models import Recurrent
from nextvec.models.space import InSpace, Space
from nextvec.runs.seeds import generator_seed
from nextvec.runs.settings import TrainSettings
from nextvec.training.order import PassageOrder
from nextvec.windows import rows_of

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Fold:
    """Training documents that updates read together.

    Attributes:
        order: of their passages.
        rows: of their documents; negatives are drawn from them.
        space: fitted on all other training documents; None for the model's own.
    """

    order: PassageOrder
    rows: Int64[np.ndarray, " rows"]
    space: Space | None

    @contextmanager
    def reading(self, model: Recurrent[Any]) -> Generator[None]:
        """The model reads and ranks in the space of the fold."""
        if self.space is None or not isinstance(model, InSpace):
            yield
            return
        own = {name: tensor.clone() for name, tensor in model.space.state_dict().items()}
        _set(model.space, self.space.state_dict())
        try:
            yield
        finally:
            _set(model.space, own)


def folds(settings: TrainSettings, bank: Bank, documents: Int64[np.ndarray, " M"], power: float | None) -> list[Fold]:
    """The folds of the training documents: one without a space.

    Args:
        power: of the space; None for the raw rows.
    """
    if power is None or settings.space.folds < 2 or len(documents) < 2:
        return [Fold(PassageOrder(settings, bank, documents), rows_of(bank, documents), None)]
    found: list[Fold] = []
    for inside, others in deal(settings, bank, documents):
        space = Space.fitted(others.mean, others.covariance, power, others.rows).to(settings.compute.device)
        found.append(Fold(PassageOrder(settings, bank, inside), rows_of(bank, inside), space))
    return found


def deal(
    settings: TrainSettings, bank: Bank, documents: Int64[np.ndarray, " M"]
) -> Iterator[tuple[Int64[np.ndarray, " held"], Moments]]:
    """The documents of each fold, ascending, and the moments of all others. Folds have about as many rows each."""
    count = min(settings.space.folds, len(documents))
    shuffled = np.random.default_rng(generator_seed(settings.seed, FOLDS)).permutation(documents)
    members: list[list[int]] = [[] for _ in range(count)]
    sizes = np.zeros(count)
    # Long documents first, each to the fold with the fewest rows.
    for m in sorted(shuffled.tolist(), key=lambda m: -int(bank.lengths[m])):
        members[int(sizes.argmin())].append(m)
        sizes[sizes.argmin()] += bank.lengths[m]
    for held in members:
        inside = np.sort(np.array(held, dtype=np.int64))
        yield inside, moments(bank, np.setdiff1d(documents, inside))


@torch.no_grad()
def _set(space: Space, tensors: dict[str, Tensor]) -> None:
    for name, tensor in space.state_dict().items():
        tensor.copy_(tensors[name])
