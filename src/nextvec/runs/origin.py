"""The data that a run was trained on."""

# Axes: M documents.

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank, row_hashes
from nextvec.errors import RunError
from nextvec.windows import Split

SKETCH = 16
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Origin:
    """The data that a run was trained on, in enough detail to refuse other data.

    Attributes:
        bank: fingerprint; bank_path: its folder.
        dim: width of the vectors.
        encoder: fingerprint of the encoder that made the vectors.
        parts: document ids of train, valid and test.
        trained_on: a sketch of the rows of every training document; a document that holds half of a sketch counts as
            trained on.
        decay: of the exponential mean that training started from.
        power: of the space that this mean is taken in; None for the raw rows.
    """

    bank: str
    bank_path: str
    dim: int
    encoder: str
    parts: dict[str, list[str]]
    trained_on: list[list[str]]
    decay: float
    power: float | None = None

    def split(self, bank: Bank, run: str) -> Split:
        """The documents of each part.

        Args:
            run: name of the run in messages.

        Raises:
            RunError: another bank.
        """
        if bank.fingerprint != self.bank:
            raise RunError(
                f"{bank.path or 'this bank'} is bank {bank.fingerprint[:12]}, {run} was trained on bank "
                f"{self.bank[:12]}; evaluate another bank whole, with --split all"
            )
        index = {name: m for m, name in enumerate(bank.ids)}
        if foreign := [name for part in self.parts.values() for name in part if name not in index]:
            raise RunError(f"{run} is damaged: its bank has no document {foreign[0]!r}")
        train, valid, test = (np.array(sorted(index[n] for n in self.parts[part]), dtype=np.int64) for part in PARTS)
        return Split(train, valid, test)

    def unseen(self, bank: Bank) -> Int64[np.ndarray, " M"]:
        """The documents of any bank whose rows the run was not trained on."""
        known = {name: n for n, sketch in enumerate(self.trained_on) for name in sketch}
        return np.array([m for m in range(bank.num_documents) if not self._trained_on(bank, m, known)], dtype=np.int64)

    def _trained_on(self, bank: Bank, m: int, known: dict[str, int]) -> bool:
        met = Counter(known[name] for name in set(_row_names(bank, m)) if name in known)
        return any(2 * count >= len(self.trained_on[n]) for n, count in met.items())


def document_sketch(bank: Bank, m: int) -> list[str]:
    """The smallest row hashes of a document (Broder 1997), which depend on neither its name nor its dtype."""
    return sorted(set(_row_names(bank, m)))[:SKETCH]


def _row_names(bank: Bank, m: int) -> list[str]:
    return [f"{h:016x}" for h in row_hashes(bank.document(m).astype(np.float16)).tolist()]
