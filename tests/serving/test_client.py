"""The client: what it sends again, what it does not, and what its errors are."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from nextvec.client import AsyncClient, Client, NotFoundError, ServerError, UnreachableError, tries
from nextvec.client.numbering import NumberedSession
from nextvec.serving.refusal import RefusedError
from nextvec.wire.predictions import ContextRequest
from nextvec.wire.sessions import SessionDescription
from tests.serving.server import Running, rows_of, serving


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(made / "run0", tmp_path_factory.mktemp("client") / "sessions") as running:
        yield running


@contextmanager
def faulty(server: Running, loses: Callable[[int], bool]) -> Iterator[str]:
    """A proxy that passes requests on, and loses the answers of some: the server has acted, the client has not heard."""
    listener = socket.create_server(("127.0.0.1", 0))
    numbers = iter(range(10**6))

    def serve() -> None:
        while True:
            try:
                incoming, _ = listener.accept()
            except OSError:
                return
            with incoming, socket.create_connection(server.address) as outgoing:
                while request := whole(incoming):
                    outgoing.sendall(request)
                    answer = whole(outgoing)
                    if loses(next(numbers)):
                        break
                    incoming.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        port = listener.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def whole(connection: socket.socket) -> bytes:
    """One request or answer: its head, and as much body as that says."""
    request = b""
    while b"\r\n\r\n" not in request:
        part = connection.recv(1 << 20)
        if not part:
            return b""
        request += part
    head, _, body = request.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")), 0)
    while len(body) < length:
        body += connection.recv(1 << 20)
    return head + b"\r\n\r\n" + body


def test_a_lost_answer_is_asked_for_again_and_applied_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.01)
    rows = rows_of(12, 1)
    with faulty(server, lambda n: n % 3 == 1) as url, Client(url) as client:
        session = client.session("lossy")
        for row in rows:
            session.append(row)
        assert (session.seq, session.length) == (12, 12)
    with Client(server.url) as client:
        session = client.session("lossy")
        assert (session.seq, session.length) == (12, 12)
        assert [e.row for e in session.predict(5).expected] == [e.row for e in client.predict(rows, 5).expected]


def test_an_append_whose_answers_are_all_lost_is_found_out_about(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was written is not known; the same again applies once, another one goes on behind it."""
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.01)
    heard = threading.Event()
    heard.set()
    with faulty(server, lambda _: not heard.is_set()) as url, Client(url) as client:
        for name, repeated in (("again", True), ("on", False)):
            session = client.session(name)
            heard.clear()
            with pytest.raises(UnreachableError):
                session.append(rows_of(2, 1))
            heard.set()
            assert (session.seq, session.length) == (0, 0)
            if repeated:
                assert session.append(rows_of(2, 1)).length == 2
            assert session.append(rows_of(1, 2)).length == 3
            assert session.seq == 2


def test_a_text_refused_by_pace_may_have_been_written_by_an_earlier_try() -> None:
    """The first try is applied, its answer is lost, and the second gets 413: the next append asks where the session stands."""
    session = NumberedSession(SessionDescription("a", 0, 0, 0, "0" * 16))

    def answer(status: int, body: bytes) -> httpx.Response:
        return httpx.Response(status, content=body, request=httpx.Request("POST", "http://localhost/"))

    talk = session.appended_json(ContextRequest(text="A"), 0, False)
    next(talk)
    with pytest.raises(ServerError):
        talk.send(answer(413, RefusedError(413, "too long", fits=2000).body("r1")))
    talk = session.appended_json(ContextRequest(text="B"), 0, False)
    assert next(talk).method == "GET"
    call = talk.send(answer(200, msgspec.json.encode(SessionDescription("a", 1, 4, 99, "0" * 16))))
    assert dict(call.query)["seq"] == "2"


def test_no_server_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "FIRST_WAIT", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(UnreachableError):
        client.models()


def test_refusals_are_typed(server: Running) -> None:
    with Client(server.url) as client:
        session = client.session("typed")
        with pytest.raises(ServerError) as refused:
            session.append(np.full(16, np.nan))
        assert refused.value.status == 400
        assert session.seq == 0
        session.append(rows_of(2).astype(np.float16))
        session.delete()
        with pytest.raises(NotFoundError):
            session.predict()


def test_the_same_awaited(server: Running) -> None:
    async def talk() -> tuple[list[int], list[int], int]:
        async with AsyncClient(server.url) as client:
            session = await client.session("awaited")
            await session.append(rows_of(3))
            answer = await session.append_rows([1, 2], k=4)
            found = await session.predict(4)
            await session.delete()
            assert (await client.models())[0].dim == 16
            return [e.row for e in answer.expected], [e.row for e in found.expected], answer.length

    answered, predicted, length = asyncio.run(talk())
    assert answered == predicted
    assert length == 5
