"""The connection, over real sockets: what is refused before it is a request, and what a client cannot make the server hold."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from nextvec.serving import connection_close, protocol
from nextvec.serving.protocol import Guarded, Hooks
from nextvec.serving.server import loop_factory
from tests.waiting import PATIENCE, until

BIG = b"x" * 200_000


@dataclass
class Door:
    """A listening protocol in a thread, before an application that says what it was asked."""

    address: tuple[str, int]
    loop: asyncio.AbstractEventLoop
    state: ServerState
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    seen: list[dict[bytes, bytes]] = field(default_factory=list)
    overloaded: bool = False

    def talk(self, *parts: bytes) -> bytes:
        """What comes back until the server closes; each part is sent by itself."""
        with socket.create_connection(self.address, timeout=PATIENCE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in parts:
                connection.sendall(part)
            received = b""
            while part := connection.recv(65536):
                received += part
            return received

    def inside(self, look: Callable[[], Any]) -> Any:
        """What ``look`` returns in the thread of the loop."""

        async def call() -> Any:
            return look()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(PATIENCE)

    def connections(self) -> list[Guarded]:
        return [c for c in self.state.connections if isinstance(c, Guarded)]


@pytest.fixture(scope="module")
def opened() -> Iterator[Door]:
    loop = loop_factory()()
    doors: list[Door] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        door = doors[0]
        door.seen.append(dict(scope["headers"]))
        body = b""
        while scope["path"] != "/unread":
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        door.seen[-1] = dict(scope["headers"])  # as a handler would see them that has read the body
        said = f"{scope['method']} {scope['path']} {len(body)};".encode()
        answer = BIG if scope["path"] == "/big" else said
        headers = [(b"content-length", b"%d" % len(answer))]
        headers += [(b"connection", b"close")] if scope["path"] == "/unread" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def listen() -> Any:
        state = ServerState()
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        hooks = Hooks(lambda _: doors[0].overloaded, lambda: None, lambda *refusal: doors[0].refused.append(refusal))
        made: Any = protocol.protocol(hooks)
        server = await loop.create_server(lambda: made(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
        doors.append(Door(server.sockets[0].getsockname(), loop, state))
        return server

    async def close(server: Any) -> None:
        server.close()
        for connection in doors[0].connections():
            connection.transport.abort()
        await asyncio.sleep(0)
        await server.wait_closed()

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(PATIENCE)
    yield doors[0]
    asyncio.run_coroutine_threadsafe(close(server), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


@pytest.fixture
def door(opened: Door) -> Door:
    opened.refused.clear()
    opened.seen.clear()
    opened.overloaded = False
    return opened


POST = b"POST /x HTTP/1.1\r\nhost: a\r\n"
GET = b"GET /x HTTP/1.1\r\nhost: a\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        # What the parser lets pass.
        (400, b"GET /x HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n"),
        (400, b"GET /x HTTP/1.1\r\n\r\n"),
        (400, GET + b"authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"),
        (400, POST + b"content-type: a/b\r\ncontent-type: c/d\r\ncontent-length: 0\r\n\r\n"),
        (400, b"GET http://other/x HTTP/1.1\r\nhost: a\r\n\r\n"),
        (400, b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"),
        (400, b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n"),
        (400, b"POST /x HTTP/1.0\r\nhost: a\r\n" + CHUNKED),
        (501, POST + b"transfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        (501, POST + b"transfer-encoding: identity, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        (400, POST + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 30\r\n\r\nGET /s HTTP/1.1\r\nhost: a\r\n\r\nabc"),
        (400, POST + b"connection: upgrade\r\nupgrade: h2c\r\n" + CHUNKED),
        (505, b"GET /x HTTP/2.0\r\nhost: a\r\n\r\n"),
        (505, b"GET /x\r\n\r\n"),
        (431, GET + b"x-long: " + b"a" * 40_000 + b"\r\n\r\n"),
        (431, GET + b"x: y\r\n" * 10_000 + b"\r\n"),
        # What it refuses by itself, and must go on refusing.
        (400, POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc"),
        (400, POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
        (400, POST + b"content-length: 3, 3\r\n\r\nabc"),
        (400, POST + b"content-length: +3\r\n\r\nabc"),
        (400, POST + b"content-length: 3\r\n" + CHUNKED),
        (400, POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n"),
        (501, POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        (400, POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n"),
        (400, GET + b"x: a\r\n b\r\n\r\n"),
        (400, b"GET /x HTTP/1.1\r\n host: a\r\n\r\n"),
        (400, b"GET /x HTTP/1.1\nhost: a\n\n"),
        (400, GET + b"x: a\rb: c\r\n\r\n"),
        (400, GET + b"x: a\x00b\r\n\r\n"),
        (400, GET + b"nocolon\r\n\r\n"),
        (400, b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n"),
        (400, b"GET x HTTP/1.1\r\nhost: a\r\n\r\n"),
        (400, b"\x16\x03\x01 nonsense\r\n\r\n"),
        # In a body whose request is under way.
        (400, POST + b"transfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"),
        (400, POST + b"transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n"),
        (400, POST + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
        (400, POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n"),
    ],
)  # fmt: skip
def test_a_malformed_request_gets_one_problem_and_no_second_reading(door: Door, status: int, sent: bytes) -> None:
    got = door.talk(sent + GET + b"\r\n")  # what follows must not be read as a request
    head, _, body = got.partition(b"\r\n\r\n")
    problem = json.loads(body)  # one answer and nothing after it
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert problem["status"] == status
    assert "\n" not in problem["detail"]
    assert [(s, d, r) for s, d, r in door.refused] == [(status, problem["detail"], problem["request"])]
    assert f"x-request-id: {problem['request']}".encode() in head


@pytest.mark.parametrize(
    "sent",
    [
        b"GET http://a/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET /x HTTP/1.0\r\n\r\n",
        b"\r\n\r\nGET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\naccept: a\r\naccept: b\r\n\r\n",
        GET + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n" + GET + b"connection: close\r\n\r\n",
    ],
)
def test_what_only_looks_odd_is_answered(door: Door, sent: bytes) -> None:
    got = door.talk(sent)
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.endswith(b"GET /x 0;")
    assert door.refused == []


BODY = b"\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
PIPELINE = (
    b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
    + b"POST /b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n"
    + b"\r\nGET /c HTTP/1.1\r\nhost: a\r\n\r\n"
    + b"PUT /d HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
    + b"GET /e HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
)  # fmt: skip


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, len(PIPELINE)])
def test_pipelined_requests_are_answered_in_order_however_their_bytes_come(door: Door, step: int) -> None:
    got = door.talk(*(PIPELINE[n : n + step] for n in range(0, len(PIPELINE), step)))
    answers = [part.partition(b"\r\n\r\n")[2] for part in got.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [b"POST /a %d;" % len(BODY), b"POST /b 6;", b"GET /c 0;", b"PUT /d 0;", b"GET /e 0;"]


def test_a_trailer_is_no_header(door: Door) -> None:
    """It comes after the head was checked, so it could carry what a proxy or the guard would have refused."""
    sent = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n0\r\nauthorization: Bearer x\r\nx-lane: law\r\n\r\n"
    assert door.talk(sent).endswith(b"POST /x 0;")
    assert set(door.seen[-1]) == {b"host", b"connection", b"transfer-encoding"}


def test_a_refusal_under_overload_keeps_the_connection_and_its_order(door: Door) -> None:
    door.overloaded = True
    posted = POST + b"content-length: 3\r\n\r\nabc"
    got = door.talk(posted * 3 + GET + b"connection: close\r\n\r\n")
    assert got.count(b"HTTP/1.1 503 ") == 3
    assert got.endswith(b"GET /x 0;")


def test_an_idle_connection_is_closed_silently_and_a_stalled_head_with_408(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.1)
    monkeypatch.setattr(protocol, "IDLE_SECONDS", 0.1)
    assert door.talk() == b""
    assert door.talk(b"\r\n") == b""
    stalled = door.talk(GET)
    assert stalled.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in stalled
    # A connection that has been answered and has begun another request.
    second = door.talk(GET + b"\r\n" + GET).split(b"HTTP/1.1 ")
    assert [part[:3] for part in second] == [b"", b"200", b"408"]


def test_a_spare_connection_is_used_after_the_time_that_a_head_may_take(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.05)
    with socket.create_connection(door.address) as spare:
        time.sleep(0.5)  # a browser connects before it has a request
        spare.sendall(GET + b"connection: close\r\n\r\n")
        assert spare.makefile("rb").read().endswith(b"GET /x 0;")


def test_a_client_that_pipelines_and_does_not_read_holds_little_and_delays_nobody(door: Door) -> None:
    asked = b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n" * 1_000
    flood = [socket.create_connection(door.address) for _ in range(20)]

    def held() -> list[tuple[int, int, int]]:
        connections = [c for c in door.connections() if c.flow.write_paused]
        return [(len(c._held), len(c.pipeline), c.transport.get_write_buffer_size()) for c in connections]

    try:
        for connection in flood:
            connection.setblocking(False)
        for _ in range(40):  # 20 x 40 x 30 kB
            for connection in flood:
                with suppress(BlockingIOError):
                    connection.send(asked)
            assert door.talk(GET + b"connection: close\r\n\r\n").endswith(b"GET /x 0;")
        most = door.inside(held)
        assert len(most) == len(flood)
        for raw, requests, answers in most:
            assert raw <= 1 << 20
            assert requests == 0  # one is being answered, none is parsed beyond it
            assert answers <= 65_536 + 2 * len(BIG)
        # None of them is worked for any more.
        count = len(door.seen)
        door.talk(GET + b"connection: close\r\n\r\n")
        door.talk(GET + b"connection: close\r\n\r\n")
        assert len(door.seen) - count == 2
    finally:
        for connection in flood:
            connection.close()
    until(lambda: not door.inside(door.connections))


def test_a_client_that_takes_nothing_is_closed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_close, "STALL_SECONDS", 0.05)
    with socket.create_connection(door.address) as connection:
        connection.setblocking(False)
        asked = b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n" * 1_000
        with suppress(BlockingIOError):
            connection.send(asked)
        until(lambda: len(door.seen) > 0)
        until(lambda: not door.inside(door.connections))


class Pipe(asyncio.Transport):
    """A transport whose client takes bytes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.calls = 0, list[str]()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.size += len(data)

    def get_write_buffer_size(self) -> int:
        return self.size

    def is_closing(self) -> bool:
        return "abort" in self.calls

    def write_eof(self) -> None:
        self.calls.append("eof")

    def resume_reading(self) -> None:
        self.calls.append("read")

    def abort(self) -> None:
        self.calls.append("abort")


