"""Encoders of text: MiniLM, which works offline, a static one, and any sentence-transformers model by name."""

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
from nextvec.kernels import rounded


def default_encoder() -> str:
    """The name of the encoder of new banks: MiniLM in int8 where this processor computes it fast, otherwise in float32."""
    return MiniLM.name if rounded.loaded() is None else MiniLMInt8.name


def load_encoder(name: str | None = None) -> Encoder:
    """The encoder called ``name``; without a name the default (:func:`default_encoder`).

    Raises:
        DataError: its name is unknown, it is not installed, or it cannot be loaded.
    """
    name = default_encoder() if name is None else name
    if name == "unknown":  # the name in a bank of ready vectors whose source names no encoder
        raise DataError("the bank does not say which encoder made its vectors; no text can be compared with them")
    if name == MiniLMInt8.name:
        return MiniLMInt8()
    return MiniLM() if name in (MiniLM.name, f"sentence-transformers/{MiniLM.name}") else SentenceTransformerEncoder(name)


__all__ = [
    "CountsTokens",
    "Encoded",
    "Encoder",
    "Kind",
    "KnowsLetters",
    "MiniLM",
    "MiniLMInt8",
    "ReportsProgress",
    "SentenceTransformerEncoder",
    "default_encoder",
    "load_encoder",
    "max_tokens",
    "truncation",
]
