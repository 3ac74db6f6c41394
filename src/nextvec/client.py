"""A client of ``nextvec serve``::

    with Client("http://127.0.0.1:8080") as client:
        session = client.session("me")
        session.append(vectors)
        for expected in session.predict(k=5).expected:
            print(expected.score, expected.document)

An append carries a number, so that it can be sent again after a lost
connection without being applied twice. After an error the session finds out
where it stands: the same append again is a retry and applies once, another one
goes on from there. :class:`AsyncClient` is the same, awaited.
"""

# Axes: T vectors, D width.

import asyncio
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx
import numpy as np

from nextvec.errors import NextvecError
from nextvec.vectors import as_float32

TRIES, FIRST_WAIT = 4, 0.1  # seconds; doubled each time
TIMEOUT = 30.0
SNAPSHOT_MS = 30_000  # deadline of a snapshot: a long context takes longer to read than an answer
# Answers that every try of one append gets, so that no earlier try was written. A 413 with ``fits`` is none of them: how much
# of a text can be encoded in time changes from one try to the next.
NEVER_APPLIED = (400, 404, 413, 415, 422)
T = TypeVar("T")


class ServerError(NextvecError):
    """What the server refused.

    Attributes:
        status: of HTTP; 0 where no answer came.
        problem: the whole problem (RFC 9457).
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(str(problem.get("detail", "no answer")))
        self.status, self.problem = status, problem


class NotFoundError(ServerError):
    """No such session or model."""


class SeqConflictError(ServerError):
    """Another client has appended to this session; ``problem`` has the current ``seq`` and ``length``.

    The session knows them from then on, and the next append goes on from there.
    """


class ReplacedError(SeqConflictError):
    """The session was deleted, and another one was made under its name; ask the client for it again."""


class DeniedError(ServerError):
    """No key, or one without the right."""


class OverloadedError(ServerError):
    """The server had no time, again and again.

    Of an append, ``problem`` has ``applied``: whether it was written all the same; absent where that is not known.
    """


class UnreachableError(ServerError):
    """No answer came, again and again."""


@dataclass(frozen=True)
class Expected:
    """One vector that is expected next.

    Attributes:
        row: of the bank, the first that holds it.
        count: how many rows hold it.
        text: the chunk of ``row``; None unless the request asked for texts and the bank holds them.
        rows: that hold it, the first 100; None where they were not asked for.
    """

    row: int
    score: float
    document: str
    count: int = 1
    text: str | None = None
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """What is expected next, and who says so.

    Attributes:
        arm, model, reason, digest: who answered, and why.
        seq: appends so far; None without a session.
        length: vectors so far.
        lane: what the context is about; None where no lanes are served.
        request: the id to look for in the server's log.
    """

    expected: tuple[Expected, ...]
    arm: str
    model: str
    reason: str
    digest: str
    seq: int | None
    length: int
    lane: str | None
    request: str


@dataclass(frozen=True)
class _Call:
    """A request that may be made again."""

    method: str
    path: str
    content: bytes | None = None
    kind: str = ""
    query: tuple[tuple[str, str], ...] = ()
    deadline_ms: int | None = None


# A conversation is a generator of calls that is sent their responses: what the two clients share, whichever way they wait.
_Talk = Generator[_Call, httpx.Response, T]


class Client:
    """See the module.

    Args:
        url: of the server.
        key: an API key, where the server wants one.
        timeout: seconds of one try.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = TIMEOUT) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout)

    def session(self, name: str) -> "Session":
        """Begin a session, or go on with it."""
        return Session(self, name, self.run(_opened(name)))

    def restore(self, name: str, data: bytes) -> "Session":
        """Begin a session with the :meth:`~Session.snapshot` of one, perhaps of another server.

        Raises:
            ServerError: 409 a session of this name that is not empty; 400, 413, 422 bytes that the server refuses.
        """
        return Session(self, name, self.run(_restored(name, data)))

    def predict(self, vectors: Any, k: int = 10, text: bool = False, rows: bool = False) -> Answer:
        """What comes next in a whole context ``[T, D]``."""
        return self.run(_asked("/v1/predict", vectors, k, text, rows))

    def models(self) -> list[dict[str, Any]]:
        return self.run(_got("/v1/models"))["models"]

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(self, talk: _Talk[T]) -> T:
        """Hold a conversation: make its calls, again where none was heard."""
        try:
            call = next(talk)
            while True:
                call = talk.send(self._sent(call))
        except StopIteration as done:
            return done.value

    def _sent(self, call: _Call) -> httpx.Response:
        for wait in _waits():
            try:
                response = self._http.request(**_arguments(call))
            except httpx.TransportError as error:
                _raise_if_last(wait, error)
            else:
                if response.status_code != 503 or wait is None:
                    return response
            time.sleep(wait or 0.0)
        raise AssertionError("the last wait is None")


