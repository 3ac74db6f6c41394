"""A stop: what was connected before it is answered, and no answer is taken back."""

import asyncio
import socket
import time
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from nextvec.serving import server as serving
from nextvec.serving.guard import Guard
from nextvec.serving.protocol import Hooks, protocol
from nextvec.serving.service import Service
from tests.waiting import PATIENCE


async def app(_: Any, receive: Any, send: Any) -> None:
    await receive()
    headers = [(b"content-length", b"8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"answered"})


def read(connection: socket.socket) -> bytes:
    """All that comes; what a reset took is missing."""
    received = b""
    with connection, suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def test_connections_that_wait_to_be_accepted_when_the_server_stops_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listening socket that is closed resets the connections in its queue, and clients had sent requests on them."""
    monkeypatch.setattr(serving, "DRAIN_SECONDS", 0.0)
    monkeypatch.setattr(Service, "drain", lambda service: setattr(service, "ready", False))  # it has no texts here
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    hooks = Hooks(lambda _: False, lambda: None, lambda *_: None)
    config = uvicorn.Config(app, http=protocol(hooks), ws="none", lifespan="off", log_config=None, access_log=False)

    async def scenario() -> list[bytes]:
        service, guard = object.__new__(Service), object.__new__(Guard)
        server = serving._Server(config, service, guard, listener)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        # The loop does not turn while this runs: the kernel completes the connections, and nothing accepts them.
        waiting = [socket.create_connection(listener.getsockname(), timeout=PATIENCE) for _ in range(50)]
        for n, connection in enumerate(waiting):
            if n % 2:  # the others send a moment later
                connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        server.should_exit = True
        time.sleep(0.3)  # uvicorn looks every 0.1 s whether to exit: it does before it accepts
        for connection in waiting[::2]:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        readers = asyncio.gather(*(asyncio.to_thread(read, connection) for connection in waiting))
        answers, _ = await asyncio.gather(readers, task)  # together, so that a server that fails ends the test at once
        assert guard.draining
        assert not service.ready
        return answers

    with asyncio.Runner(loop_factory=serving.loop_factory()) as runner:
        answers = runner.run(scenario())
    assert len(answers) == 50
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"answered")
