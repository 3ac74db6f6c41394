"""Opens a saved index of any kind."""

from pathlib import Path

from nextvec.bank import Bank
from nextvec.index.approximate import ApproximateIndex
from nextvec.index.exact import ExactIndex
from nextvec.index.layout import IndexManifest
from nextvec.index.protocol import Index

KINDS: dict[str, type[ExactIndex] | type[ApproximateIndex]] = {
    ExactIndex.KIND: ExactIndex,
    ApproximateIndex.KIND: ApproximateIndex,
}


def open_index(folder: str | Path, bank: Bank) -> Index:
    """The index of ``bank`` in a folder.

    Raises:
        DataError: as :meth:`ExactIndex.open` and :meth:`ApproximateIndex.open`.
    """
    return KINDS[IndexManifest.read(Path(folder)).kind].open(folder, bank)
