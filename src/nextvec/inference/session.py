"""A session: what one reader has read, as a model's state; a new vector is one step, whatever came before."""

# Axes: T vectors, D width.

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64

from nextvec.inference import snapshot
from nextvec.inference.expected import Expected
from nextvec.inference.states import State, num_bytes

if TYPE_CHECKING:
    from nextvec.inference.engine import Engine

NO_ROWS = np.empty(0, np.int64)


class Session:
    """Made by :meth:`~nextvec.inference.Engine.session`; one that refuses its input stays as it was.

    Attributes:
        length: vectors read.
        prediction: [D], the expected next vector, of unit length; None before anything was read.
    """

    def __init__(self, engine: "Engine", state: State) -> None:
        self.engine = engine
        self.state = state
        self.length = 0
        self.prediction: Float32[np.ndarray, " D"] | None = None
        self._seen: Int64[np.ndarray, " rows"] = NO_ROWS
        self._unseen: tuple[np.ndarray, ...] = ()  # vectors read since their copies were last looked for

    def push(self, vector: np.ndarray) -> Float32[np.ndarray, " D"]:
        """Read one vector [D] of any float type; the expected next one.

        Raises:
            DataError: wrong width, NaN, infinity or a zero vector.
        """
        return self.engine.step([self], np.asarray(vector)[None])[0]

    def push_many(self, vectors: np.ndarray) -> Float32[np.ndarray, " D"]:
        """Read vectors [T, D] in order, at least one; what is expected after the last.

        Raises:
            DataError: as :meth:`push`; then nothing is read.
        """
        return self.engine.read(self, vectors)

    def catch_up(self, vectors: np.ndarray) -> None:
        """:meth:`push_many`, and look up at once what the vectors hold of the bank: a prediction need not wait for it.

        Raises:
            DataError: as :meth:`push`; then nothing is read.
        """
        self.push_many(vectors)
        self.rows_seen()

    def push_text(self, text: str) -> Float32[np.ndarray, " D"]:
        """Read a text, cut and encoded as the bank was; what is expected after it.

        Raises:
            DataError: an empty text, or a bank whose encoder is not here.
        """
        return self.push_many(self.engine.encode(text))

    def predict(self, k: int = 5, documents: Sequence[int] | None = None) -> list[Expected]:
        """The ``k`` distinct vectors expected next, best first; those that the context already holds are left out.

        They are the candidates of an exam over the whole bank, and no others.

        Args:
            documents: numbers of the bank's documents to look in; None for all.

        Raises:
            DataError: nothing was read yet, or there is no such document.
        """
        return self.engine.predict([self], k, documents)[0]

    def snapshot(self) -> bytes:
        """Everything to go on from here in another process, with :meth:`Engine.restore`."""
        return snapshot.dump(self)

    def copy(self) -> "Session":
        """A session that goes on from here on its own."""
        other = Session(self.engine, self.state)  # a step makes a new state and never writes the old one
        other.length, other.prediction = self.length, self.prediction
        other._seen, other._unseen = self._seen, self._unseen
        return other

    def rows_seen(self) -> Int64[np.ndarray, " rows"]:
        """The vectors of the bank that the context holds, each by its first row, ascending; each is looked up once."""
        if self._unseen:
            found = np.unique(self.engine.bank.distinct.find(np.concatenate(self._unseen)))
            found = found[found >= 0]
            places = np.searchsorted(self._seen, found)
            known = np.append(self._seen, -1)[places] == found
            self._seen = np.insert(self._seen, places[~known], found[~known])
            self._unseen = ()
        return self._seen

    def moved(self, state: State, prediction: Float32[np.ndarray, " D"], rows: Float32[np.ndarray, "T D"]) -> None:
        """What the engine does after it has read for this session."""
        self.state, self.prediction = state, prediction
        self.length += len(rows)
        self._unseen = (*self._unseen, rows)

    def restored(self, state: State, length: int, prediction: np.ndarray | None, seen: np.ndarray) -> "Session":
        """What a snapshot does."""
        self.state, self.length, self.prediction, self._seen = state, length, prediction, seen
        return self

    @property
    def lost(self) -> bool:
        """False: the state lies in this object."""
        return False

    @property
    def num_bytes(self) -> int:
        """Memory of the state, the prediction and the rows seen."""
        return (
            num_bytes(self.state)
            + (0 if self.prediction is None else self.prediction.nbytes)
            + self._seen.nbytes
            + sum(rows.nbytes for rows in self._unseen)
        )
