"""The client that blocks until an answer comes."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx

from nextvec.client import calls, tries
from nextvec.client.calls import Call, Exchange
from nextvec.client.numbering import NumberedSession
from nextvec.wire.operations import ModelDescription
from nextvec.wire.predictions import ContextRequest, PredictionAnswer
from nextvec.wire.sessions import SessionDescription

T = TypeVar("T")


class Client:
    """See :mod:`nextvec.client`.

    Args:
        url: of the server.
        key: an API key, if the server wants one.
        timeout: seconds of one try.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = tries.TIMEOUT) -> None:
        self._http = httpx.Client(**tries.connection(url, key, timeout))

    def session(self, name: str) -> "Session":
        """Begin a session, or continue it."""
        return Session(self, self.run(calls.begin(name)))

    def restore(self, name: str, data: bytes) -> "Session":
        """Begin a session with a :meth:`~Session.snapshot`, of this server or another one.

        Raises:
            ServerError: 409 the session exists and is not empty; 400, 413, 422 the server refuses the snapshot.
        """
        return Session(self, self.run(calls.restore(name, data)))

    def predict(self, vectors: Any, k: int = 10, text: bool = False, rows: bool = False, because: int = 0) -> PredictionAnswer:
        """What comes next in a whole context ``[T, D]``.

        Args:
            k: vectors to predict.
            text: whether the answer holds the texts of chunks.
            rows: whether the answer lists the rows that hold each vector.
            because: rows of the context to name for each vector.

        Raises:
            ServerError: 400 ``because``, and the server's stable model does not name rows.
        """
        return self.run(calls.predict("/v1/predict", vectors, k, text, rows, because))

    def models(self) -> list[ModelDescription]:
        """The models that are served."""
        return self.run(calls.models())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(self, exchange: Exchange[T]) -> T:
        """Send the calls of an exchange, repeating those without an answer, and return its result."""
        try:
            call = next(exchange)
            while True:
                call = exchange.send(self._send(call))
        except StopIteration as done:
            return done.value

    def _send(self, call: Call) -> httpx.Response:
        for wait in tries.waits():
            try:
                response = self._http.request(**call.arguments())
            except httpx.TransportError as error:
                tries.raise_if_last(wait, error)
            else:
                if tries.is_final(response, wait):
                    return response
            time.sleep(wait or 0.0)
        raise AssertionError("the last wait is None")


class Session(NumberedSession):
    """One context on the server. ``k=0`` appends without a prediction."""

    def __init__(self, client: Client, found: SessionDescription) -> None:
        super().__init__(found)
        self._client = client

    def append(self, vectors: Any, k: int = 0, text: bool = False) -> PredictionAnswer:
        """Append ``[D]`` or ``[T, D]``; float16 is sent as float16, every other type as float32."""
        return self._client.run(self.appended(vectors, k, text))

    def append_rows(self, rows: Sequence[int], k: int = 0, text: bool = False) -> PredictionAnswer:
        """Append rows of the server's bank, by number."""
        return self._client.run(self.appended_json(ContextRequest(rows=list(rows)), k, text))

    def append_text(self, passage: str, k: int = 0, text: bool = False) -> PredictionAnswer:
        """Append a text, which the server cuts and encodes."""
        return self._client.run(self.appended_json(ContextRequest(text=passage), k, text))

    def predict(self, k: int = 10, text: bool = False, rows: bool = False, because: int = 0) -> PredictionAnswer:
        """What comes next; arguments as of :meth:`Client.predict`."""
        return self._client.run(calls.predict(f"/v1/sessions/{self.name}/predict", None, k, text, rows, because))

    def snapshot(self) -> bytes:
        """The context and the model's state, for :meth:`Client.restore` and :meth:`nextvec.Engine.restore`."""
        return self._client.run(calls.snapshot(self.name))

    def delete(self) -> None:
        """Delete the session on the server."""
        self._client.run(calls.delete(self.name))
