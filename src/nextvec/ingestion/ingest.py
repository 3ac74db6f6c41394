"""Text → documents → chunks → encoder → bank; resumes where it was killed."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.bank.exchange import Table
from nextvec.bank.writer import Dtype
from nextvec.encoders import Encoder, load_encoder
from nextvec.errors import DataError
from nextvec.ingestion.chunking import Chunking, Span
from nextvec.ingestion.document import Document
from nextvec.ingestion.sources import Source, open_source, open_table
from nextvec.progress import Progress, silent

GROUP = 512  # chunks encoded and committed together: what a kill can cost

Chunked = tuple[Document, list[Span]]


def ingest(
    source: str | Path | Sequence[Document] | Table,
    bank: str | Path,
    encoder: str | Encoder = "all-MiniLM-L6-v2",
    chunking: Chunking | None = None,
    dtype: Dtype = "float16",
    progress: Progress = silent,
) -> Bank:
    """Make a bank of ``source`` at the path ``bank``.

    Everything is read, cut and checked once before the first chunk is
    encoded, so bad input costs seconds and leaves nothing. Killed at any
    moment, the same call goes on where it was; the bank is the same to the
    byte.

    Args:
        source: a folder, a file, documents, or a Hugging Face ``datasets`` object.
        encoder: a name, or any :class:`~nextvec.encoders.Encoder`; not used for ready vectors.

    Raises:
        DataError: what cannot be read, is empty, not finite, or does not fit; or the bank exists.
    """
    opened = _opened(source)
    if Path(bank).exists():
        raise DataError(f"{bank} already exists; choose another name or delete it first")
    if opened.vectors:
        return _ingest_vectors(opened, Path(bank), dtype)
    return _ingest_texts(opened, Path(bank), encoder, chunking or Chunking(), dtype, progress)


def _opened(source: str | Path | Sequence[Document] | Table) -> Source:
    if isinstance(source, str | Path):
        return open_source(Path(source))
    return open_table(source) if isinstance(source, Table) else Source("documents", texts=lambda: iter(source))


def _ingest_vectors(source: Source, path: Path, dtype: Dtype) -> Bank:
    assert source.vectors is not None
    dim, digest = 0, hashlib.sha256()
    for document in source.vectors():
        dim = dim or int(document.vectors.shape[-1])
        digest.update(repr((document.id, document.vectors.shape)).encode())
        digest.update(np.ascontiguousarray(document.vectors).tobytes())
    if not dim:
        raise DataError(f"{source.name} holds no document")
    name = f"{source.name}:{digest.hexdigest()[:16]}"
    with BankWriter(path, encoder="unknown", encoder_fingerprint="unknown", dim=dim, dtype=dtype, source=name) as writer:
        for number, document in enumerate(source.vectors()):
            if number >= writer.documents:
                writer.append(document)
        return writer.finish()


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