class AsyncClient:
    """:class:`Client`, awaited."""

    def __init__(self, url: str, key: str | None = None, timeout: float = TIMEOUT) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout)

    async def session(self, name: str) -> "AsyncSession":
        """Begin a session, or go on with it."""
        return AsyncSession(self, name, await self.run(_opened(name)))

    async def restore(self, name: str, data: bytes) -> "AsyncSession":
        """Begin a session with the :meth:`~AsyncSession.snapshot` of one, perhaps of another server.

        Raises:
            ServerError: 409 a session of this name that is not empty; 400, 413, 422 bytes that the server refuses.
        """
        return AsyncSession(self, name, await self.run(_restored(name, data)))

    async def predict(self, vectors: Any, k: int = 10, text: bool = False, rows: bool = False) -> Answer:
        """What comes next in a whole context ``[T, D]``."""
        return await self.run(_asked("/v1/predict", vectors, k, text, rows))

    async def models(self) -> list[dict[str, Any]]:
        return (await self.run(_got("/v1/models")))["models"]

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, talk: _Talk[T]) -> T:
        """Hold a conversation: make its calls, again where none was heard."""
        try:
            call = next(talk)
            while True:
                call = talk.send(await self._sent(call))
        except StopIteration as done:
            return done.value

    async def _sent(self, call: _Call) -> httpx.Response:
        for wait in _waits():
            try:
                response = await self._http.request(**_arguments(call))
            except httpx.TransportError as error:
                _raise_if_last(wait, error)
            else:
                if response.status_code != 503 or wait is None:
                    return response
            await asyncio.sleep(wait or 0.0)
        raise AssertionError("the last wait is None")


@dataclass(frozen=True)
class _Append:
    """An append whose answer has not come."""

    seq: int
    content: bytes
    kind: str


class _Numbered:
    """A session as this client knows it; one client appends to it at a time.

    Attributes:
        seq, length: appends and vectors so far.
        incarnation: tells this session from another one of its name; None of a server that does not say.
        state: of a session that was restored: ``restored``, or ``rebuilt`` from the context; None of any other one.
    """

    def __init__(self, name: str, found: dict[str, Any]) -> None:
        self.name, self.seq, self.length = name, int(found["seq"]), int(found["length"])
        self.incarnation: str | None = found.get("incarnation")
        self.state: str | None = found.get("state")
        self._lost: _Append | None = None
        self._unsure = False  # whether the lost append was written

    def _appending(self, content: bytes, kind: str, k: int, text: bool) -> _Talk[Answer]:
        lost = self._lost
        again = lost is not None and (lost.content, lost.kind) == (content, kind)
        if self._unsure and not again:
            self._stand(_checked((yield _Call("GET", f"/v1/sessions/{self.name}"))).json())
        seq = lost.seq if lost is not None and again else self.seq + 1
        self._lost, self._unsure = _Append(seq, content, kind), True
        query = [("seq", str(seq)), ("k", str(k)), ("text", str(int(text)))]
        if self.incarnation is not None:
            query.append(("incarnation", self.incarnation))
        response = yield _Call("POST", f"/v1/sessions/{self.name}/append", content, kind, tuple(query))
        try:
            answer = _answer(response)
        except ServerError as error:
            self._refused(error)
            raise
        self.seq, self.length = answer.seq or 0, answer.length
        self._lost, self._unsure = None, False
        return answer

    def _refused(self, error: ServerError) -> None:
        if isinstance(error, ReplacedError):
            self._lost, self._unsure = None, False
        elif "seq" in error.problem:
            self._stand(error.problem)
            if error.status == 409:
                self._lost = None
        elif error.status in NEVER_APPLIED and "fits" not in error.problem:
            self._lost, self._unsure = None, False

    def _stand(self, where: dict[str, Any]) -> None:
        """
        Raises:
            ReplacedError: another session has this name by now.
        """
        if self.incarnation is not None and where.get("incarnation", self.incarnation) != self.incarnation:
            raise ReplacedError(409, {"detail": "this session was deleted and made again", **where})
        self.seq, self.length = int(where["seq"]), int(where["length"])
        self._unsure = False

    def _of(self, vectors: Any, k: int, text: bool) -> _Talk[Answer]:
        return self._appending(*_binary(vectors), k, text)

    def _of_json(self, value: dict[str, Any], k: int, text: bool) -> _Talk[Answer]:
        return self._appending(json.dumps(value).encode(), "application/json", k, text)


class Session(_Numbered):
    """One context on the server. ``k=0`` appends without a prediction."""

    def __init__(self, client: Client, name: str, found: dict[str, Any]) -> None:
        super().__init__(name, found)
        self._client = client

    def append(self, vectors: Any, k: int = 0, text: bool = False) -> Answer:
        """Append ``[D]`` or ``[T, D]``; float16 travels as float16, everything else as float32."""
        return self._client.run(self._of(vectors, k, text))

    def append_rows(self, rows: Sequence[int], k: int = 0, text: bool = False) -> Answer:
        """Append rows of the server's bank, by number."""
        return self._client.run(self._of_json({"rows": list(rows)}, k, text))

    def append_text(self, passage: str, k: int = 0, text: bool = False) -> Answer:
        """Append a text, cut and encoded by the server."""
        return self._client.run(self._of_json({"text": passage}, k, text))

    def predict(self, k: int = 10, text: bool = False, rows: bool = False) -> Answer:
        return self._client.run(_asked(f"/v1/sessions/{self.name}/predict", None, k, text, rows))

    def snapshot(self) -> bytes:
        """The context and the model's state, for :meth:`Client.restore` and :meth:`nextvec.Engine.restore`."""
        return self._client.run(_snapshot(self.name))

    def delete(self) -> None:
        self._client.run(_deleted(self.name))


