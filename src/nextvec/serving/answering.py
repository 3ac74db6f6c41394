"""What a server needs of an engine and of its sessions, in whichever process the engine computes."""

# Axes: T vectors, R rows, D width.

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from nextvec.bank import Bank
from nextvec.errors import ServingError
from nextvec.inference import Expected, PredictionRequest
from nextvec.inference.place import ComputePlace, StatusListener


class EndedError(ServingError):
    """The engine cannot answer: its process has ended, or ended during the request, or another engine has replaced it."""


@runtime_checkable
class SessionState(Protocol):
    """A model's state after the vectors of one session.

    Attributes:
        length: vectors read.
    """

    length: int

    @property
    def num_bytes(self) -> int:
        """Memory of the state, in bytes."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the state is gone: its engine's process has ended, or the engine was retired."""
        ...

    def catch_up(self, vectors: np.ndarray) -> None:
        """Read vectors [T, D] in order."""
        ...

    def snapshot(self) -> bytes:
        """The state as bytes for :meth:`Answering.restore`."""
        ...


@runtime_checkable
class Answering(Protocol):
    """An engine that a server can ask: :class:`nextvec.inference.Engine`, or one in a process of its own.

    Attributes:
        digest: of the model's settings and weights.
        weights: format of the weights.
        context: vectors that the model was trained to read; None where that is unknown.
    """

    bank: Bank
    digest: str
    weights: Any
    context: int | None

    @property
    def dim(self) -> int:
        """Width of the vectors that it reads."""
        ...

    @property
    def names_rows(self) -> bool:
        """Whether its answers can name the rows of the context that they come from."""
        ...

    @property
    def encoder_fingerprint(self) -> str:
        """Of the encoder that made the bank."""
        ...

    @property
    def place(self) -> ComputePlace:
        """Where it computes now."""
        ...

    @property
    def fault(self) -> str | None:
        """Why it cannot answer now; None if it can."""
        ...

    def session(self) -> SessionState:
        """The state of a session without vectors."""
        ...

    def restore(self, data: bytes) -> SessionState:
        """The state that :meth:`SessionState.snapshot` saved, perhaps in another process."""
        ...

    def answers(self, requests: Sequence[PredictionRequest]) -> list[list[Expected] | Exception]:
        """One answer or one error per request, in order."""
        ...

    def nearest(self, vectors: np.ndarray) -> Int64[np.ndarray, " R"]:
        """For each vector [R, D] the row of the bank that holds it, or the nearest row."""
        ...

    def cut(self, text: str) -> list[str]:
        """The chunks of a text, cut as the bank's texts were."""
        ...

    def encode_chunks(self, chunks: Sequence[str]) -> Float32[np.ndarray, "T D"]:
        """The vectors of chunks."""
        ...

    def subscribe(self, listener: StatusListener) -> None:
        """Call ``listener`` with a status and one line, in any thread, when the engine's process ends or starts again."""
        ...

    def retire(self) -> None:
        """Mark the engine as replaced: from now on the states that end with its process count as lost."""
        ...

    def close(self) -> None:
        """End the engine's own process, if it has one, and wait for that."""
        ...
