"""Text → documents → chunks → encoder → bank; resumes where it was killed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nextvec.bank import Bank, BankWriter
from nextvec.bank.exchange import Table
from nextvec.bank.writer import Dtype
from nextvec.encoders import Encoder
from nextvec.errors import DataError
from nextvec.ingestion.chunking import Chunking
from nextvec.ingestion.document import Document
from nextvec.ingestion.sources import Source, open_source, open_table
from nextvec.ingestion.texts import ingest_texts
from nextvec.progress import Progress, silent


def ingest(
    source: str | Path | Sequence[Document] | Table,
    bank: str | Path,
    encoder: str | Encoder = "all-MiniLM-L6-v2",
    chunking: Chunking | None = None,
    dtype: Dtype = "float16",
    progress: Progress = silent,
) -> Bank:
    """Make a bank of ``source`` at the path ``bank``.

    Everything is read and checked once before the first chunk is encoded, so
    bad input costs seconds and leaves nothing. Killed at any
    moment, the same call goes on where it was; the bank is the same to the
    byte.

    Args:
        source: a folder, a file, documents, or a Hugging Face ``datasets`` object.
        encoder: a name, or any :class:`~nextvec.encoders.Encoder`; not used for ready vectors.

    Raises:
        DataError: what cannot be read, is empty, not finite, or does not fit; or the bank exists.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    opened = _opened(source)
    if Path(bank).exists():
        raise DataError(f"{bank} already exists; choose another name or delete it first")
    if opened.vectors:
        return _ingest_vectors(opened, Path(bank), dtype)
    assert opened.texts is not None
    return ingest_texts(opened.texts, opened.name, Path(bank), encoder, chunking or Chunking(), dtype, progress)


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
