"""Predictions for files of contexts: streamed, several documents as one batch, resumed after an interruption."""

# Axes: B documents, T positions, D width, W width of an output, E width of a candidate, P predictions, K neighbours.

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float32
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.layout import MANIFEST, read_json, write_atomically
from nextvec.bank.table import Table, matrix, strings
from nextvec.errors import DataError, RunError
from nextvec.inference.engine import Engine
from nextvec.ingestion.files import open_parquet
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent
from nextvec.vectors import unit_rows

At = Literal["every", "last"]
POSITIONS = 8_192  # of one batch
PART = 20_000  # predictions of one part, about; the most that an interruption loses
QUERIES = 256  # of one search
SETTINGS, KEY = "settings.json", b"nextvec"


@dataclass(frozen=True)
class ContextDocument:
    """One document of the input: its name, and the index and unit vector of each of its rows."""

    name: str
    index: np.ndarray
    rows: Float32[np.ndarray, "T D"]


@torch.inference_mode()
def predict_file(
    engine: Engine,
    source: Path,
    out: Path,
    k: int = 5,
    at: At = "every",
    vectors: bool = False,
    progress: Progress = silent,
) -> dict[str, int]:
    """Write the predictions for every document of a file, as Parquet.

    Columns: ``document``; ``index`` of the last vector read; ``expected``, the
    distinct vectors of the bank, best first, each by its first row, without
    those that the document held before; ``score``; ``probability`` of each, null
    without a calibration; ``count``, the number of rows with that vector;
    ``item``, their ids, of a bank of items; ``text`` if the bank has text; ``vector`` on request:
    the prediction in the model's space; of several queries their weighted mean,
    of unit length. Finished parts are kept beside ``out`` until all are done.
    The same call continues from them.

    Args:
        source: a bank, or Parquet with ``document``, ``index`` and ``vector``, one document after another.
        at: predict after every vector, or after the last vector of each document.

    Returns:
        Number of documents and predictions written.

    Raises:
        DataError: the source cannot be read, or ``out`` or its parts belong to another input or other settings.
        RunError: a prediction is not finite.
    """
    settings = _settings(engine, source, k, at, vectors)
    if out.exists():
        return _written(out, settings)
    parts = out.with_name(f".{out.name}.parts")
    _begin(parts, settings)
    total = _documents(source)
    files, done = _finished(parts)
    documents = done
    for number, group in enumerate(_groups(_contexts(source, engine.dim), done, at), len(files)):
        table = _table(engine, group, k, at, vectors)
        documents += len(group)
        file = parts / f"{number:06d}.parquet"
        temporary = file.with_suffix(".tmp")
        pq.write_table(table.replace_schema_metadata({KEY: str(documents).encode()}), temporary)
        os.replace(temporary, file)
        files.append(file)
        progress("documents", documents, total)
    _join(files, out, _schema(engine, vectors), settings, documents)
    shutil.rmtree(parts)
    return _written(out, settings)


def _settings(engine: Engine, source: Path, k: int, at: At, vectors: bool) -> str:
    """What the output depends on: parts of other settings are not continued."""
    facts = {
        "model": engine.digest,
        "bank": engine.bank.fingerprint,
        "source": _identity(source),
        "k": k,
        "at": at,
        "vectors": vectors,
        "candidates": "distinct",
        "calibration": None if engine.confidence is None else asdict(engine.confidence.calibration),
    }
    return json.dumps(facts, sort_keys=True)


def _groups(contexts: Iterator[ContextDocument], done: int, at: At) -> Iterator[list[ContextDocument]]:
    """Groups of documents with about ``PART`` predictions each, without the first ``done`` documents."""
    group: list[ContextDocument] = []
    count = 0
    for n, context in enumerate(contexts):
        if n < done:
            continue
        group.append(context)
        count += len(context.rows) if at == "every" else 1
        # The vectors are bounded too: with at="last", a part could hold any number of them.
        if count >= PART or sum(len(held.rows) for held in group) >= 4 * PART:
            yield group
            group, count = [], 0
    if group:
        yield group


