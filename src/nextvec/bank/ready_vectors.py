"""Documents from tables of ready vectors: the keys give the order, and memory stays bounded."""

# Axes: N rows, D width, T rows of one document.

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int32

from nextvec.bank.documents import Dtype, VectorDocument
from nextvec.bank.table import BATCH, Order, Table, matrix, one_title, order_of, strings
from nextvec.errors import DataError
from nextvec.progress import Progress, silent

METADATA = b"nextvec"  # key of the schema's metadata; its value is a JSON object of the fields of Provenance


@dataclass(frozen=True)
class Provenance:
    """The encoder and the chunking of the vectors of a table, as far as the table states them.

    Attributes:
        encoder, encoder_fingerprint: ``unknown`` if the source does not state them; a name alone is its own fingerprint.
        chunking: how their text was cut, in words.
        max_tokens: the most tokens of a chunk that the encoder reads.
        dtype: dtype of the bank that the vectors were exported from, or None.
        as_they_come: whether documents keep the order of their first rows, as an exported bank needs.
    """

    encoder: str = "unknown"
    encoder_fingerprint: str = "unknown"
    chunking: str = "none"
    max_tokens: int | Literal["any"] | None = None
    dtype: Dtype | None = None
    as_they_come: bool = False


UNKNOWN = Provenance()


@dataclass(frozen=True)
class ReadyVectors:
    """A table of ready vectors whose order is known. ``documents`` may be called more than once.

    Attributes:
        scratch: a folder for a temporary file without a name, where rows out of order are sorted; None sorts in memory.
    """

    table: Table
    order: Order
    provenance: Provenance
    has_text: bool
    scratch: Path | None
    progress: Progress = silent

    def documents(self) -> Iterator[VectorDocument]:
        """Documents in the order of the bank.

        Raises:
            DataError: a vector, a title or a text that cannot be used; names document and row.
        """
        parts = self._as_they_lie() if self.order.rows is None else self._in_order(self.order.rows)
        done, total = 0, int(self.order.lengths.sum())
        for name, pieces in zip(
            self.order.ids, _by_document(parts, self.order.lengths.tolist(), self.table.where), strict=True
        ):
            yield _document(name, pieces, self.table.where)
            done += sum(len(piece.vectors) for piece in pieces)
            self.progress("reading vectors", done, total)

    def _as_they_lie(self) -> Iterator["_Part"]:
        columns = self.table.columns_of(("document", "vector", "title", "text", "tokens"))
        row, width = 0, None
        for batch in self.table.batches(columns):
            vectors = _vectors(batch, self.table.where, row, width)
            yield _part(vectors, batch, self.table.where, row)
            row, width = row + batch.num_rows, vectors.shape[1]

    def _in_order(self, rows: np.ndarray) -> Iterator["_Part"]:
        kept = self.table.columns_of(("title", "text", "tokens"))
        beside: list[pa.RecordBatch] = []
        vectors = _kept(self._all_vectors(kept, beside), len(rows), self.scratch)
        if len(vectors) != len(rows):
            raise DataError(f"{self.table.where} changed while it was read")
        others = pa.Table.from_batches(beside).combine_chunks().take(pa.array(rows)) if kept else None
        for start in range(0, len(rows), BATCH):
            block = others.slice(start, BATCH).combine_chunks().to_batches()[0] if others is not None else None
            yield _part(vectors[rows[start : start + BATCH]], block, self.table.where, start)

    def _all_vectors(self, kept: list[str], beside: list[pa.RecordBatch]) -> Iterator[np.ndarray]:
        """Vectors as they lie; the ``kept`` columns of the same rows are added to ``beside``."""
        row, width, total = 0, None, int(self.order.lengths.sum())
        for batch in self.table.batches(["document", "vector", *kept]):
            vectors = _vectors(batch, self.table.where, row, width)
            beside.append(_plain(batch.select(kept), self.table.where, row))
            yield vectors
            row, width = row + len(vectors), vectors.shape[1]
            self.progress("sorting rows", row, total)


def ready_vectors(
    table: Table, encoder_name: str | None = None, scratch: Path | None = None, progress: Progress = silent
) -> ReadyVectors:
    """Read the keys of a table with ``vector``, ``document`` and ``index``, and the provenance of its vectors.

    Args:
        encoder_name: name of the encoder, if the table does not state it.
        scratch: a folder for temporary files; None keeps everything in memory.

    Raises:
        DataError: the order or the encoder is not clear.
    """
    table.columns_of(("document", "index", "vector", "title", "text", "tokens", "encoder"))
    provenance = provenance_of(table, encoder_name)
    order = order_of(table, provenance.as_they_come)
    return ReadyVectors(table, order, provenance, "text" in table.names, scratch, progress)


@dataclass(frozen=True)
class _Part:
    """Some rows in the order of the bank, with their titles, texts and tokens."""

    vectors: Float[np.ndarray, "T D"]
    titles: Sequence[str | None] | None
    texts: Sequence[str | None] | None
    tokens: Int32[np.ndarray, " T"] | None

    def cut(self, start: int, stop: int) -> "_Part":
        titles = self.titles[start:stop] if self.titles is not None else None
        texts = self.texts[start:stop] if self.texts is not None else None
        return _Part(self.vectors[start:stop], titles, texts, self.tokens[start:stop] if self.tokens is not None else None)


