"""Reading of request bodies, with bounds on the length and time of one body and on the bytes of all bodies together."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from nextvec.serving.refusal import RefusedError
from nextvec.serving.routes import SNAPSHOT, find
from nextvec.wire.limits import MOST_SNAPSHOT

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

BODY_SECONDS = 5.0  # for a body, and 1 s more for each BODY_RATE bytes
BODY_RATE = 1 << 20
MOST_HELD = 256 << 20  # bytes of all bodies whose requests are not answered yet, and of snapshots that are being sent
SMALL = 64 << 10  # bytes of a body that is always read; the number of connections bounds these
CLOSING = {"connection": "close"}  # the server does not wait for the rest of the body


class Bodies:
    """Reads bodies within the bounds, and counts their bytes.

    Attributes:
        most: bytes of one body at most; a snapshot has its own bound.
        held: bytes of all bodies whose requests are not answered yet, and of large answers that are being sent.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    async def read(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. It counts as held until :meth:`release`.

        Raises:
            RefusedError: 400 the body ended early; 408 too slow; 413 too long; 415 compressed; 503 too many bytes are held.
        """
        declared = self._declared(headers)
        if declared == 0 and b"transfer-encoding" not in headers and scope["method"] in ("GET", "HEAD", "DELETE"):
            return b""
        most = _most(scope, self.most)
        self.check(0, declared, most)
        parts: list[bytes] = []
        length, done = 0, False
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(BODY_SECONDS) as limit:
                while not done:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "the body ended early", CLOSING)
                    parts.append(message.get("body", b""))
                    length += len(parts[-1])
                    self.held += len(parts[-1])
                    self.check(length, length, most)
                    limit.reschedule(began + BODY_SECONDS + length / BODY_RATE)
                    done = not message.get("more_body", False)
            return b"".join(parts) if len(parts) > 1 else parts[0]
        except TimeoutError:
            detail = f"the body came slower than {BODY_RATE >> 20} MiB/s; {length} bytes arrived"
            raise RefusedError(408, detail, CLOSING) from None
        finally:
            if not done:
                self.held -= length

    def release(self, body: bytes) -> None:
        """Stop counting ``body``: its request is answered."""
        self.held -= len(body)

    def _declared(self, headers: dict[bytes, bytes]) -> int:
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise RefusedError(415, "content-encoding is not accepted", CLOSING)
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 19:
            raise RefusedError(400, "content-length is not a number", CLOSING)
        return int(declared)

    def check(self, counted: int, length: int, most: int) -> None:
        """
        Args:
            counted: bytes of this body that ``held`` includes already.
            length: bytes of this body, as far as known.
            most: bytes that this body may have.

        Raises:
            RefusedError: 413 too long; 503 too many bytes are held.
        """
        if length > most:
            raise RefusedError(413, f"a body has at most {most} bytes", CLOSING)
        if length > SMALL and self.held - counted + length > MOST_HELD:
            detail = f"bodies of {MOST_HELD} bytes are being read or sent, which is the limit; try again later"
            raise RefusedError(503, detail, {**CLOSING, "retry-after": "1"})


class Held:
    """Counts the answer of one request among the bytes that are held."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._length = bodies, 0

    def hold(self, length: int) -> None:
        """Count ``length`` bytes in all from now on, until :meth:`release`.

        Raises:
            RefusedError: 503 too many bytes are held.
        """
        self._bodies.check(self._length, length, length)
        self._bodies.held += length - self._length
        self._length = length

    def release(self) -> None:
        """Stop counting: the answer is sent, or the request has failed."""
        self._bodies.held -= self._length
        self._length = 0


def _most(scope: Scope, most: int) -> int:
    """Bytes that the body of this request may have: ``most``, except for a snapshot."""
    found = find(scope["path"])
    operation = None if found is None else found[0].operation(scope["method"])
    return MOST_SNAPSHOT if operation is not None and operation.body is SNAPSHOT else most


def replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body, which is read already, and then waits for a disconnect."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay
