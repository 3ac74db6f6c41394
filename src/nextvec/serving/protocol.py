"""The HTTP protocol of a connection: its deadlines and bounds, malformed heads, and load shedding before a request is read."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nextvec.serving import request_head
from nextvec.serving.connection_close import LingeringTransport
from nextvec.serving.refusal import RefusedError
from nextvec.wire.media import PROBLEM

HEADER_SECONDS, MOST_HEADERS = 5.0, 32 << 10
IDLE_SECONDS = 30.0  # that a connection may stay without a request; browsers open spare ones and use them when they need them
MOST_CONNECTIONS = 4096
SMALL_BODY = 64 << 10  # the server reads past a shed request's body if it is known to be small, else it closes the connection
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Hooks:
    """Functions of the server that a connection calls.

    Attributes:
        overloaded: whether one more request would wait too long, given the number in flight.
        shed: counts a request that was refused because of overload.
        refused: called for a request that was refused by its head: status, detail, request id.
    """

    overloaded: Callable[[int], bool]
    shed: Callable[[], None]
    refused: Callable[[int, str, str], None]


class Guarded(HttpToolsProtocol):
    """uvicorn's protocol with deadlines, bounds and shedding.

    - **One request at a time.** The parser gets the bytes of the next request when the last answer is complete and the client
      has read it. Until then the bytes are held, and the socket is not read: a connection that pipelines holds at most one read
      (64 to 256 KiB) and one request.
    - **A client that does not read its answers** is closed by :class:`LingeringTransport`; while its buffer is full, no request
      of it is read.
    - **Load shedding.** At twice the load that it can answer, a server keeps nine tenths of its goodput only if a refusal costs
      less than a tenth of an answer (from a s + (2 - a) r = 1 with s = 1). So a refusal is written before a task, a scope or a
      body exists.

    uvicorn itself has no deadline for headers or bodies, no bound on headers or on pipelined requests.
    """

    hooks: Hooks
    transport: LingeringTransport  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._held, self._at, self._tail = b"", 0, b""  # bytes not parsed yet, where they begin; the last parsed bytes
        self._heading, self._whole = True, False  # whether the parser is in a head; whether a request is read to its end
        self._skipping = self._feeding = False
        self._size, self._left = 0, 0  # bytes of this head so far; remaining bytes of the declared body

    def connection_made(self, transport: Any) -> None:
        held = LingeringTransport(transport, self.loop.call_later)
        super().connection_made(held)
        self.flow = self._flow = _Flow(held)
        self._wait_for_head(IDLE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._held = b""
        self.transport.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self.transport.drop(len(data))
            return
        self._unset_keepalive_if_required()
        self._held = self._held[self._at :] + data if self._held else data
        self._at = 0
        self._feed()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._flow.hold(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._feed()

    def shutdown(self) -> None:
        if self._is_free() and not self.transport.is_closing():
            self.transport.finish()  # silent while the server drained
        elif not self._is_free():
            self.cycle.keep_alive = False

    @property
    def fresh(self) -> bool:
        """Whether no request has arrived yet."""
        cycle: Any = self.cycle
        return cycle is None and not self.transport.is_closing()

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._heading:  # a trailer is dropped: it would be taken for a checked header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._heading = False
        self._stop_waiting()
        parser: Any = self.parser
        length = _declared(self.headers)
        self._left = length
        wrong = request_head.fault(parser.get_http_version(), self.url, self.headers, parser.should_upgrade())
        if wrong is None and len(self.connections) > MOST_CONNECTIONS:
            wrong = 503, f"the server has {MOST_CONNECTIONS} connections, its most; try again later"
        if wrong is not None:
            self._refuse(*wrong)
        elif parser.get_method() == b"POST" and self.hooks.overloaded(len(self.tasks)):
            self._skipping = True
            self.hooks.shed()
            self.transport.write(OVERLOADED)
            if length > SMALL_BODY or any(name == b"transfer-encoding" for name, _ in self.headers):
                self.transport.close()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._skipping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._heading, self._whole, self._size, self._left = True, True, 0, 0
        if not self._skipping:
            super().on_message_complete()
        elif not self.transport.is_closing():
            self._skipping = False
            self.on_response_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._feed()

    # Bytes to the parser, a request at a time

    def _feed(self) -> None:
        if self._feeding:
            return  # the parser called back: the loop below continues
        self._feeding = True
        try:
            while self._at < len(self._held) and not self._is_busy():
                self._parse(self._piece())
        finally:
            self._feeding = False
        if self._at >= len(self._held):
            self._held, self._at = b"", 0
        self._flow.hold(bool(self._held) or self.flow.write_paused)

    def _is_busy(self) -> bool:
        """Whether the next bytes wait for an answer to be made, or to be read."""
        return self.transport.is_closing() or self.flow.write_paused or (self._whole and not self._is_free())

    def _piece(self) -> bytes:
        """The next bytes, at most to the end of a head or of a declared body, so that no piece holds two requests."""
        at, held = self._at, self._held
        if self._left:
            end = min(at + self._left, len(held))
            self._left -= end - at
            self._tail = b""
        else:
            # The end of a head may lie across two reads.
            across = (self._tail + held[at : at + 3]).find(HEAD_END) if self._tail else -1
            found = at - len(self._tail) + across if across >= 0 else held.find(HEAD_END, at)
            if found < 0:
                end = len(held)
                self._tail = (self._tail + held[max(at, end - 3) : end])[-3:]
            else:
                end, self._tail = found + len(HEAD_END), b""
        self._at = end
        return held[at:end]

    def _parse(self, piece: bytes) -> None:
        if self._heading:
            if not self._size:
                piece = piece.lstrip(b"\r\n")  # empty lines before a request are ignored (RFC 9112, 2.2)
                if self._timer is None or piece:
                    self._wait_for_head(HEADER_SECONDS)
                if not piece:
                    return
            self._size += len(piece)
            if self._size > MOST_HEADERS:
                self._refuse(431, f"headers are longer than {MOST_HEADERS} bytes")
                return
        self._whole = False
        parser: Any = self.parser
        try:
            parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # a server may ignore an upgrade (RFC 9110, 7.8); the piece ends with the head, so no byte is lost
        except httptools.HttpParserInvalidURLError:
            self._refuse(400, "the request target is malformed")
        except httptools.HttpParserCallbackError as error:
            self._refuse(400, f"the request is malformed: {type(error.__context__).__name__}")
        except httptools.HttpParserError as error:
            self._refuse(400, f"the request is malformed: {error}")

    def _is_free(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, against its annotation
        return cycle is None or cycle.response_complete

    # Deadlines and refusals

    def _wait_for_head(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._size:
            self._refuse(408, f"the headers took longer than {HEADER_SECONDS:g} s")
        else:
            self.transport.close()  # silently: a client without a request would take an answer for that of its next request

    def _refuse(self, status: int, detail: str) -> None:
        self._stop_waiting()
        self._skipping = True
        if self.transport.is_closing():
            return
        request = secrets.token_hex(8)
        self.hooks.refused(status, detail, request)
        cycle = self.cycle
        if self._is_free() or not cycle.response_started:
            self.transport.write(_plain(status, detail, request, b"connection: close"))
        if not self._is_free():
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


class _Flow(FlowControl):
    """uvicorn's flow control; reading stays paused while the connection is held."""

    _holding = False

    def resume_reading(self) -> None:
        if not self._holding:
            super().resume_reading()

    def hold(self, holding: bool) -> None:
        if holding == self._holding:
            return
        self._holding = holding
        if holding:
            self.pause_reading()
        else:
            self.resume_reading()


def protocol(hooks: Hooks) -> type[Guarded]:
    """The protocol class of one server."""
    return type("Guarded", (Guarded,), {"hooks": hooks})


def _declared(headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of the body by its Content-Length, which the parser has checked; 0 without one."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


def _plain(status: int, detail: str, request: str, *headers: bytes) -> bytes:
    body = RefusedError(status, detail).body(request)
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()), b"content-type: " + PROBLEM.encode(), *headers]
    lines += [b"x-request-id: " + request.encode()] if request != "none" else []
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


OVERLOADED = _plain(503, "more is asked than can be answered in time", "none", b"retry-after: 1")
