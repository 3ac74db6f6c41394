"""The kinds of index, and the function that opens a saved index of any kind."""

from pathlib import Path

from nextvec.bank import Bank
from nextvec.errors import DataError
from nextvec.index.approximate import ApproximateIndex
from nextvec.index.exact import ExactIndex
from nextvec.index.layout import MANIFEST, IndexManifest
from nextvec.index.protocol import Index, RowMap

# Each kind has `build(bank, form, threads, progress, mapping)`, `open(folder, bank, threads, mapping)`
# and the methods of Index.
# `--kind` in cli/verbs/banks.py names the kinds again, because `nextvec --help` must not import torch.
KINDS = {
    ExactIndex.KIND: ExactIndex,
    ApproximateIndex.KIND: ApproximateIndex,
}


def open_index(folder: str | Path, bank: Bank, threads: int | None = None, mapping: RowMap | None = None) -> Index:
    """The index of ``bank`` in a folder.

    Args:
        threads: number that read at the same time; torch's number if None.
        mapping: the map of rows that the index was built with.

    Raises:
        DataError: an unknown kind, or as :meth:`ExactIndex.open` and :meth:`ApproximateIndex.open`.
    """
    folder = Path(folder)
    kind = IndexManifest.read(folder).kind
    if kind not in KINDS:
        raise DataError(f"{folder / MANIFEST} is damaged: no index has the kind {kind!r}; build the index again")
    return KINDS[kind].open(folder, bank, threads, mapping)
