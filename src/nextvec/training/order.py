"""The passages of each update."""

# Axes: B passages, M documents.

import math

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import DataError
from nextvec.runs.groups import PassageSettings
from nextvec.runs.seeds import generator_seed
from nextvec.runs.settings import TrainSettings
from nextvec.windows import Windows, coherent, last_windows, training_windows

ORDER = 1


def epoch(settings: PassageSettings, bank: Bank, documents: Int64[np.ndarray, " M"], rng: np.random.Generator) -> Windows:
    """The passages of one epoch, shuffled.

    Raises:
        DataError: no document is long enough, or no passage is coherent enough.
    """
    s = settings
    if s.supervision == "last":
        windows = last_windows(bank, documents, s.context, s.across, rng)
    else:
        windows = training_windows(bank, documents, s.context, rng)
    kept = coherent(bank, windows, s.coherence)
    if not len(kept):
        raise DataError(f"coherence={s.coherence}: none of {len(windows):,} passages is that coherent; lower it")
    return kept


class PassageOrder:
    """Epochs of shuffled passages, each split evenly into updates, so that no update is a small remainder."""

    def __init__(self, settings: TrainSettings, bank: Bank, documents: Int64[np.ndarray, " M"]) -> None:
        self.settings, self.bank, self.documents = settings, bank, documents
        self._epoch, self._windows, self._edges = -1, Windows.none(), [0]

    def at(self, update: int) -> tuple[Windows, Int64[np.ndarray, " B"]]:
        """The passages of the epoch, and which of them the update reads. Updates must be asked for in ascending order."""
        o = self.settings.optimizer
        while update >= self._edges[-1]:
            self._epoch += 1
            rng = np.random.default_rng(generator_seed(self.settings.seed, ORDER, self._epoch))
            self._windows = epoch(self.settings.passages, self.bank, self.documents, rng)
            self._edges.append(self._edges[-1] + math.ceil(len(self._windows) / (o.batch * o.accumulate)))
        first, last = self._edges[-2], self._edges[-1]
        return self._windows, np.array_split(np.arange(len(self._windows)), last - first)[update - first]
