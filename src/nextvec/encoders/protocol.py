"""Text to vectors: what every encoder promises."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

# Axes: N texts, D width.

Kind = Literal["passage", "query"]


@dataclass(frozen=True)
class Encoded:
    """Unit rows and how many tokens each text really had before truncation."""

    rows: Float32[np.ndarray, "N D"]
    tokens: Int32[np.ndarray, " N"]


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into unit vectors, the same bits for the same call.

    ``fingerprint`` names the weights and everything else that decides the
    vectors; a bank stores it, and rows of different fingerprints never mix.
    """

    name: str
    fingerprint: str
    dim: int
    max_tokens: int

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts`` in order; ``kind`` picks the model's own prompt, where it has one."""
        ...
