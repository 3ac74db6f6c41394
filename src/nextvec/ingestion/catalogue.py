"""The items of a table: their names, texts and ready vectors, block by block."""

# Axes: B items of a block, G of them with a vector, D width.

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from nextvec.bank.ready_vectors import Provenance, provenance_of
from nextvec.bank.table import ITEMS, Table, matrix, strings
from nextvec.errors import DataError
from nextvec.ingestion.text import blank, checked

GROUP = 512  # items of a block; those without a vector are encoded together


@dataclass(frozen=True)
class Block:
    """Some items as the table gives them.

    Attributes:
        names: (id, title) of each.
        texts: of each; empty where there is none.
        given: whether the item has a vector.
        vectors: [G, D] of those that have one; None where none has.
    """

    names: list[tuple[str, str]]
    texts: list[str]
    given: Bool[np.ndarray, " B"]
    vectors: Float[np.ndarray, "G D"] | None


@dataclass(frozen=True)
class Catalogue:
    """The items of a table, checked once.

    Attributes:
        blocks: each call yields all items in the order of the table, ``GROUP`` in a block.
        ids: of all items, in that order.
        width: of the given vectors; None where no item has one.
        encoded: number of items without a vector, whose text is encoded.
        example: one of them, for messages.
        has_text: whether any item has a text.
        provenance: the encoder of the given vectors.
        digest: of everything that the items hold.
    """

    blocks: Callable[[], Iterator[Block]]
    ids: list[str]
    width: int | None
    encoded: int
    example: str
    has_text: bool
    provenance: Provenance
    digest: str

    @staticmethod
    def read(items: Table, encoder_name: str | None = None) -> "Catalogue":
        """Read all items once.

        Args:
            encoder_name: name of the encoder of the given vectors, if the table does not state it.

        Raises:
            DataError: no items, an id twice or missing, an item with neither vector nor text, or a vector that cannot be read.
        """
        if "item" not in items.names:
            raise DataError(f"{items.where}: no column 'item'; columns are {', '.join(items.names)}; want {ITEMS.wanted}")
        ids: dict[str, None] = {}
        width, encoded, example, has_text, digest = None, 0, "", False, hashlib.sha256()
        for block in _blocks(items):
            for name, _ in block.names:
                if name in ids:
                    raise DataError(f"{items.where}: item {name!r} appears twice; give each item one row")
                ids[name] = None
            missing = np.flatnonzero(~block.given)
            encoded += len(missing)
            example = example or (block.names[missing[0]][0] if len(missing) else "")
            has_text = has_text or any(block.texts)
            digest.update(repr((block.names, block.texts)).encode())
            if block.vectors is not None:
                width = block.vectors.shape[1]
                digest.update(np.ascontiguousarray(block.vectors).data)
        if not ids:
            raise DataError(f"{items.where} holds no item")
        provenance = provenance_of(items, encoder_name)
        return Catalogue(lambda: _blocks(items), list(ids), width, encoded, example, has_text, provenance, digest.hexdigest())


def _blocks(items: Table) -> Iterator[Block]:
    columns = items.columns_of(("item", "title", "text", "vector"))
    row, width = 0, None
    for batch in _regrouped(items.batches(columns)):
        block = _block(batch, items.where, row, width)
        width = width if block.vectors is None else block.vectors.shape[1]
        yield block
        row += batch.num_rows


def _regrouped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of ``GROUP`` rows, the last one of fewer."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, GROUP - count)
            held.append(part)
            start, count = start + part.num_rows, count + part.num_rows
            if count == GROUP:
                yield pa.concat_batches(held)
                held, count = [], 0
    if held:
        yield pa.concat_batches(held)


def _block(batch: pa.RecordBatch, where: str, row: int, width: int | None) -> Block:
    held = set(batch.schema.names)
    named = strings(batch.column("item"), "item", where, row)
    ids: list[str] = named.to_pylist()
    titles = strings(batch.column("title"), "title", where, row, missing=True).to_pylist() if "title" in held else ids
    texts = [""] * len(ids)
    if "text" in held:
        found = strings(batch.column("text"), "text", where, row, missing=True, numbers=False).to_pylist()
        texts = [_text(text, f"{where}, item {name!r}") for text, name in zip(found, ids, strict=True)]
    given, vectors = np.zeros(len(ids), bool), None
    column: Any = batch.column("vector") if "vector" in held else None
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if column is not None and column.null_count < len(ids):
        valid = column.is_valid()
        given = np.asarray(valid)
        vectors = matrix(column.filter(valid), named.filter(valid), where, None, width, "item")
    for n in np.flatnonzero(~given).tolist():
        if not texts[n]:
            raise DataError(f"{where}, row {row + n}: item {ids[n]!r} has no vector and no text; give it one, or leave it out")
    return Block([(name, title or name) for name, title in zip(ids, titles, strict=True)], texts, given, vectors)


def _text(text: str | None, where: str) -> str:
    return "" if text is None or blank(text) else checked(text, where)
