"""The client that is awaited."""

import asyncio
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


class AsyncClient:
    """:class:`nextvec.client.Client`, awaited."""

    def __init__(self, url: str, key: str | None = None, timeout: float = tries.TIMEOUT) -> None:
        self._http = httpx.AsyncClient(**tries.connection(url, key, timeout))

    async def session(self, name: str) -> "AsyncSession":
        """Begin a session, or continue it."""
        return AsyncSession(self, await self.run(calls.begin(name)))

    async def restore(self, name: str, data: bytes) -> "AsyncSession":
        """Begin a session with a :meth:`~AsyncSession.snapshot`, of this server or another one.

        Raises:
            ServerError: 409 the session exists and is not empty; 400, 413, 422 the server refuses the snapshot.
        """
        return AsyncSession(self, await self.run(calls.restore(name, data)))

    async def predict(
        self, vectors: Any, k: int = 10, text: bool = False, rows: bool = False, because: int = 0
    ) -> PredictionAnswer:
        """What comes next in a whole context ``[T, D]``; arguments as of :meth:`nextvec.client.Client.predict`."""
        return await self.run(calls.predict("/v1/predict", vectors, k, text, rows, because))

    async def models(self) -> list[ModelDescription]:
        """The models that are served."""
        return await self.run(calls.models())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, exchange: Exchange[T]) -> T:
        """Send the calls of an exchange, repeating those without an answer, and return its result."""
        try:
            call = next(exchange)
            while True:
                call = exchange.send(await self._send(call))
        except StopIteration as done:
            return done.value

    async def _send(self, call: Call) -> httpx.Response:
        for wait in tries.waits():
            try:
                response = await self._http.request(**call.arguments())
            except httpx.TransportError as error:
                tries.raise_if_last(wait, error)
            else:
                if tries.is_final(response, wait):
                    return response
            await asyncio.sleep(wait or 0.0)
        raise AssertionError("the last wait is None")


class AsyncSession(NumberedSession):
    """:class:`nextvec.client.Session`, awaited."""

    def __init__(self, client: AsyncClient, found: SessionDescription) -> None:
        super().__init__(found)
        self._client = client

    async def append(self, vectors: Any, k: int = 0, text: bool = False) -> PredictionAnswer:
        """Append ``[D]`` or ``[T, D]``; float16 is sent as float16, every other type as float32."""
        return await self._client.run(self.appended(vectors, k, text))

    async def append_rows(self, rows: Sequence[int], k: int = 0, text: bool = False) -> PredictionAnswer:
        """Append rows of the server's bank, by number."""
        return await self._client.run(self.appended_json(ContextRequest(rows=list(rows)), k, text))

    async def append_text(self, passage: str, k: int = 0, text: bool = False) -> PredictionAnswer:
        """Append a text, which the server cuts and encodes."""
        return await self._client.run(self.appended_json(ContextRequest(text=passage), k, text))

    async def predict(self, k: int = 10, text: bool = False, rows: bool = False, because: int = 0) -> PredictionAnswer:
        """What comes next; arguments as of :meth:`AsyncClient.predict`."""
        return await self._client.run(calls.predict(f"/v1/sessions/{self.name}/predict", None, k, text, rows, because))

    async def snapshot(self) -> bytes:
        """The context and the model's state, for :meth:`AsyncClient.restore` and :meth:`nextvec.Engine.restore`."""
        return await self._client.run(calls.snapshot(self.name))

    async def delete(self) -> None:
        """Delete the session on the server."""
        await self._client.run(calls.delete(self.name))
