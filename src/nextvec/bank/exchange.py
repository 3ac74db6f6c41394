"""Ready vectors in, and out again: NumPy, Parquet/Arrow, Hugging Face datasets, the predecessor's windows."""

# Axes: N rows, D width, M documents, W windows, T context.

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zipfile import BadZipFile

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nextvec.bank.bank import Bank
from nextvec.bank.writer import VectorDocument
from nextvec.errors import DataError
from nextvec.vectors import KINDS

PARQUET_ROWS = 10_000


@runtime_checkable
class Table(Protocol):
    """What a Hugging Face ``datasets.Dataset`` and a plain list of columns have in common."""

    column_names: list[str]

    def __getitem__(self, column: str, /) -> Sequence[Any]: ...


def numpy_documents(
    vectors: np.ndarray, lengths: Sequence[int] | np.ndarray, ids: Sequence[str] | None, where: str
) -> Iterator[VectorDocument]:
    """Documents from one array and the number of rows of each.

    Raises:
        DataError: shapes that do not fit, empty documents, lengths that do not add up to the rows.
    """
    if vectors.ndim != 2 or vectors.dtype.kind not in KINDS:
        shape = f"{list(vectors.shape)} of {vectors.dtype}"
        raise DataError(f"{where}: vectors have shape {shape}; want [rows, width] of floats or whole numbers")
    counts = np.asarray(lengths)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts):
        raise DataError(f"{where}: lengths must be a list of whole numbers, one per document")
    if (counts < 1).any():
        raise DataError(f"{where}: document {int((counts < 1).argmax())} has {int(counts.min())} rows; each needs at least one")
    if counts.sum() != len(vectors):
        raise DataError(f"{where}: lengths add up to {int(counts.sum()):,} but there are {len(vectors):,} vectors")
    names = [f"{m:06d}" for m in range(len(counts))] if ids is None else list(ids)
    if len(names) != len(counts):
        raise DataError(f"{where}: {len(names)} ids for {len(counts)} documents")
    stops = np.cumsum(counts)
    for name, start, stop in zip(names, stops - counts, stops, strict=True):
        yield VectorDocument(name, name, vectors[start:stop])


def npz_documents(path: Path) -> Iterator[VectorDocument]:
    """Documents from a ``.npz``: ``vectors`` and ``lengths`` (``ids`` optional), or the predecessor's windows.

    The predecessor's files hold ``context_sequences`` [W, T, D] and
    ``target_vectors`` [W, D]: each window becomes one document of T + 1 rows,
    because nothing in such a file says which windows overlap.

    Raises:
        DataError: not an ``.npz``, pickled content, or neither set of arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (BadZipFile, ValueError, OSError, EOFError, AttributeError, TypeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as .npz without pickles: {error}") from None
    if {"context_sequences", "target_vectors"} <= arrays.keys():
        contexts, targets = arrays["context_sequences"], arrays["target_vectors"]
        if contexts.ndim != 3 or targets.shape != (contexts.shape[0], contexts.shape[2]):
            raise DataError(f"{path}: context_sequences {contexts.shape} and target_vectors {targets.shape} do not fit")
        whole = np.concatenate([contexts, targets[:, None]], axis=1).reshape(-1, contexts.shape[2])
        return numpy_documents(whole, [contexts.shape[1] + 1] * len(contexts), None, str(path))
    if {"vectors", "lengths"} <= arrays.keys():
        ids = [str(name) for name in np.atleast_1d(arrays["ids"])] if "ids" in arrays else None
        return numpy_documents(arrays["vectors"], arrays["lengths"], ids, str(path))
    raise DataError(
        f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; want vectors and lengths, "
        "or context_sequences and target_vectors"
    )


def table_documents(columns: Mapping[str, Sequence[Any]] | Table, where: str) -> Iterator[VectorDocument]:
    """Documents from a table with columns ``vector``, ``document`` and ``index`` (``title`` optional).

    Rows may come in any order: (document, index) is the order.

    Raises:
        DataError: a missing column, an index twice, ragged vectors.
    """
    names = columns.column_names if not isinstance(columns, Mapping) else list(columns)
    missing = [name for name in ("vector", "document", "index") if name not in names]
    if missing:
        raise DataError(f"{where}: no column {missing[0]!r}; columns are {', '.join(names)}; order is never implied")
    documents = [str(name) for name in columns["document"]]
    if None in columns["document"]:
        raise DataError(f"{where}, row {documents.index('None')}: no document; order is never implied")
    try:
        index = np.asarray(columns["index"], dtype=np.int64)
        vectors = np.asarray(columns["vector"])
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: vectors must all be equally wide and indices whole numbers: {error}") from None
    ids, member = np.unique(documents, return_inverse=True)
    order = np.lexsort((index, member))
    twice = (member[order[1:]] == member[order[:-1]]) & (index[order[1:]] == index[order[:-1]])
    if twice.any():
        row = order[1:][twice][0]
        raise DataError(f"{where}: document {documents[row]!r} has index {index[row]} twice")
    stops = np.cumsum(np.bincount(member))
    for m, (name, stop) in enumerate(zip(ids.tolist(), stops.tolist(), strict=True)):
        rows = order[stops[m - 1] if m else 0 : stop]
        yield VectorDocument(name, name, vectors[rows])


def write_parquet(bank: Bank, path: Path) -> None:
    """Write ``document``, ``title``, ``index``, ``vector`` and, where there is text, ``text``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = pa.list_(pa.float16() if bank.manifest.dtype == "float16" else pa.float32(), bank.dim)
    fields = [("document", pa.string()), ("title", pa.string()), ("index", pa.int64()), ("vector", width)]
    schema = pa.schema(fields + ([("text", pa.string())] if bank.manifest.text else []))
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
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
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


__all__ = ["npz_documents", "numpy_documents", "table_documents", "write_parquet", "write_windows"]
