"""A session: the vectors that one reader has read, kept as a state of the model."""

# Axes: B sessions, T vectors, D width, W width of an output.

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from nextvec.bank import Bank
from nextvec.inference import snapshot
from nextvec.inference.expected import Expected
from nextvec.inference.states import State, num_bytes

NO_ROWS = np.empty(0, np.int64)


@runtime_checkable
class SessionEngine(Protocol):
    """The part of :class:`~nextvec.inference.Engine` that its sessions call."""

    @property
    def bank(self) -> Bank: ...
    @property
    def digest(self) -> str: ...
    def step(self, sessions: "Sequence[Session]", vectors: np.ndarray) -> Float32[np.ndarray, "B W"]: ...
    def read(self, session: "Session", vectors: np.ndarray) -> Float32[np.ndarray, " W"]: ...
    def predict(
        self, sessions: "Sequence[Session]", k: int = 5, documents: Sequence[int] | None = None, because: int = 0
    ) -> list[list[Expected]]: ...
    def encode(self, text: str) -> Float32[np.ndarray, "T D"]: ...


class Session:
    """One sequence of vectors, read step by step. A call that raises leaves the session unchanged.

    Made by :meth:`~nextvec.inference.Engine.session`.

    Attributes:
        length: number of vectors read.
        prediction: [W], the output of the model after the last vector: the expected next vector, of unit length and in the
            space of the model, or several queries and their log weights (``model.queries``); None before the first vector.
    """

    def __init__(self, engine: SessionEngine, state: State) -> None:
        self.engine = engine
        self.state = state
        self.length = 0
        self.prediction: Float32[np.ndarray, " W"] | None = None
        self._seen: Int64[np.ndarray, " rows"] = NO_ROWS
        self._unseen: tuple[np.ndarray, ...] = ()  # vectors read that were not yet looked up in the bank

    @staticmethod
    def restored(engine: SessionEngine, saved: snapshot.SavedState) -> "Session":
        """The session that a snapshot describes."""
        session = Session(engine, saved.state)
        session.length, session.prediction, session._seen = saved.length, saved.prediction, saved.seen
        return session

    def push(self, vector: np.ndarray) -> Float32[np.ndarray, " W"]:
        """Read one vector [D] of any float type; returns the prediction.

        Raises:
            DataError: wrong width, NaN, infinity or a zero vector.
        """
        return self.engine.step([self], np.asarray(vector)[None])[0]

    def push_many(self, vectors: np.ndarray) -> Float32[np.ndarray, " W"]:
        """Read vectors [T, D] in order, at least one; returns the prediction after the last.

        Raises:
            DataError: as :meth:`push`; then no vector is read.
        """
        return self.engine.read(self, vectors)

    def catch_up(self, vectors: np.ndarray) -> None:
        """:meth:`push_many`, then look the vectors up in the bank at once, so that the next prediction is not delayed by it.

        Raises:
            DataError: as :meth:`push`; then no vector is read.
        """
        self.push_many(vectors)
        self.rows_seen()

    def push_text(self, text: str) -> Float32[np.ndarray, " W"]:
        """Read a text, cut and encoded as the texts of the bank; returns the prediction after it.

        Raises:
            DataError: an empty text, or a bank whose encoder is not installed.
        """
        return self.push_many(self.engine.encode(text))

    def predict(self, k: int = 5, documents: Sequence[int] | None = None, because: int = 0) -> list[Expected]:
        """The ``k`` distinct vectors expected next, best first, without those that the context holds.

        The candidates are those of an exam over the whole bank.

        Args:
            documents: numbers of the bank's documents to search; None for all.
            because: rows of the context to name for each vector (:attr:`Expected.because`), where ``engine.names_rows``.

        Raises:
            DataError: the session has read nothing, or a document does not exist.
            SettingsError: k below 1, ``because`` below 0, or a model that does not name rows.
        """
        return self.engine.predict([self], k, documents, because)[0]

    def snapshot(self) -> bytes:
        """All that :meth:`Engine.restore` needs to continue this session in another process."""
        saved = snapshot.SavedState(self.state, self.length, self.prediction, self.rows_seen())
        return snapshot.dump(saved, self.engine.digest, self.engine.bank.fingerprint)

    def copy(self) -> "Session":
        """An independent session with the same state."""
        other = Session(self.engine, self.state)  # a step makes a new state and never writes the old one
        other.length, other.prediction = self.length, self.prediction
        other._seen, other._unseen = self._seen, self._unseen
        return other

    def rows_seen(self) -> Int64[np.ndarray, " rows"]:
        """The distinct vectors of the bank that the context holds, each by its first row, ascending.

        Each vector is looked up once.
        """
        if self._unseen:
            found = np.unique(self.engine.bank.distinct.find(np.concatenate(self._unseen)))
            places = np.searchsorted(self._seen, found)
            known = (found < 0) | (self._seen.take(places, mode="clip") == found) if len(self._seen) else found < 0
            if not known.all():  # two sorted runs, which a stable sort merges
                self._seen = np.sort(np.concatenate([self._seen, found[~known]]), kind="stable")
            self._unseen = ()
        return self._seen

    def advance(self, state: State, prediction: Float32[np.ndarray, " W"], rows: Float32[np.ndarray, "T D"]) -> None:
        """Set the state and prediction after ``rows``; called by the engine."""
        self.state, self.prediction = state, prediction
        self.length += len(rows)
        self._unseen = (*self._unseen, rows)

    @property
    def lost(self) -> bool:
        """False: the state lies in this object."""
        return False

    @property
    def num_bytes(self) -> int:
        """Memory in bytes of the state, the prediction and the rows seen."""
        return (
            num_bytes(self.state)
            + (0 if self.prediction is None else self.prediction.nbytes)
            + self._seen.nbytes
            + sum(rows.nbytes for rows in self._unseen)
        )
