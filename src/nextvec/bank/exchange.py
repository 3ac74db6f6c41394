"""Ready vectors as arrays, and banks as files: NumPy, Parquet, the predecessor's windows."""

# Axes: N rows, D width, M documents, W windows, T context.

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.stride_tricks import sliding_window_view

from nextvec.bank.bank import Bank
from nextvec.bank.objects import array_of, ids_of, table_of
from nextvec.bank.vector_table import METADATA, vector_table
from nextvec.bank.writer import VectorDocument, in_memory
from nextvec.errors import DataError
from nextvec.progress import Progress, silent
from nextvec.vectors import KINDS

PARQUET_ROWS = 10_000


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


def in_memory_of(vectors: Any, lengths: Any, ids: Any, encoder: str) -> Bank:
    """What :meth:`Bank.from_numpy` makes of its arguments; see there."""
    if lengths is not None:
        return in_memory(numpy_documents(vectors, lengths, ids, "the array"), encoder=encoder)
    table = table_of(vectors, "the table")
    if table is None:
        raise DataError(
            f"cannot make a bank of {type(vectors).__name__} alone: give lengths, the rows of each document, "
            "or a table with columns vector, document and index"
        )
    if ids is not None:
        raise DataError("the table names its documents in column 'document'; ids are for arrays with lengths")
    found = vector_table(table, None if encoder == "unknown" else encoder)
    return in_memory(found.documents(), encoder=found.provenance.encoder)


@dataclass(frozen=True)
class NpzFile:
    """The arrays of a ``.npz`` that can be read; ``documents`` may be called more than once.

    Attributes:
        encoder: what made the vectors, where the file has an ``encoder``.
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
    ``target_vectors`` [W, D]: each window becomes one document of T + 1 rows,
    because nothing in such a file says which windows overlap.

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


def write_parquet(bank: Bank, path: Path, progress: Progress = silent) -> None:
    """Write ``document``, ``title``, ``index``, ``vector`` and, where there is text, ``text`` and ``tokens``.

    What made the vectors, and that documents come in the order of the bank,
    stands in the schema's metadata: ``ingest`` makes the same bank of the file.
    """
    width = pa.list_(pa.float16() if bank.manifest.dtype == "float16" else pa.float32(), bank.dim)
    fields = [("document", pa.string()), ("title", pa.string()), ("index", pa.int64()), ("vector", width)]
    tokens = bank.tokens
    fields += [("text", pa.string())] if bank.manifest.text else []
    fields += [("tokens", pa.int32())] if tokens is not None else []
    m = bank.manifest
    kept = ("encoder", "encoder_fingerprint", "chunking", "max_tokens", "dtype", "fingerprint")
    made = {name: getattr(m, name) for name in kept}
    metadata = {METADATA: json.dumps({**made, "order": "rows"}).encode()}
    schema = pa.schema(fields, metadata)
    temporary = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(bank), PARQUET_ROWS):
            rows = np.arange(start, min(start + PARQUET_ROWS, len(bank)))
            owner = bank.document_of(rows)
            flat = pa.array(np.ascontiguousarray(bank.rows[rows]).reshape(-1))
            columns: list[Any] = [
                pa.array([bank.documents[m][0] for m in owner]),
                pa.array([bank.documents[m][1] for m in owner]),
                pa.array(rows - bank.offsets[owner]),
                pa.FixedSizeListArray.from_arrays(flat, bank.dim),
            ]
            if bank.manifest.text:
                columns.append(pa.array([bank.text(int(row)) for row in rows]))
            if tokens is not None:
                columns.append(pa.array(tokens[rows]))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            progress("writing rows", int(rows[-1]) + 1, len(bank))
    os.replace(temporary, path)


def write_windows(bank: Bank, path: Path, context: int, stride: int | None = None) -> int:
    """Write the predecessor's ``.npz`` and return the number of windows; none crosses a document.

    Every row is written about ``context / stride`` times: this format is for
    exchange, a bank needs none of it. ``stride`` defaults to half the context,
    as the predecessor's exporter did.

    Raises:
        DataError: no document is longer than ``context``.
    """
    step = stride or max(1, context // 2)
    contexts: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for m in range(bank.num_documents):
        rows = bank.document(m)
        if len(rows) > context:
            windows = sliding_window_view(rows, context + 1, axis=0)[::step].transpose(0, 2, 1)
            contexts.append(np.array(windows[:, :-1]))
            targets.append(np.array(windows[:, -1]))
    if not contexts:
        raise DataError(f"no document has more than {context} rows; the longest has {int(bank.lengths.max())}")
    temporary = path.with_name(f".{path.stem}.tmp.npz")
    np.savez_compressed(temporary, context_sequences=np.concatenate(contexts), target_vectors=np.concatenate(targets))
    os.replace(temporary, path)
    return sum(map(len, targets))
