"""A candidate of the bank with its score, document and text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from nextvec.bank import Bank
from nextvec.encoders import Encoder
from nextvec.errors import DataError
from nextvec.ingestion import Chunking
from nextvec.ingestion.text import blank, checked


@dataclass(frozen=True)
class RowPart:
    """What one row of the context adds to a score.

    Attributes:
        position: place of the row in the context, counted from 0 at its start.
        part: in the unit of the score; negative for a row that lowers it.
    """

    position: int
    part: float


@dataclass(frozen=True)
class Because:
    """A score as a sum: the parts of the named rows, ``others`` and ``learned``.

    :mod:`nextvec.models.attribution` defines a part.

    Attributes:
        rows: the rows with the largest parts, the largest first.
        others: of all other rows of the context, also of those that the state no longer holds.
        learned: of no row: constants and learned vectors of the model.
    """

    rows: tuple[RowPart, ...]
    others: float
    learned: float


@dataclass(frozen=True)
class Expected:
    """One candidate for the next vector.

    Attributes:
        row: the first item of the bank (of the given documents) with this vector, which in a bank of texts is a row; vectors
            added to the index are numbered after the bank's.
        score: the model's, for the prediction: of a model with one query, the product of both.
        document: title of the document of ``row``, or of the item; empty for an added row.
        text: the chunk of ``row``; None if the bank has no text.
        count: number of items of the bank with this vector; ``bank.distinct.rows(row)`` lists them.
        because: the rows of the context that the score comes from; None where they were not asked for.
        item: id of the item; None in a bank of texts, and for an added row.
        probability: that this vector is the next, if the next is one of the candidates (:mod:`nextvec.inference.confidence`);
            None without a calibration.
    """

    row: int
    score: float
    document: str
    text: str | None
    count: int = 1
    because: Because | None = None
    item: str | None = None
    probability: float | None = None

    @staticmethod
    def of(bank: Bank, row: int, score: float, probability: float | None = None) -> "Expected":
        if row >= len(bank.table):
            return Expected(row, score, "", None, probability=probability)
        names = bank.table.names
        item = None if names is None else names[row][0]
        text, count = bank.table.text(row), bank.distinct.count(row)
        return Expected(row, score, bank.title(row), text, count, item=item, probability=probability)


def joint_probability(expected: Sequence[Expected]) -> float | None:
    """The probability that the next vector is one of these, if it is among the candidates.

    None without a calibration, and without candidates.
    """
    probabilities = [each.probability for each in expected if each.probability is not None]
    return min(1.0, sum(probabilities)) if probabilities and len(probabilities) == len(expected) else None


def encode_context(text: str, encoder: Encoder, chunking: Chunking) -> Float32[np.ndarray, "T D"]:
    """The vectors of a text as the context of a prediction; it is cut as the texts of a bank are.

    Raises:
        DataError: an empty text, or one that holds a NUL.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    return encoder.encode(context_chunks(text, encoder, chunking), "passage").rows


def context_chunks(text: str, encoder: Encoder, chunking: Chunking) -> list[str]:
    """The chunks of a text as the context of a prediction, at least one.

    Raises:
        DataError: an empty text, or one that holds a NUL.
        SettingsError: chunks of more tokens than the encoder reads.
    """
    if blank(text):
        raise DataError("the text is empty; give what has been read so far")
    return [text[a:b] for a, b in chunking.splitter(encoder)(checked(text, "the text"))]
