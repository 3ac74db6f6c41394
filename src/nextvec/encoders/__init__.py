"""Encoders of text: the default, which works offline, and any sentence-transformers model by name."""

from nextvec.encoders.minilm import MiniLM
from nextvec.encoders.protocol import (
    CountsTokens,
    Encoded,
    Encoder,
    Kind,
    KnowsLetters,
    ReportsProgress,
    max_tokens,
    truncation,
)
from nextvec.encoders.sentence_transformer import SentenceTransformerEncoder
from nextvec.errors import DataError

DEFAULT = MiniLM.name


def load_encoder(name: str = DEFAULT) -> Encoder:
    """The encoder called ``name``: the offline default, or a sentence-transformers model.

    Raises:
        DataError: its name is unknown, it is not installed, or it cannot be loaded.
    """
    if name == "unknown":  # the name in a bank of ready vectors whose source names no encoder
        raise DataError("the bank does not say which encoder made its vectors; no text can be compared with them")
    return MiniLM() if name in (DEFAULT, f"sentence-transformers/{DEFAULT}") else SentenceTransformerEncoder(name)


__all__ = [
    "DEFAULT",
    "CountsTokens",
    "Encoded",
    "Encoder",
    "Kind",
    "KnowsLetters",
    "MiniLM",
    "ReportsProgress",
    "SentenceTransformerEncoder",
    "load_encoder",
    "max_tokens",
    "truncation",
]