class AsyncSession(_Numbered):
    """:class:`Session`, awaited."""

    def __init__(self, client: AsyncClient, name: str, found: dict[str, Any]) -> None:
        super().__init__(name, found)
        self._client = client

    async def append(self, vectors: Any, k: int = 0, text: bool = False) -> Answer:
        """Append ``[D]`` or ``[T, D]``; float16 travels as float16, everything else as float32."""
        return await self._client.run(self._of(vectors, k, text))

    async def append_rows(self, rows: Sequence[int], k: int = 0, text: bool = False) -> Answer:
        """Append rows of the server's bank, by number."""
        return await self._client.run(self._of_json({"rows": list(rows)}, k, text))

    async def append_text(self, passage: str, k: int = 0, text: bool = False) -> Answer:
        """Append a text, cut and encoded by the server."""
        return await self._client.run(self._of_json({"text": passage}, k, text))

    async def predict(self, k: int = 10, text: bool = False, rows: bool = False) -> Answer:
        return await self._client.run(_asked(f"/v1/sessions/{self.name}/predict", None, k, text, rows))

    async def snapshot(self) -> bytes:
        """The context and the model's state, for :meth:`AsyncClient.restore` and :meth:`nextvec.Engine.restore`."""
        return await self._client.run(_snapshot(self.name))

    async def delete(self) -> None:
        await self._client.run(_deleted(self.name))


def _opened(name: str) -> _Talk[dict[str, Any]]:
    return _checked((yield _Call("PUT", f"/v1/sessions/{name}"))).json()


def _restored(name: str, data: bytes) -> _Talk[dict[str, Any]]:
    path = f"/v1/sessions/{name}/snapshot"
    return _checked((yield _Call("PUT", path, data, "application/octet-stream", deadline_ms=SNAPSHOT_MS))).json()


def _snapshot(name: str) -> _Talk[bytes]:
    return _checked((yield _Call("GET", f"/v1/sessions/{name}/snapshot", deadline_ms=SNAPSHOT_MS))).content


def _deleted(name: str) -> _Talk[None]:
    _checked((yield _Call("DELETE", f"/v1/sessions/{name}")))


def _got(path: str) -> _Talk[dict[str, Any]]:
    return _checked((yield _Call("GET", path))).json()


def _asked(path: str, vectors: Any, k: int, text: bool, rows: bool) -> _Talk[Answer]:
    content, kind = (None, "") if vectors is None else _binary(vectors)
    query = (("k", str(k)), ("text", str(int(text))), ("rows", str(int(rows))))
    return _answer((yield _Call("POST", path, content, kind, query)))


def _answer(response: httpx.Response) -> Answer:
    found: dict[str, Any] = _checked(response).json()
    found["expected"] = tuple(_expected(e) for e in found["expected"])
    return Answer(**found)


def _expected(e: dict[str, Any]) -> Expected:
    rows = tuple(e["rows"]) if "rows" in e else None
    return Expected(e["row"], e["score"], e["document"], e["count"], e.get("text"), rows)


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = {"detail": response.text[:200]}
    kinds = {404: NotFoundError, 401: DeniedError, 403: DeniedError, 503: OverloadedError, 504: OverloadedError}
    kind = kinds.get(response.status_code, ServerError)
    if response.status_code == 409 and "seq" in problem:
        kind = SeqConflictError
        asked = response.request.url.params.get("incarnation")
        if asked is not None and problem.get("incarnation", asked) != asked:
            kind = ReplacedError
    raise kind(response.status_code, problem)


def _binary(vectors: Any) -> tuple[bytes, str]:
    rows = np.atleast_2d(np.asarray(vectors))
    if rows.dtype == np.float16:
        return rows.astype("<f2").tobytes(), "application/vnd.nextvec.f16"
    # Float64 and whole numbers beyond float32 keep their direction; the server refuses NaN, infinity and zero vectors.
    return as_float32(rows).astype("<f4").tobytes(), "application/vnd.nextvec.f32"


def _arguments(call: _Call) -> dict[str, Any]:
    headers = {"content-type": call.kind} if call.kind else {}
    if call.deadline_ms is not None:
        headers["x-deadline-ms"] = str(call.deadline_ms)
    return {"method": call.method, "url": call.path, "content": call.content, "headers": headers, "params": list(call.query)}


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def _waits() -> list[float | None]:
    """Seconds after each try; None after the last."""
    return [*(FIRST_WAIT * 2**n for n in range(TRIES - 1)), None]


def _raise_if_last(wait: float | None, error: httpx.TransportError) -> None:
    if wait is None:
        raise UnreachableError(0, {"detail": f"no answer from the server after {TRIES} tries: {error}"}) from None
