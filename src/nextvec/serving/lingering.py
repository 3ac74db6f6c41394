"""The sending end of a connection: it closes without a reset, and gives up a client that does not read its answers."""

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_SECONDS = 2.0  # that a closed connection waits for the client to close its end
LINGER_BYTES = 64 << 20  # that it reads past meanwhile
STALL_SECONDS = 30.0  # in which a client must take something of what is buffered for it


class Lingering(asyncio.Transport):
    """A transport whose :meth:`close` shuts the sending side only, then waits for the client's end.

    A socket that is closed while unread bytes lie in it sends a reset, and a client may drop an answer that it has
    received but not read when the reset comes (RFC 9112, 9.6). Whatever still arrives is read and dropped, for
    ``LINGER_SECONDS`` and ``LINGER_BYTES`` at most.
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
        """Bytes that the client has not taken and the kernel does not hold."""
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_closing():
            return
        self._transport.write(data)
        self._written += len(data)
        if self._timer is None:  # one for many answers: it is not cancelled when they are taken
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
        """Send what is buffered, say that nothing follows, and wait for the client to close."""
        if self.is_closing():
            return
        self._closing = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._stop()
        self._timer = self._call_later(STALL_SECONDS if self.get_write_buffer_size() else LINGER_SECONDS, self._look)

    def finish(self) -> None:
        """Close without waiting: for a connection on which no answer is under way."""
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
