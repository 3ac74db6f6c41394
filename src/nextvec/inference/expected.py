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
    """One chunk that is expected next.

    Attributes:
        row: of the bank; rows added while serving come after the bank's.
        score: product with the prediction.
        document: title of the document it comes from; empty for a row that was added.
        text: the chunk, or None where the bank holds vectors only.
    """

    row: int
    score: float
    document: str
    text: str | None

    @staticmethod
    def of(bank: Bank, row: int, score: float) -> "Expected":
        if row >= len(bank):
            return Expected(row, score, "", None)
        document = int(bank.document_of(np.array([row]))[0])
        return Expected(row, score, bank.documents[document][1], bank.text(row))


def encode_context(text: str, encoder: Encoder, chunking: Chunking) -> Float32[np.ndarray, "T D"]:
    """A text as the context of a prediction, cut as the texts of a bank are.

    Raises:
        DataError: an empty text, or one that holds a NUL.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    if blank(text):
        raise DataError("the text is empty; give what has been read so far")
    spans = chunking.splitter(encoder)(checked(text, "the text"))
    return encoder.encode([text[a:b] for a, b in spans], "passage").rows
