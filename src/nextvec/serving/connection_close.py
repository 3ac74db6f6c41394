"""Closing a connection without a reset, and aborting one whose client does not read its answers."""

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_SECONDS = 2.0  # that a closed connection waits until the client closes its end
LINGER_BYTES = 64 << 20  # read and dropped in that time, at most
STALL_SECONDS = 30.0  # in which a client must read some of the buffered bytes


class LingeringTransport(asyncio.Transport):
    """A transport whose :meth:`close` shuts the sending side only, then waits for the client's end.

    A socket that is closed while unread bytes lie in it sends a reset, and a client may drop an answer that it has
    received but not read when the reset comes (RFC 9112, 9.6). Bytes that still arrive are read and dropped, for
    at most ``LINGER_SECONDS`` and ``LINGER_BYTES``.
    """

    def __init__(self, transport: Any, call_later: Callable[..., Any]) -> None:
        super().__init__()
        # Any: uvloop's transports are no subclass of asyncio.Transport.
        self._transport, self._call_later = transport, call_later
        self._closing = False
        self._written, self._taken, self._dropped = 0, 0, 0
        self._timer: Any = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Bytes that were written and that the kernel has not accepted yet."""
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_closing():
            return
        self._transport.write(data)
        self._written += len(data)
        if self._timer is None:  # one timer for many answers: it is not cancelled when they are read
            self._timer = self._call_later(STALL_SECONDS, self._look)

    def pause_reading(self) -> None:
        if not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Send the buffered bytes and the end of the stream, then wait for the client to close."""
        if self.is_closing():
            return
        self._closing = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._stop()
        self._timer = self._call_later(STALL_SECONDS if self.get_write_buffer_size() else LINGER_SECONDS, self._look)

    def finish(self) -> None:
        """Close without waiting: for a connection without an unfinished answer."""
        self._closing = True
        self._transport.close()

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    def drop(self, count: int) -> None:
        """Account for ``count`` bytes that arrived after :meth:`close`."""
        self._dropped += count
        if self._dropped > LINGER_BYTES:
            self.abort()

    def lost(self) -> None:
        """The connection has ended."""
        self._closing = True
        self._stop()

    def _look(self) -> None:
        self._timer = None
        left = self.get_write_buffer_size()
        taken = self._written - left
        if left and taken > self._taken:
            self._timer = self._call_later(STALL_SECONDS, self._look)
        elif left or self._closing:
            self.abort()
        self._taken = taken

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
