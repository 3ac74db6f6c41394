"""Text to vectors: the offline default, and any sentence-transformers model by name."""

from nextvec.encoders.minilm import MiniLM
from nextvec.encoders.protocol import CountsTokens, Encoded, Encoder, Kind, KnowsLetters, ReportsProgress
from nextvec.encoders.sentence_transformer import SentenceTransformerEncoder

DEFAULT = MiniLM.name


def load_encoder(name: str = DEFAULT) -> Encoder:
    """The encoder called ``name``: the offline default, or a sentence-transformers model.

    Raises:
        DataError: it is not installed or cannot be loaded.
    """
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
]