def _by_document(parts: Iterator[_Part], lengths: list[int], where: str) -> Iterator[list[_Part]]:
    """The parts of each document; a part is cut where a document ends."""
    document, left, pieces = 0, lengths[0], list[_Part]()
    for part in parts:
        start = 0
        while start < len(part.vectors):
            if document == len(lengths):
                raise DataError(f"{where} changed while it was read")
            stop = min(start + left, len(part.vectors))
            pieces.append(part.cut(start, stop))
            left -= stop - start
            start = stop
            if not left:
                yield pieces
                document, pieces = document + 1, []
                left = lengths[document] if document < len(lengths) else 0
    if document < len(lengths):
        raise DataError(f"{where} changed while it was read")


def _document(name: str, pieces: list[_Part], where: str) -> VectorDocument:
    vectors = np.concatenate([piece.vectors for piece in pieces]) if len(pieces) > 1 else pieces[0].vectors
    title = one_title((title for piece in pieces for title in piece.titles or ()), name, where)
    if pieces[0].texts is None:
        return VectorDocument(name, title, vectors)
    texts = [text or "" for piece in pieces for text in piece.texts or ()]
    stops = np.cumsum([len(text) + 1 for text in texts]) - 1  # a line break between two
    spans = list(zip([0, *(stops[:-1] + 1).tolist()], stops.tolist(), strict=True))
    tokens = (
        np.concatenate([piece.tokens for piece in pieces if piece.tokens is not None]) if pieces[0].tokens is not None else None
    )
    return VectorDocument(name, title, vectors, "\n".join(texts), spans, tokens)


def _vectors(batch: pa.RecordBatch, where: str, row: int, width: int | None) -> Float[np.ndarray, "N D"]:
    documents = strings(batch.column("document"), "document", where, row)
    return matrix(batch.column("vector"), documents, where, row, width)


def _plain(batch: pa.RecordBatch, where: str, row: int) -> pa.RecordBatch:
    """Titles and texts as strings, tokens as 32-bit whole numbers."""
    columns: list[pa.Array] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name != "tokens":
            columns.append(strings(column, name, where, row, missing=True, numbers=name == "title"))
        elif not pa.types.is_integer(column.type) or column.null_count:
            raise DataError(f"{where}: column 'tokens' is {column.type}; want a whole number in every row")
        else:
            columns.append(column.cast(pa.int32()))
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _part(vectors: np.ndarray, batch: pa.RecordBatch | None, where: str, row: int) -> _Part:
    names: list[str] = [] if batch is None else [name for name in ("title", "text", "tokens") if name in batch.schema.names]
    if batch is None or not names:
        return _Part(vectors, None, None, None)
    held = _plain(batch.select(names), where, row)
    titles, texts = (held.column(name).to_pylist() if name in names else None for name in ("title", "text"))
    return _Part(vectors, titles, texts, held.column("tokens").to_numpy() if "tokens" in names else None)


def _kept(blocks: Iterator[np.ndarray], count: int, folder: Path | None) -> Float[np.ndarray, "N D"]:
    """Blocks joined to one array: in memory, or mapped from an unnamed file that disappears with the process."""
    first = next(blocks)
    if folder is None:
        held = np.empty((count, first.shape[1]), first.dtype)
        stop = 0
        for block in chain([first], blocks):
            held[stop : stop + len(block)] = block
            stop += len(block)
        return held[:stop]
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in chain([first], blocks):
            file.write(np.ascontiguousarray(block).data)
        file.flush()
        return np.memmap(file, first.dtype, "r", shape=(file.tell() // first[0].nbytes, first.shape[1]))


def provenance_of(table: Table, encoder_name: str | None = None) -> Provenance:
    """The provenance from the metadata, the ``encoder`` column and the user, which must agree."""
    said = _from_metadata(table)
    for name, how in ((_from_column(table), "its column 'encoder'"), (encoder_name, "the encoder's name given")):
        if name is None or name == said.encoder:
            continue
        if said.encoder != "unknown":
            raise DataError(f"{table.where}: its vectors are of {said.encoder!r}, but {how} says {name!r}")
        said = replace(said, encoder=name, encoder_fingerprint=name)
    return said


def _from_metadata(table: Table) -> Provenance:
    raw = (table.schema.metadata or {}).get(METADATA)
    if raw is None:
        return UNKNOWN
    try:
        facts = dict(json.loads(raw))
    except (ValueError, TypeError) as error:
        raise DataError(f"{table.where}: metadata 'nextvec' is not a JSON object: {error}") from None
    encoder = facts.get("encoder", "unknown")
    fingerprint, chunking = facts.get("encoder_fingerprint", encoder), facts.get("chunking", "none")
    dtype, most = facts.get("dtype"), facts.get("max_tokens")
    sound = all(isinstance(value, str) for value in (encoder, fingerprint, chunking)) and dtype in (None, "float16", "float32")
    if not sound or not (most in (None, "any") or (isinstance(most, int) and most > 0)):
        raise DataError(f"{table.where}: metadata 'nextvec' is damaged; want strings encoder, encoder_fingerprint, chunking")
    return Provenance(encoder, fingerprint, chunking, most, dtype, facts.get("order") == "rows")


def _from_column(table: Table) -> str | None:
    if "encoder" not in table.names:
        return None
    found: dict[str, None] = {}
    row = 0
    for batch in table.batches(["encoder"]):
        names = strings(batch.column("encoder"), "encoder", table.where, row)
        found.update(dict.fromkeys(names.unique().to_pylist()))
        row += batch.num_rows
        if len(found) > 1:
            first, second, *_ = found
            raise DataError(f"{table.where}: vectors of two encoders, {first!r} and {second!r}; a bank holds those of one")
    return next(iter(found), None)
