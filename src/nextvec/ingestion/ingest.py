"""Ingestion of a source into a bank; a killed ingestion continues where it stopped."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank, BankWriter
from nextvec.bank.documents import Dtype
from nextvec.encoders import DEFAULT, Encoder
from nextvec.errors import DataError, SettingsError
from nextvec.ingestion.chunking import Chunking
from nextvec.ingestion.sources import Opening, Source, open_object, open_source
from nextvec.ingestion.texts import ingest_texts
from nextvec.progress import Progress, silent

COMMIT = 100_000  # rows of ready vectors written between two commits


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

    The source is read and checked once before the first chunk is encoded, so bad
    input fails within seconds and leaves no files. If the process is killed, the
    same call continues where it stopped, and the bank has the same bytes.
    A warning names the files and columns of the source that are not read.

    Args:
        source: a path, or documents, texts, rows, columns, a table, a dataframe, a dataset
            (:func:`~nextvec.ingestion.sources.open_object`), or a source that is open already.
        encoder: the encoder of texts: a name (see :func:`~nextvec.encoders.load_encoder`; by default all-MiniLM-L6-v2), or
            any :class:`~nextvec.encoders.Encoder`.
        dtype: dtype of stored rows. The default is that of the exported bank if ready vectors come from one, else float16.
        encoder_name: name of the encoder of ready vectors, if their source does not state it.
        skip_unreadable: leave out files of a folder that cannot be read.

    Raises:
        DataError: the bank exists, or input cannot be read, is empty, has NaN or infinity, or does not fit together.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    path = Path(bank)
    if path.exists():
        raise DataError(f"{bank} already exists; choose another name or delete it first")
    opened = source if isinstance(source, Source) else open_any(source, path, encoder_name, skip_unreadable, progress)
    if opened.vectors:
        if encoder is not None:
            raise SettingsError(
                f"{opened.name} holds ready vectors; an encoder is for texts; "
                "give the name of the encoder of ready vectors in encoder_name (--encoder-name)"
            )
        made = _ingest_vectors(opened, path, dtype or opened.provenance.dtype or "float16", progress)
    else:
        assert opened.texts is not None
        chosen, stored = encoder or DEFAULT, dtype or "float16"
        made = ingest_texts(opened.texts, opened.name, path, chosen, chunking or Chunking(), stored, progress)
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
        max_tokens=made.max_tokens,
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
