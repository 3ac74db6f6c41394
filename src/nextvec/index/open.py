"""Whatever kind of index lies in a folder."""

from pathlib import Path

from nextvec.bank import Bank
from nextvec.index.approximate import ApproximateIndex
from nextvec.index.exact import ExactIndex
from nextvec.index.layout import Manifest

Index = ExactIndex | ApproximateIndex


def open_index(folder: str | Path, bank: Bank) -> Index:
    """The index in a folder, of this bank.

    Raises:
        DataError: as :meth:`ExactIndex.open` and :meth:`ApproximateIndex.open`.
    """
    kind = ExactIndex if Manifest.read(Path(folder)).kind == ExactIndex.KIND else ApproximateIndex
    return kind.open(folder, bank)