def _table(engine: Engine, group: list[ContextDocument], k: int, at: At, vectors: bool) -> pa.Table:
    predicted = _predicted(engine.model, group, at)
    if not all(np.isfinite(rows).all() for rows in predicted):
        raise RunError("the model's prediction is not finite (NaN or infinity); the model is broken")
    outputs = np.concatenate(predicted)
    excluded = [rows for context in group for rows in _seen(engine, context, at)]
    lengths = [np.arange(1, len(context.rows) + 1) for context in group]
    read = np.concatenate([length[-len(part) :] for length, part in zip(lengths, predicted, strict=True)])
    rows, scores = np.empty((len(outputs), k), np.int64), np.empty((len(outputs), k), np.float32)
    probabilities: list[list[float | None]] = []
    together = max(1, QUERIES // engine.model.num_queries)
    for first in range(0, len(outputs), together):
        block = slice(first, first + together)
        found, probable = engine.search(outputs[block], k, read[block], excluded[block])
        rows[block], scores[block] = found.rows, found.scores
        probabilities += probable
    numbers = engine.bank.distinct.numbers
    own = (rows >= 0) & (rows < len(numbers))  # other rows were added to the index
    counts = np.where(own, engine.bank.distinct.counts[numbers[np.where(own, rows, 0)]], 1).tolist()
    held = [[row for row in line if row >= 0] for line in rows.tolist()]
    columns: list[Any] = [
        pa.array([context.name for context, part in zip(group, predicted, strict=True) for _ in part]),
        pa.array(np.concatenate([context.index[-len(part) :] for context, part in zip(group, predicted, strict=True)])),
        pa.array(held, pa.list_(pa.int64())),
        pa.array([line[: len(kept)] for line, kept in zip(scores.tolist(), held, strict=True)], pa.list_(pa.float32())),
        pa.array([line[: len(kept)] for line, kept in zip(probabilities, held, strict=True)], pa.list_(pa.float64())),
        pa.array([line[: len(kept)] for line, kept in zip(counts, held, strict=True)], pa.list_(pa.int64())),
    ]
    names = engine.bank.table.names
    if names is not None:
        items = [[names[row][0] if row < len(names) else None for row in line] for line in held]
        columns.append(pa.array(items, pa.list_(pa.string())))
    if engine.bank.manifest.text:
        texts = [[engine.bank.table.text(row) for row in line] for line in held]
        columns.append(pa.array(texts, pa.list_(pa.string())))
    if vectors:
        means = _vectors(engine.model, outputs)
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(means.reshape(-1)), engine.model.width))
    return pa.Table.from_arrays(columns, schema=_schema(engine, vectors))


def _vectors(model: Recurrent[Any], outputs: Float32[np.ndarray, "P W"]) -> Float32[np.ndarray, "P E"]:
    """Each prediction as one vector."""
    return outputs if model.num_queries == 1 else model.queries(torch.from_numpy(outputs)).mean().numpy()


