"""Documents of ready vectors: arrays with lengths, tables in Python, and ``.npz`` files."""

# Axes: N rows, D width, M documents, W windows, T context.

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from nextvec.bank.documents import VectorDocument
from nextvec.bank.objects import array_of, ids_of, table_of
from nextvec.bank.ready_vectors import ready_vectors
from nextvec.errors import DataError
from nextvec.vectors import KINDS


def numpy_documents(vectors: Any, lengths: Any, ids: Any, where: str) -> Iterator[VectorDocument]:
    """Documents from one array and the number of rows of each.

    Args:
        vectors: [N, D] numbers: an array, a tensor, or lists.
        lengths: [M] whole numbers.
        ids: [M] strings or whole numbers, or None for numbers counted from 0.

    Raises:
        DataError: shapes that do not fit, empty documents, lengths that do not add up to the rows.
    """
    vectors, counts = array_of(vectors, where), array_of(lengths, f"{where}, lengths")
    if vectors.ndim != 2 or vectors.dtype.kind not in KINDS:
        shape = f"{list(vectors.shape)} of {vectors.dtype}"
        raise DataError(f"{where}: vectors have shape {shape}; want [rows, width] of floats or whole numbers")
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts):
        raise DataError(f"{where}: lengths must be a list of whole numbers, one per document")
    if (counts < 1).any():
        raise DataError(f"{where}: document {int((counts < 1).argmax())} has {int(counts.min())} rows; each needs at least one")
    if counts.sum() != len(vectors):
        raise DataError(f"{where}: lengths add up to {int(counts.sum()):,} but there are {len(vectors):,} vectors")
    names = [f"{m:06d}" for m in range(len(counts))] if ids is None else ids_of(ids, where)
    if len(names) != len(counts):
        raise DataError(f"{where}: {len(names)} ids for {len(counts)} documents")
    stops = np.cumsum(counts)
    for name, start, stop in zip(names, stops - counts, stops, strict=True):
        yield VectorDocument(name, name, vectors[start:stop])


def documents_of(vectors: Any, lengths: Any, ids: Any, encoder: str) -> tuple[Iterator[VectorDocument], str]:
    """The documents of arrays or of a table, and the encoder's name; arguments as of :meth:`~nextvec.bank.Bank.from_numpy`.

    Raises:
        DataError: arguments that do not fit together, or vectors that cannot be used.
    """
    if lengths is not None:
        return numpy_documents(vectors, lengths, ids, "the array"), encoder
    table = table_of(vectors, "the table")
    if table is None:
        raise DataError(
            f"cannot make a bank of {type(vectors).__name__} alone: give lengths, the rows of each document, "
            "or a table with columns vector, document and index"
        )
    if ids is not None:
        raise DataError("the table names its documents in column 'document'; ids are for arrays with lengths")
    found = ready_vectors(table, None if encoder == "unknown" else encoder)
    return found.documents(), found.provenance.encoder


@dataclass(frozen=True)
class NpzFile:
    """The readable arrays of a ``.npz``; ``documents`` may be called more than once.

    Attributes:
        encoder: name of the encoder, or None if the file has no ``encoder``.
        unread: names of arrays that were left out.
    """

    where: str
    arrays: dict[str, np.ndarray]
    encoder: str | None
    unread: list[str]

    def documents(self) -> Iterator[VectorDocument]:
        if "vectors" in self.arrays:
            ids = np.atleast_1d(self.arrays["ids"]) if "ids" in self.arrays else None
            return numpy_documents(self.arrays["vectors"], self.arrays["lengths"], ids, self.where)
        contexts, targets = self.arrays["context_sequences"], self.arrays["target_vectors"]
        if contexts.ndim != 3 or targets.shape != (contexts.shape[0], contexts.shape[2]):
            raise DataError(f"{self.where}: context_sequences {contexts.shape} and target_vectors {targets.shape} do not fit")
        whole = np.concatenate([contexts, targets[:, None]], axis=1).reshape(-1, contexts.shape[2])
        return numpy_documents(whole, [contexts.shape[1] + 1] * len(contexts), None, self.where)


def open_npz(path: Path) -> NpzFile:
    """A ``.npz`` of ``vectors`` and ``lengths`` (``ids``, ``encoder`` optional), or of the predecessor's windows.

    The predecessor's files hold ``context_sequences`` [W, T, D] and
    ``target_vectors`` [W, D]. Each window becomes one document of T + 1 rows,
    because such a file does not state which windows overlap.

    Raises:
        DataError: not an ``.npz``, pickled content, or neither set of arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            windows = {"context_sequences", "target_vectors"} <= names
            wanted = {"context_sequences", "target_vectors"} if windows else {"vectors", "lengths", "ids", "encoder"} & names
            arrays = {name: file[name] for name in sorted(wanted)}
    except (BadZipFile, ValueError, OSError, EOFError, AttributeError, TypeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as .npz without pickles: {error}") from None
    if not windows and not {"vectors", "lengths"} <= arrays.keys():
        raise DataError(
            f"{path} holds {', '.join(sorted(names)) or 'nothing'}; want vectors and lengths, "
            "or context_sequences and target_vectors"
        )
    encoder = arrays.pop("encoder", None)
    if encoder is not None and (encoder.size != 1 or encoder.dtype.kind != "U"):
        raise DataError(f"{path}: encoder is {encoder.dtype} of shape {list(encoder.shape)}; want one string")
    return NpzFile(str(path), arrays, None if encoder is None else str(encoder.item()), sorted(names - wanted))
