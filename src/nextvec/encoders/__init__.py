"""Encoders of text: MiniLM in float32 (the default) and int8, static encoders, and any sentence-transformers model by name."""

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
from nextvec.encoders.static import STATIC, StaticEncoder
from nextvec.errors import DataError

DEFAULT = MiniLM.name


def load_encoder(name: str = DEFAULT) -> Encoder:
    """The encoder called ``name``.

    Args:
        name: ``all-MiniLM-L6-v2``, ``all-MiniLM-L6-v2-int8``, ``static``, ``static:FOLDER``, or a name or a folder that
            sentence-transformers can load.

    Raises:
        DataError: its name is unknown, it is not installed, or it cannot be loaded.
    """
    if name == "unknown":  # the name in a bank of ready vectors whose source names no encoder
        raise DataError("the bank does not say which encoder made its vectors; no text can be compared with them")
    if name == MiniLMInt8.name:
        return MiniLMInt8()
    if name == STATIC or name.startswith(f"{STATIC}:"):
        return StaticEncoder(name.partition(":")[2] or None)
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
    "StaticEncoder",
    "load_encoder",
    "max_tokens",
    "truncation",
]
