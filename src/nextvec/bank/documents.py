"""Documents for a bank: vectors and, if known, the text that was encoded."""

# Axes: T rows of one document, D width, N rows, M documents.

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from nextvec.bank.layout import Manifest
from nextvec.errors import DataError
from nextvec.vectors import unit_rows

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class VectorDocument:
    """A document ready for the bank.

    Attributes:
        vectors: [T, D], any length; stored as unit rows.
        text, spans: the text and its chunks' character spans, or None for vectors only.
        tokens: per chunk, or None.
    """

    id: str
    title: str
    vectors: np.ndarray  # not checked yet; errors name the document and the row
    text: str | None = None
    spans: Sequence[tuple[int, int]] | np.ndarray | None = None
    tokens: Sequence[int] | np.ndarray | None = None


def stored_rows(
    vectors: np.ndarray, name: str, dtype: Dtype, dim: int | None = None, kind: str = "document"
) -> Float[np.ndarray, "T D"]:
    """The vectors of a document or an item as a bank stores them: :func:`~nextvec.vectors.unit_rows` in ``dtype``.

    A row keeps its bits if its numbers fit ``dtype`` exactly and its length is 1
    within rounding. So rows that a bank stored once are stored again without change.

    Raises:
        DataError: an empty document, or vectors that are not usable; names document and row.
    """
    if len(np.shape(vectors)) == 2 and len(vectors) == 0:
        raise DataError(f"{kind} {name!r} is empty; leave it out or give it rows")
    rows = unit_rows(vectors, dim, f"{kind} {name!r}, ").astype(dtype)
    with np.errstate(over="ignore"):
        given = vectors.astype(dtype, copy=False)
    kept = np.ones(len(rows), bool) if given is vectors else (given == vectors).all(axis=1)
    if kept.any():
        kept[kept] = (np.abs(given[kept] - rows[kept]) <= np.spacing(np.abs(rows[kept]))).all(axis=1)
        rows[kept] = given[kept]
    return rows


def byte_spans(text: str, spans: Sequence[tuple[int, int]] | np.ndarray) -> np.ndarray:
    """Character spans as UTF-8 byte spans, [T, 2] int64."""
    positions = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    if text.isascii():
        return positions
    width = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (width >= 0x80) + (width >= 0x800) + (width >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)[positions]


def stacked(
    documents: Iterable[VectorDocument], encoder: str, dtype: Dtype = "float16"
) -> tuple[Float[np.ndarray, "N D"], Int64[np.ndarray, " offsets"], Manifest, tuple[tuple[str, str], ...]]:
    """The parts of a bank in memory: rows, offsets, the manifest, and (id, title) of each document. Texts are left out.

    Raises:
        DataError: no document, an id twice, an empty document, or vectors that cannot be used.
    """
    rows: list[np.ndarray] = []
    names: list[tuple[str, str]] = []
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise DataError(f"document {document.id!r} appears twice; ids must be unique")
        seen.add(document.id)
        dim = rows[0].shape[1] if rows else None
        rows.append(stored_rows(document.vectors, document.id, dtype, dim))
        names.append((document.id, document.title))
    if not rows:
        raise DataError("a bank needs at least one document")
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64)
    joined = np.concatenate(rows)
    digest = hashlib.sha256(joined.tobytes() + offsets.tobytes() + repr(names).encode() + encoder.encode())
    manifest = Manifest(
        len(joined), joined.shape[1], len(names), dtype, encoder, encoder, digest.hexdigest(), False, "none", "memory"
    )
    return joined, offsets, manifest, tuple(names)
