"""What comes next, in words: a trained run, a bank of candidates, a context."""

# Axes: T chunks of context, D width.

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from nextvec.bank import Bank
from nextvec.encoders import Encoder
from nextvec.errors import DataError
from nextvec.index import ExactIndex
from nextvec.ingest import Chunking
from nextvec.models import Recurrent

SAME = 0.9999  # cosine from which a candidate is a row of the context


@dataclass(frozen=True)
class Expected:
    """One chunk that is expected next.

    Attributes:
        row: of the bank.
        score: product with the prediction.
        document: title of the document it comes from.
        text: the chunk, or None where the bank holds vectors only.
    """

    row: int
    score: float
    document: str
    text: str | None


@torch.inference_mode()
def expect(model: Recurrent[Any], bank: Bank, context: Float32[np.ndarray, "T D"], k: int) -> list[Expected]:
    """The ``k`` rows of a bank that a model expects after a context; rows that the context already holds are left out.

    Raises:
        DataError: the context is not as wide as the bank.
    """
    if context.ndim != 2 or context.shape[1] != bank.dim or not len(context):
        raise DataError(f"the context has shape {list(context.shape)}; want [vectors, {bank.dim}]")
    predicted = model(torch.from_numpy(context)[None])[0, -1:]
    found = ExactIndex(bank.rows).search(predicted, k, excluded=_said(bank, context))
    documents = bank.documents
    return [
        Expected(row, score, documents[int(bank.document_of(np.array([row]))[0])][1], bank.text(row))
        for row, score in zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True)
        if row >= 0
    ]


def encode_context(text: str, encoder: Encoder, chunking: Chunking) -> Float32[np.ndarray, "T D"]:
    """A text as the context of a prediction.

    Raises:
        DataError: an empty text.
    """
    spans = chunking.splitter()(text)
    if not spans:
        raise DataError("standard input is empty; give it the text that has been read so far")
    return encoder.encode([text[a:b] for a, b in spans], "passage").rows


def _said(bank: Bank, context: Float32[np.ndarray, "T D"]) -> np.ndarray:
    said = np.zeros(len(bank), dtype=bool)
    for start in range(0, len(bank), 16_384):
        block = bank.rows[start : start + 16_384].astype(np.float32)
        said[start : start + 16_384] = (block @ context.T).max(axis=1) >= SAME
    return said
