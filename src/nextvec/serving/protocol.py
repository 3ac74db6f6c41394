"""What must be decided before there is a request: headers that never end, and refusals cheap enough to survive overload."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nextvec.serving.wire import PROBLEM, RefusedError

HEADER_SECONDS, MOST_HEADERS = 5.0, 32 << 10
SMALL_BODY = 64 << 10  # a shed request's body is read past if it is known to be small, else the connection ends


def protocol(overloaded: Callable[[int], bool], shed: Callable[[], None]) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with deadlines and shedding.

    A server that is asked for twice what it can do keeps nine tenths of its goodput only if a refusal costs less than a
    tenth of an answer (from a s + (2 - a) r = 1 with s = 1), so a refusal is written before a task, a scope or a body
    exist. uvicorn itself has a deadline for neither headers nor bodies, and no bound on headers.

    Args:
        overloaded: given the requests in flight, whether one more would wait too long.
        shed: counts a refusal.
    """

    class Guarded(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _heading, _shedding = True, False
        _size = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._heading:
                self._size += len(data)
                # A small body may have come along with its headers; only headers without an end are refused.
                if self._size > MOST_HEADERS and b"\r\n\r\n" not in data:
                    self._end(_plain(431, "headers are too long"))
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._heading, self._shedding, self._size = True, False, 0
            if self._timer is None:
                self._wait_for_headers()

        def on_headers_complete(self) -> None:
            self._heading = False
            self._stop_waiting()
            parser: Any = self.parser
            if self._is_free() and parser.get_method() == b"POST" and overloaded(len(self.tasks)):
                self._shedding = True
                shed()
                self.transport.write(OVERLOADED)
                if not _is_small(self.headers):
                    self.transport.close()
                return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._shedding:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if self._shedding:
                self.on_response_complete()
            else:
                super().on_message_complete()

        def _is_free(self) -> bool:
            cycle: Any = self.cycle  # None before the first request, whatever its annotation says
            return cycle is None or cycle.response_complete

        def _wait_for_headers(self) -> None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._end, _plain(408, "headers took too long"))

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end(self, answer: bytes) -> None:
            self._stop_waiting()
            if not self.transport.is_closing():
                if self._is_free():
                    self.transport.write(answer)
                self.transport.close()

    return Guarded


def _is_small(headers: list[tuple[bytes, bytes]]) -> bool:
    given: dict[bytes, Any] = dict(headers)
    length = given.get(b"content-length", b"")
    return b"transfer-encoding" not in given and length.isdigit() and len(length) < 19 and int(length) <= SMALL_BODY


def _plain(status: int, detail: str, *headers: bytes) -> bytes:
    body = RefusedError(status, detail).body("none")
    lines = [b"HTTP/1.1 %d %s" % (status, detail.encode()), b"content-type: " + PROBLEM.encode(), *headers]
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


OVERLOADED = _plain(503, "more is asked than can be answered in time", b"retry-after: 1")
