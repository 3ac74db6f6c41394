"""Banks as files of other programs: Parquet, and the predecessor's windows."""

# Axes: W windows, T context, D width.

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.stride_tricks import sliding_window_view

from nextvec.bank.bank import Bank
from nextvec.bank.vector_table import METADATA
from nextvec.errors import DataError
from nextvec.progress import Progress, silent

BATCH_ROWS = 10_000


def reader(bank: Bank) -> pa.RecordBatchReader:
    """``document``, ``title``, ``index``, ``vector`` and, where there is text, ``text`` and ``tokens``, in batches of rows.

    The schema's metadata name the encoder and state that documents are in the
    order of the bank, so that ``ingest`` makes the same bank of the rows.
    """
    width = pa.list_(pa.float16() if bank.manifest.dtype == "float16" else pa.float32(), bank.dim)
    fields = [("document", pa.string()), ("title", pa.string()), ("index", pa.int64()), ("vector", width)]
    fields += [("text", pa.string())] if bank.manifest.text else []
    fields += [("tokens", pa.int32())] if bank.tokens is not None else []
    m = bank.manifest
    kept = ("encoder", "encoder_fingerprint", "chunking", "max_tokens", "dtype", "fingerprint")
    made = {name: getattr(m, name) for name in kept}
    schema = pa.schema(fields, {METADATA: json.dumps({**made, "order": "rows"}).encode()})
    return pa.RecordBatchReader.from_batches(schema, _batches(bank, schema))


def _batches(bank: Bank, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    tokens = bank.tokens
    for start in range(0, len(bank), BATCH_ROWS):
        rows = np.arange(start, min(start + BATCH_ROWS, len(bank)))
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
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def write_parquet(bank: Bank, path: Path, progress: Progress = silent) -> None:
    """Write the rows of :func:`reader` as Parquet."""
    rows, written = reader(bank), 0
    temporary = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, rows.schema) as writer:
        for batch in rows:
            writer.write_batch(batch)
            written += batch.num_rows
            progress("writing rows", written, len(bank))
    os.replace(temporary, path)


def write_windows(bank: Bank, path: Path, context: int, stride: int | None = None) -> int:
    """Write the predecessor's ``.npz`` and return the number of windows; none crosses a document.

    Every row is written about ``context / stride`` times, so use this format only
    to exchange data with the predecessor. ``stride`` defaults to half the context,
    as in the predecessor's exporter.

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