class Timers:
    """A loop whose timers fire when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> Any:
        entry = (delay, call)
        self.waiting.append(entry)

        class Handle:
            cancel = staticmethod(lambda: self.waiting.remove(entry))

        return Handle()

    def fire(self) -> None:
        self.waiting.pop(0)[1]()


def test_a_slow_reader_is_kept_while_it_reads_even_if_its_buffer_stays_full() -> None:
    pipe, timers = Pipe(), Timers()
    held = connection_close.LingeringTransport(pipe, timers.call_later)
    held.write(b"x" * 100)
    for _ in range(5):
        pipe.size -= 60  # read
        held.write(b"x" * 60)  # and filled again
        timers.fire()
        assert not held.is_closing()
    timers.fire()  # nothing was read since
    assert pipe.calls == ["abort"]


def test_a_closed_connection_waits_for_its_client_within_bounds() -> None:
    pipe, timers = Pipe(), Timers()
    held = connection_close.LingeringTransport(pipe, timers.call_later)
    held.close()
    assert pipe.calls == ["eof", "read"]
    assert [delay for delay, _ in timers.waiting] == [connection_close.LINGER_SECONDS]
    held.drop(connection_close.LINGER_BYTES)
    assert "abort" not in pipe.calls
    held.drop(1)
    assert "abort" in pipe.calls


def test_an_answer_reaches_a_client_that_is_still_sending(door: Door) -> None:
    """The server answers before it has read the body; a reset would take the answer away from the client."""
    size = 32 << 20
    with socket.create_connection(door.address, timeout=PATIENCE) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.endswith(b"POST /unread 0;")