def _predicted(model: Recurrent[Any], group: list[ContextDocument], at: At) -> list[Float32[np.ndarray, "P W"]]:
    """The predictions for each document. Documents of similar length share a batch and are padded at their ends.

    A prediction does not depend on later positions, so the padding changes nothing.
    """
    out: list[np.ndarray | None] = [None] * len(group)
    order = sorted(range(len(group)), key=lambda n: len(group[n].rows))
    while order:
        longest = len(group[order[-1]].rows)
        batch = order[-max(1, POSITIONS // longest) :]
        del order[-len(batch) :]
        x_BTD = np.zeros((len(batch), longest, model.dim), np.float32)
        for b, n in enumerate(batch):
            x_BTD[b, : len(group[n].rows)] = group[n].rows
        y_BTW = _read(model, torch.from_numpy(x_BTD)).numpy()
        for b, n in enumerate(batch):
            length = len(group[n].rows)
            out[n] = y_BTW[b, :length] if at == "every" else y_BTW[b, length - 1 : length]
    return [rows for rows in out if rows is not None]


def _read(model: Recurrent[Any], x_BTD: Tensor) -> Tensor:
    """``model(x)`` in segments, which bounds memory for documents of any length."""
    state, parts = model.start(len(x_BTD)), []
    for segment_BTD in x_BTD.split(max(1, POSITIONS // len(x_BTD)), dim=1):
        state, y_BTW = model.run(state, segment_BTD)
        parts.append(y_BTW)
    return torch.cat(parts, dim=1)


def _seen(engine: Engine, context: ContextDocument, at: At) -> list[np.ndarray]:
    """For each prediction, the vectors of the bank that its document held up to there, each by its first row."""
    found = engine.bank.distinct.find(context.rows)
    places = np.flatnonzero(found >= 0)
    _, first = np.unique(found[places], return_index=True)
    places = np.sort(places[first])  # where each occurs first
    rows = found[places]
    if at == "last":
        return [rows]
    return [rows[:count] for count in np.searchsorted(places, np.arange(len(context.rows)), side="right").tolist()]


def _contexts(source: Path, dim: int) -> Iterator[ContextDocument]:
    if (source / MANIFEST).exists():
        bank = Bank.open(source)
        for m, name in enumerate(bank.ids):
            yield ContextDocument(name, np.arange(len(bank.document(m))), unit_rows(bank.document(m), dim))
        return
    yield from _parquet_contexts(source, dim)


def _parquet_contexts(source: Path, dim: int) -> Iterator[ContextDocument]:
    """The documents of a Parquet file, one at a time. Its rows must be sorted by document and index."""
    name, finished = "", set[str]()
    places: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    for document, index, rows in _parquet_parts(source):
        if places and document != name:
            yield _context(source, name, np.concatenate(places), np.concatenate(vectors), dim)
            finished.add(name)
            places, vectors = [], []
        if not places and document in finished:
            raise DataError(f"{source}: document {document!r} continues after another began; sort by document and index")
        known = np.concatenate([places[-1][-1:], index]) if places else index
        falls = np.flatnonzero(known[1:] <= known[:-1])
        if len(falls):
            at = int(falls[0])
            raise DataError(
                f"{source}: document {document!r} has index {known[at + 1]} after {known[at]}; sort by document and index"
            )
        name = document
        places.append(index)
        vectors.append(rows)
    if places:
        yield _context(source, name, np.concatenate(places), np.concatenate(vectors), dim)


def _parquet_parts(source: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Consecutive rows of one document: its name, indices and vectors."""
    table = _opened(source)
    first, width = 0, None
    for batch in table.batches(["document", "index", "vector"]):
        documents = strings(batch.column("document"), "document", table.where, first)
        index = batch.column("index")
        if index.null_count:
            row = first + int(np.asarray(index.is_null()).argmax())
            raise DataError(f"{source}, row {row}: no index; every row needs one")
        rows = matrix(batch.column("vector"), documents, table.where, first, width)
        for start, stop in pairwise(_runs(documents)):
            yield documents[start].as_py(), index.to_numpy()[start:stop].astype(np.int64), rows[start:stop]
        first, width = first + len(rows), rows.shape[1]


def _runs(documents: pa.Array) -> list[int]:
    """The start of each run of equal names, and the end of the last."""
    codes = documents.dictionary_encode().indices.to_numpy()
    return [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)] if len(codes) else []


def _context(source: Path, name: str, index: np.ndarray, vectors: np.ndarray, dim: int) -> ContextDocument:
    if vectors.shape[1] != dim:
        raise DataError(f"{source}, document {name!r}: vectors are {vectors.shape[1]} wide; the model reads {dim}")
    return ContextDocument(name, index, unit_rows(vectors, dim, f"{source}, document {name!r}, "))


def _opened(source: Path) -> Table:
    if not source.is_file():
        raise DataError(f"{source} is neither a bank nor a Parquet file")
    table = open_parquet(source)
    columns = table.columns_of(("document", "index", "vector"))
    missing = [name for name in ("document", "index", "vector") if name not in columns]
    if missing:
        raise DataError(f"{source}: no column {missing[0]!r}; columns are {', '.join(table.names)}")
    if not pa.types.is_integer(table.schema.field("index").type):
        raise DataError(f"{source}: index is {table.schema.field('index').type}; want whole numbers")
    return table


def _identity(source: Path) -> str:
    """An identifier of the input: a bank's fingerprint, or a digest of a file's name, size and time."""
    if (source / MANIFEST).exists():
        return Bank.open(source).fingerprint
    _opened(source)
    facts = source.stat()
    return hashlib.sha256(f"{source.name} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()


def _documents(source: Path) -> int:
    """Number of documents, for the progress bar."""
    if (source / MANIFEST).exists():
        return Bank.open(source).num_documents
    count, rows, last = 0, 0, None
    for batch in _opened(source).batches(["document"]):
        documents = strings(batch.column("document"), "document", str(source), rows)
        starts = _runs(documents)[:-1]
        count += len(starts) - (bool(starts) and documents[0].as_py() == last)
        rows, last = rows + len(documents), documents[-1].as_py() if len(documents) else last
    return count


def _begin(parts: Path, settings: str) -> None:
    kept = parts / SETTINGS
    if kept.exists() and json.dumps(read_json(kept), sort_keys=True) != settings:
        raise DataError(f"{parts} holds parts of another input or of other settings; remove it to start again")
    parts.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, settings)


def _finished(parts: Path) -> tuple[list[Path], int]:
    """The finished parts, in order, and the number of their documents."""
    files = sorted(parts.glob("*.parquet"))
    if not files:
        return [], 0
    return files, int(pq.read_schema(files[-1]).metadata[KEY])


def _join(files: list[Path], out: Path, schema: pa.Schema, settings: str, documents: int) -> None:
    schema = schema.with_metadata({KEY: json.dumps({"settings": settings, "documents": documents}).encode()})
    temporary = out.with_name(f".{out.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for file in files:
            writer.write_table(pq.read_table(file).cast(schema))
    os.replace(temporary, out)


def _written(out: Path, settings: str) -> dict[str, int]:
    """Number of documents and predictions of a finished output.

    Raises:
        DataError: the output was not written by this command, or with other settings.
    """
    try:
        file = pq.ParquetFile(out)
        facts = json.loads((file.schema_arrow.metadata or {})[KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise DataError(f"{out} exists and was not written by this command; name another file") from None
    if facts["settings"] != settings:
        raise DataError(f"{out} holds predictions of another input or other settings; name another file")
    return {"documents": int(facts["documents"]), "predictions": file.metadata.num_rows}


def _schema(engine: Engine, vectors: bool) -> pa.Schema:
    fields = [
        ("document", pa.string()),
        ("index", pa.int64()),
        ("expected", pa.list_(pa.int64())),
        ("score", pa.list_(pa.float32())),
        ("probability", pa.list_(pa.float64())),
        ("count", pa.list_(pa.int64())),
    ]
    fields += [("item", pa.list_(pa.string()))] if engine.bank.table.names is not None else []
    fields += [("text", pa.list_(pa.string()))] if engine.bank.manifest.text else []
    fields += [("vector", pa.list_(pa.float32(), engine.model.width))] if vectors else []
    return pa.schema(fields)
