"""The protocol of encoders, and optional protocols for tokens, vocabulary and progress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

# Axes: N texts, D width.

Kind = Literal["passage", "query"]


@dataclass(frozen=True)
class Encoded:
    """Unit rows, and the number of tokens of each text before truncation; None if the encoder does not count tokens."""

    rows: Float32[np.ndarray, "N D"]
    tokens: Int32[np.ndarray, " N"] | None = None


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into unit vectors, the same bits for the same call.

    ``fingerprint`` names the weights and everything else that decides the
    vectors. A bank stores it, and rows of different fingerprints never mix.
    An encoder that also implements :class:`CountsTokens` gets no text that it
    would truncate.
    """

    name: str
    fingerprint: str
    dim: int

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts`` in order; ``kind`` picks the model's own prompt, where it has one."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """An encoder that counts tokens and states how many it reads. Optional.

    ``max_tokens`` is the most tokens of a text that decide its vector, with
    the special tokens and the passage prompt; None where there is no limit.
    """

    name: str
    max_tokens: int | None

    def count_tokens(self, texts: Sequence[str]) -> Int32[np.ndarray, " N"]:
        """Tokens of each passage before truncation, with the special tokens and the prompt."""
        ...


@runtime_checkable
class KnowsLetters(Protocol):
    """An encoder that measures how much of a text its vocabulary lacks. Optional."""

    def unknown_share(self, texts: Sequence[str]) -> Float32[np.ndarray, " N"] | None:
        """Share of each text's characters, blanks left out, that the unknown token stands for.

        None where the vocabulary has no unknown token.
        """
        ...


@runtime_checkable
class ReportsProgress(Protocol):
    """An encoder that reports its progress within one call. Optional."""

    def encode_reporting(self, texts: Sequence[str], kind: Kind, report: Callable[[float], None]) -> Encoded:
        """:meth:`Encoder.encode`, the same bits; ``report`` is called with the share of the work that is done."""
        ...


def max_tokens(encoder: Encoder) -> int | Literal["any"] | None:
    """The most tokens of a text that ``encoder`` reads; None where it does not say."""
    if isinstance(encoder, CountsTokens):
        return "any" if encoder.max_tokens is None else encoder.max_tokens
    limit = getattr(encoder, "max_tokens", None)
    return limit if isinstance(limit, int) else None


def truncation(encoder: Encoder, tokens: Int32[np.ndarray, " N"] | None) -> str | None:
    """The number of the longest text and how ``encoder`` truncated it, for a message; None where no text was truncated.

    Args:
        tokens: of each text, as the encoder counted them (:attr:`Encoded.tokens`).
    """
    limit = max_tokens(encoder)
    if tokens is None or not isinstance(limit, int) or int(tokens.max()) <= limit:
        return None
    return f"{int(tokens.argmax())} has {int(tokens.max())} tokens and {encoder.name} reads {limit}"
