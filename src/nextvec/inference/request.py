"""One inference request, as an engine takes several at once."""

# Axes: T vectors, D width.

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32


@dataclass(eq=False)
class PredictionRequest:
    """Vectors to append to a session, and the number of candidates to return.

    Attributes:
        state: the session; undefined after an error.
        rows: vectors [T, D] to read; emptied when they have been read, so that none is read twice.
        k: candidates wanted; 0 for none.
        because: rows of the context to name for each candidate.
    """

    state: Any
    rows: Float32[np.ndarray, "T D"]
    k: int
    because: int = field(default=0, kw_only=True)
