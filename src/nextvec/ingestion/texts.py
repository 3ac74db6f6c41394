"""Ingestion of texts: each text is cut into chunks, encoded and written; a killed ingestion continues."""

# Axes: T chunks of one document, D width.

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.bank.documents import Dtype
from nextvec.encoders import Encoded, Encoder, ReportsProgress, load_encoder, max_tokens, truncation
from nextvec.errors import DataError
from nextvec.ingestion.chunking import Chunking, Splitter
from nextvec.ingestion.document import Document
from nextvec.ingestion.text import checked
from nextvec.progress import Progress, silent

GROUP = 512  # chunks encoded and committed together; a killed process loses at most this many
PIECE = 8_192  # chunks encoded in one call at most: bounds the memory of a long document
LONG = 1_000_000  # characters of a text from which cutting reports its progress
ENCODING = "encoding characters"


@dataclass(frozen=True)
class Cut:
    """A document and the character spans of its chunks."""

    document: Document
    spans: Int64[np.ndarray, "T 2"]


@dataclass(frozen=True)
class Texts:
    """The size and the digest of all texts of a source.

    Attributes:
        characters: of all texts.
        digest: of ids, titles and texts; a resumed ingestion must find the same digest.
    """

    characters: int
    digest: str


def ingest_texts(
    texts: Callable[[], Iterator[Document]],
    name: str,
    path: Path,
    encoder: str | Encoder,
    chunking: Chunking,
    dtype: Dtype,
    progress: Progress = silent,
) -> Bank:
    """Make a bank of texts at ``path``.

    The texts are read twice: first all of them are checked, then each is cut and encoded.

    Args:
        texts: each call gives the same documents in the same order.
        name: of the source, for the manifest.

    Raises:
        DataError: no document, an id twice, or a text that is empty or cannot be read.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    found = _checked(texts())
    model = load_encoder(encoder) if isinstance(encoder, str) else encoder
    splitter = chunking.splitter(model)
    with BankWriter(
        path,
        encoder=model.name,
        encoder_fingerprint=model.fingerprint,
        dim=model.dim,
        dtype=dtype,
        chunking=str(chunking),
        source=f"{name}:{found.digest}",
        text=True,
        max_tokens=max_tokens(model),
    ) as writer:
        documents = texts()
        done = sum(len(document.text) for document in islice(documents, writer.documents))
        progress(ENCODING, done, found.characters)
        for group in _groups(documents, splitter, progress):
            size = sum(len(cut.document.text) for cut in group)

            def report(share: float, done: int = done, size: int = size) -> None:
                progress(ENCODING, done + int(share * size), found.characters)

            _encode(group, model, writer, report)
            done += size
        return writer.finish(progress)


def _checked(documents: Iterable[Document]) -> Texts:
    ids: set[str] = set()
    characters, digest = 0, hashlib.sha256()
    for document in documents:
        if document.id in ids:
            raise DataError(f"document {document.id!r} appears twice; ids must be unique")
        ids.add(document.id)
        characters += len(checked(document.text, f"document {document.id!r}"))
        digest.update(repr((document.id, document.title, document.text)).encode())
        digest.update(b"markdown" if document.markdown else b"")
    if not ids:
        raise DataError("the source holds no document")
    return Texts(characters, digest.hexdigest()[:16])


def _groups(documents: Iterable[Document], splitter: Splitter, progress: Progress) -> Iterator[list[Cut]]:
    """Groups of whole documents. They depend on the documents alone, so a resumed ingestion makes the same groups."""
    group: list[Cut] = []
    chunks = 0
    for document in documents:
        cut = Cut(document, _spans(document, splitter, progress))
        group.append(cut)
        chunks += len(cut.spans)
        if chunks >= GROUP:
            yield group
            group, chunks = [], 0
    if group:
        yield group


def _spans(document: Document, splitter: Splitter, progress: Progress) -> Int64[np.ndarray, "T 2"]:
    size = len(document.text)

    def report(done: int) -> None:
        if size >= LONG:
            progress("cutting characters", done, size)

    try:
        spans = splitter(document.text, document.markdown, report)
    except DataError as error:
        raise DataError(f"document {document.id!r}: {error}") from None
    report(size)
    return spans


def _encode(group: list[Cut], encoder: Encoder, writer: BankWriter, report: Callable[[float], None]) -> None:
    total, done, start = sum(len(cut.spans) for cut in group), 0, 0
    parts: list[Encoded] = []
    for texts in _pieces(group):
        before, share = done / total, len(texts) / total
        parts.append(_encoded(texts, encoder, lambda part, before=before, share=share: report(before + share * part)))
        done += len(texts)
        report(done / total)
    rows: Float32[np.ndarray, "N D"] = np.concatenate([part.rows for part in parts])
    counted = [part.tokens for part in parts if part.tokens is not None]
    tokens = np.concatenate(counted) if len(counted) == len(parts) else None
    for cut in group:
        stop = start + len(cut.spans)
        mine = None if tokens is None else tokens[start:stop]
        document = cut.document
        # The splitter could not limit the chunks if the encoder counts tokens only while it encodes.
        if (fault := truncation(encoder, mine)) is not None:
            raise DataError(f"document {document.id!r}, chunk {fault}; cut smaller chunks with --size")
        writer.append(VectorDocument(document.id, document.title, rows[start:stop], document.text, cut.spans, mine))
        start = stop
    writer.commit()


def _pieces(group: list[Cut]) -> Iterator[list[str]]:
    texts = (cut.document.text[a:b] for cut in group for a, b in cut.spans.tolist())
    while piece := list(islice(texts, PIECE)):
        yield piece


def _encoded(texts: list[str], encoder: Encoder, report: Callable[[float], None]) -> Encoded:
    if isinstance(encoder, ReportsProgress):
        return encoder.encode_reporting(texts, "passage", report)
    return encoder.encode(texts, "passage")
