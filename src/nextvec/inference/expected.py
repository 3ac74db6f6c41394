"""What is expected next, with its words: candidates of a bank behind an index."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from nextvec.bank import Bank
from nextvec.encoders import Encoder
from nextvec.errors import DataError
from nextvec.ingestion import Chunking
from nextvec.ingestion.text import blank, checked


@dataclass(frozen=True)
class Expected:
    """One vector that is expected next.

    Attributes:
        row: of the bank, the first that holds it (of the documents that were asked for); rows added while serving
            come after the bank's.
        score: product with the prediction.
        document: title of the document of ``row``; empty for a row that was added.
        text: the chunk of ``row``, or None where the bank holds vectors only.
        count: rows of the bank that hold it; ``bank.distinct.rows(row)`` names them.
    """

    row: int
    score: float
    document: str
    text: str | None
    count: int = 1

    @staticmethod
    def of(bank: Bank, row: int, score: float) -> "Expected":
        if row >= len(bank):
            return Expected(row, score, "", None)
        document = int(bank.document_of(np.array([row]))[0])
        return Expected(row, score, bank.documents[document][1], bank.text(row), bank.distinct.count(row))


def encode_context(text: str, encoder: Encoder, chunking: Chunking) -> Float32[np.ndarray, "T D"]:
    """A text as the context of a prediction, cut as the texts of a bank are.

    Raises:
        DataError: an empty text, or one that holds a NUL.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    return encoder.encode(context_chunks(text, encoder, chunking), "passage").rows


def context_chunks(text: str, encoder: Encoder, chunking: Chunking) -> list[str]:
    """The chunks of a text that is the context of a prediction, at least one.

    Raises:
        DataError: an empty text, or one that holds a NUL.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    if blank(text):
        raise DataError("the text is empty; give what has been read so far")
    return [text[a:b] for a, b in chunking.splitter(encoder)(checked(text, "the text"))]
