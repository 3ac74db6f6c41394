"""Encoders of text: MiniLM, which works offline in float32 (the default) and int8, and any sentence-transformers model."""

from nextvec.encoders.minilm import MiniLM
from nextvec.encoders.minilm_int8 import MiniLMInt8
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
    """The encoder called ``name``: MiniLM in float32 or int8, or a sentence-transformers model.

    Raises:
        DataError: its name is unknown, it is not installed, or it cannot be loaded.
    """
    if name == "unknown":  # the name in a bank of ready vectors whose source names no encoder
        raise DataError("the bank does not say which encoder made its vectors; no text can be compared with them")
    if name == MiniLMInt8.name:
        return MiniLMInt8()
    return MiniLM() if name in (DEFAULT, f"sentence-transformers/{DEFAULT}") else SentenceTransformerEncoder(name)


__all__ = [
    "DEFAULT",
    "CountsTokens",
    "Encoded",
    "Encoder",
    "Kind",
    "KnowsLetters",
    "MiniLM",
    "MiniLMInt8",
    "ReportsProgress",
    "SentenceTransformerEncoder",
    "load_encoder",
    "max_tokens",
    "truncation",
]
