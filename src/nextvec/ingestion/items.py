"""Ingestion of events and items: each item is stored once; a killed ingestion continues."""

# Axes: B items of a block, D width.

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from nextvec.bank import Bank, ItemWriter
from nextvec.bank.documents import Dtype
from nextvec.bank.item_writer import Items
from nextvec.bank.layout import Manifest
from nextvec.encoders import DEFAULT, Encoder, load_encoder, max_tokens
from nextvec.errors import DataError, SettingsError
from nextvec.ingestion.catalogue import GROUP, Block, Catalogue
from nextvec.ingestion.chunking import LARGEST, Chunking
from nextvec.ingestion.events import Sessions, time_dtype
from nextvec.ingestion.sources import Source
from nextvec.progress import Progress, silent

COMMIT = 100_000  # items with ready vectors that are written between two commits


def ingest_events(
    source: Source, path: Path, encoder: str | Encoder | None, dtype: Dtype | None, progress: Progress = silent
) -> Bank:
    """Make a bank of items at ``path``. Both tables are read and checked before the first text is encoded.

    Args:
        source: of events and items; the number of texts that were truncated is added to what it did not read.
        encoder: the encoder of items without a vector; the default if None.
        dtype: of the stored vectors; None for that of the exported bank that the items come from, or else float16.

    Raises:
        DataError: the tables cannot be read or do not fit together; ready vectors of another encoder than the texts.
        SettingsError: an encoder, and every item has a vector; a name of an encoder, and no item has one.
    """
    tables = source.events
    assert tables is not None
    catalogue = Catalogue.read(tables.items, source.encoder_name)
    sessions = Sessions.read(tables.events, catalogue.ids, tables.items.where)
    model = _encoder(catalogue, encoder, source.encoder_name, tables.items.where)
    plan = _plan(catalogue, sessions, model, source.name, dtype or catalogue.provenance.dtype or "float16")
    with ItemWriter(path, plan) as writer:
        source.unread.truncated = _write(catalogue, model, writer, progress)
        return writer.finish(sessions.ids, sessions.sequences, progress)


def _encoder(catalogue: Catalogue, encoder: str | Encoder | None, encoder_name: str | None, where: str) -> Encoder | None:
    """The encoder of the items without a vector; None where every item has one."""
    if not catalogue.encoded:
        if encoder is not None:
            raise SettingsError(
                f"{where}: every item has a vector; an encoder is for items without one; "
                "give the name of the encoder of ready vectors in encoder_name (--encoder-name)"
            )
        return None
    model = load_encoder(encoder or DEFAULT) if isinstance(encoder, str | None) else encoder
    if catalogue.width is None:
        if encoder_name is not None:
            raise SettingsError(f"{where}: no item has a vector; --encoder selects the encoder of their texts")
        return model
    made = catalogue.provenance
    if made.encoder != model.name or made.encoder_fingerprint not in (model.name, model.fingerprint):
        raise DataError(
            f"{where}: item {catalogue.example!r} has a text only, and the vectors of other items are of encoder "
            f"{made.encoder!r}, not {model.name!r}; give all items vectors, or name the encoder of both (--encoder-name)"
        )
    if catalogue.width != model.dim:
        raise DataError(f"{where}: vectors are {catalogue.width} wide; those of {model.name} are {model.dim} wide")
    return model


def _plan(catalogue: Catalogue, sessions: Sessions, model: Encoder | None, name: str, dtype: Dtype) -> Manifest:
    made, digest = catalogue.provenance, hashlib.sha256(f"{catalogue.digest} {sessions.digest}".encode()).hexdigest()[:16]
    plan = Manifest(
        0, catalogue.width or 0, 0, dtype, made.encoder, made.encoder_fingerprint, "", catalogue.has_text, made.chunking,
        f"{name}:{digest}", max_tokens=made.max_tokens, times=time_dtype(sessions.sequences),
    )  # fmt: skip
    if model is None:
        return plan
    whole = str(Chunking(LARGEST))  # a text is not cut, so neither is a text that is sent as context
    return replace(
        plan, dim=model.dim, encoder=model.name, encoder_fingerprint=model.fingerprint, chunking=whole,
        max_tokens=max_tokens(model),
    )  # fmt: skip


def _write(catalogue: Catalogue, model: Encoder | None, writer: ItemWriter, progress: Progress) -> int:
    """Append the items that are not written yet; returns how many texts were longer than the encoder reads."""
    total, long, committed = len(catalogue.ids), 0, writer.rows
    limit = None if model is None else max_tokens(model)
    for block in _left(catalogue, writer.rows):
        items = _items(block, catalogue, model)
        writer.append(items)
        if isinstance(limit, int) and items.tokens is not None:
            long += int((items.tokens > limit).sum())
        if not block.given.all() or writer.rows - committed >= COMMIT:
            writer.commit()
            committed = writer.rows
        progress("writing items", writer.rows, total)
    return long


def _left(catalogue: Catalogue, done: int) -> Iterator[Block]:
    """The blocks behind the first ``done`` items, which are whole blocks, or all of them."""
    return islice(catalogue.blocks(), -(-done // GROUP), None)


def _items(block: Block, catalogue: Catalogue, model: Encoder | None) -> Items:
    texts = block.texts if catalogue.has_text else None
    if model is None or block.given.all():
        assert block.vectors is not None, "an item without a vector is encoded"
        return Items(block.names, block.vectors, texts)
    encoded = model.encode([text for text, given in zip(block.texts, block.given, strict=True) if not given], "passage")
    vectors = np.empty((len(block.names), model.dim), np.float32 if block.vectors is None else block.vectors.dtype)
    vectors[~block.given] = encoded.rows
    if block.vectors is not None:
        vectors[block.given] = block.vectors
    tokens = np.zeros(len(block.names), np.int32)
    if encoded.tokens is not None:
        tokens[~block.given] = encoded.tokens
    return Items(block.names, vectors, texts, tokens)
