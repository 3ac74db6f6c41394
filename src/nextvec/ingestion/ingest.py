"""Text → documents → chunks → encoder → bank; resumes where it was killed."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.bank.writer import Dtype
from nextvec.encoders import Encoder, load_encoder
from nextvec.errors import DataError, SettingsError
from nextvec.ingestion.chunking import Chunking, Span
from nextvec.ingestion.document import Document
from nextvec.ingestion.sources import Opening, Source, open_object, open_source
from nextvec.progress import Progress, silent

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
COMMIT = 100_000  # rows of ready vectors written between two commits
GROUP = 512  # chunks encoded and committed together: what a kill can cost

Chunked = tuple[Document, list[Span]]


def ingest(
    source: Any,
    bank: str | Path,
    encoder: str | Encoder | None = None,
    chunking: Chunking | None = None,
    dtype: Dtype | None = None,
    progress: Progress = silent,
    *,
    encoder_name: str | None = None,
    skip_unreadable: bool = False,
) -> Bank:
    """Make a bank of ``source`` at the path ``bank``.

    Everything is read, cut and checked once before the first chunk is
    encoded, so bad input costs seconds and leaves nothing. Killed at any
    moment, the same call goes on where it was; the bank is the same to the
    byte. What a source holds and is not read is named in a warning.

    Args:
        source: a path, or documents, texts, rows, columns, a table, a dataframe, a dataset
            (:func:`~nextvec.ingestion.sources.open_object`), or a source that is open already.
        encoder: of texts: a name, or any :class:`~nextvec.encoders.Encoder`; by default all-MiniLM-L6-v2.
        dtype: how rows are stored; by default as the bank was that ready vectors were exported from, or float16.
        encoder_name: what made ready vectors, where they do not say.
        skip_unreadable: leave out files of a folder that cannot be read.

    Raises:
        DataError: what cannot be read, is empty, not finite, or does not fit; or the bank exists.
    """
    path = Path(bank)
    if path.exists():
        raise DataError(f"{bank} already exists; choose another name or delete it first")
    opened = source if isinstance(source, Source) else open_any(source, path, encoder_name, skip_unreadable, progress)
    if opened.vectors:
        if encoder is not None:
            raise SettingsError(
                f"{opened.name} holds ready vectors; an encoder is for texts, encoder_name (--encoder-name) for vectors"
            )
        made = _ingest_vectors(opened, path, dtype or opened.provenance.dtype or "float16", progress)
    else:
        made = _ingest_texts(opened, path, encoder or DEFAULT_ENCODER, chunking or Chunking(), dtype or "float16", progress)
    if opened is not source:
        for note in opened.unread.notes():
            warnings.warn(f"{opened.name}: {note}", stacklevel=2)
    return made


def open_any(
    source: Any,
    bank: Path,
    encoder_name: str | None = None,
    skip_unreadable: bool = False,
    progress: Progress = silent,
) -> Source:
    """Open a source whose bank is to lie at ``bank``; temporary files lie beside it. Arguments are those of :func:`ingest`."""
    scratch = next(folder for folder in bank.absolute().parents if folder.is_dir())
    how = Opening(scratch, encoder_name, skip_unreadable, progress)
    return open_source(Path(source), how) if isinstance(source, str | Path) else open_object(source, how)


def _ingest_vectors(source: Source, path: Path, dtype: Dtype, progress: Progress) -> Bank:
    assert source.vectors is not None
    dim, digest = 0, hashlib.sha256()
    for document in source.vectors():
        dim = dim or int(document.vectors.shape[-1])
        digest.update(repr((document.id, document.title, document.text, document.vectors.shape)).encode())
        digest.update(np.ascontiguousarray(document.vectors).data)
    if not dim:
        raise DataError(f"{source.name} holds no document")
    made = source.provenance
    with BankWriter(
        path,
        encoder=made.encoder,
        encoder_fingerprint=made.encoder_fingerprint,
        dim=dim,
        dtype=dtype,
        chunking=made.chunking,
        source=f"{source.name}:{digest.hexdigest()[:16]}",
        text=source.has_text,
    ) as writer:
        committed = writer.rows
        for number, document in enumerate(source.vectors()):
            if number < writer.documents:
                continue
            writer.append(document)
            if writer.rows - committed >= COMMIT:
                writer.commit()
                committed = writer.rows
        return writer.finish(progress)


def _ingest_texts(
    source: Source, path: Path, encoder: str | Encoder, chunking: Chunking, dtype: Dtype, progress: Progress
) -> Bank:
    assert source.texts is not None
    total, digest = _checked(source.texts(), chunking)
    model = load_encoder(encoder) if isinstance(encoder, str) else encoder
    words = f"{chunking.size} {chunking.unit}, overlap {chunking.overlap}"
    with BankWriter(
        path,
        encoder=model.name,
        encoder_fingerprint=model.fingerprint,
        dim=model.dim,
        dtype=dtype,
        chunking=words,
        source=f"{source.name}:{digest}",
        text=True,
    ) as writer:
        already = writer.documents
        progress("encoding", writer.rows, total)
        rest = (item for n, item in enumerate(_chunked(source.texts(), chunking)) if n >= already)
        for group in _groups(rest):
            _encode(group, model, writer, lambda done: progress("encoding", done, total))
        return writer.finish(progress)


def _checked(documents: Iterable[Document], chunking: Chunking) -> tuple[int, str]:
    """Read everything once; how many chunks there are, and a digest: a resumed ingest must meet the same text."""
    ids: set[str] = set()
    total, digest = 0, hashlib.sha256()
    for document, spans in _chunked(documents, chunking):
        if document.id in ids:
            raise DataError(f"document {document.id!r} appears twice; ids must be unique")
        ids.add(document.id)
        total += len(spans)
        digest.update(repr((document.id, document.title, document.text)).encode())
    if not total:
        raise DataError("the source holds no document")
    return total, digest.hexdigest()[:16]


def _chunked(documents: Iterable[Document], chunking: Chunking) -> Iterator[Chunked]:
    spans_of = chunking.splitter()
    for document in documents:
        spans = spans_of(document.text)
        if not spans:
            raise DataError(f"document {document.id!r} is empty; leave it out or give it text")
        yield document, spans


def _groups(documents: Iterable[Chunked]) -> Iterator[list[Chunked]]:
    """Whole documents until a group is full; groups depend on the documents alone, so a resumed ingest makes the same."""
    group: list[Chunked] = []
    for item in documents:
        group.append(item)
        if sum(len(spans) for _, spans in group) >= GROUP:
            yield group
            group = []
    if group:
        yield group


def _encode(group: list[Chunked], encoder: Encoder, writer: BankWriter, report: Callable[[int], None]) -> None:
    texts = [document.text[a:b] for document, spans in group for a, b in spans]
    encoded = encoder.encode(texts, "passage")
    start = 0
    for document, spans in group:
        stop = start + len(spans)
        rows, tokens = encoded.rows[start:stop], encoded.tokens[start:stop]
        writer.append(VectorDocument(document.id, document.title, rows, document.text, spans, tokens))
        start = stop
    writer.commit()
    report(writer.rows)
