"""The outermost layer of the server: keys, rights and rates, bodies, faults, and one count per request.

It is plain ASGI around everything else, so no path can bypass it. It decides from the head of a request before it reads the
body, and from the length of the body before anything parses it.
"""

import hmac
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from nextvec.errors import DataError
from nextvec.serving.bodies import Bodies, Held, Message, Receive, Scope, replayed
from nextvec.serving.cors import PREFLIGHT, Cors
from nextvec.serving.keys import Key, sha256
from nextvec.serving.log import Log
from nextvec.serving.metrics import Metrics
from nextvec.serving.refusal import RefusedError
from nextvec.serving.rights import HIGHEST, RIGHTS
from nextvec.serving.routes import right
from nextvec.wire.limits import MOST_BODY
from nextvec.wire.media import PROBLEM

Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
NOWHERE: dict[str, str] = {}  # the parameters of an unknown path
ON_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class _Bucket:
    """A token bucket on the monotonic clock."""

    rate: float
    level: float
    filled: float = field(default_factory=time.monotonic)

    def wait(self) -> float:
        """Take a token and return 0; without a token, return the seconds until there is one."""
        now = time.monotonic()
        self.level = min(2 * self.rate + 1, self.level + (now - self.filled) * self.rate)
        self.filled = now
        if self.level < 1:
            return (1 - self.level) / self.rate
        self.level -= 1
        return 0.0


@dataclass(frozen=True)
class Access:
    """Who may send requests.

    Attributes:
        keys: without any, only this machine may send requests, with every right.
        hosts: names of the server that a request without a key may use.
        cors: origins whose pages may send requests.
    """

    keys: tuple[Key, ...] = ()
    hosts: frozenset[str] = ON_LOOPBACK
    cors: Cors = field(default_factory=Cors)


class Guard:
    """See the module.

    Args:
        app: called with requests that are allowed; their ``state`` holds the request id, the actor and its rights.
        most_body: bytes of a body at most.

    Attributes:
        draining: whether each answer closes its connection.
        running: requests that are not answered yet.
    """

    def __init__(self, app: App, metrics: Metrics, log: Log, access: Access | None = None, most_body: int = MOST_BODY) -> None:
        access = access or Access()
        self.app, self.metrics, self.log = app, metrics, log
        self.keys, self.hosts, self.cors = access.keys, access.hosts, access.cors
        self.bodies = Bodies(most_body)
        self.draining = False
        self.running = 0
        self._buckets = {key.name: _Bucket(key.rate, 2 * key.rate + 1) for key in self.keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request = given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        answer = _Outgoing(send, request.encode(), self, self.cors.headers(headers))
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request"], state["actor"] = request, "loopback"
        self.running += 1
        body = b""
        held = state["held"] = Held(self.bodies)
        try:
            if self.cors.is_preflight(scope["method"], headers):
                await answer.preflight()
                return
            state["rights"] = self._rights(scope, headers, state)
            body = await self.bodies.read(scope, headers, receive)
            state["length"] = len(body)
            await self.app(scope, replayed(body, receive), answer.send)
        except RefusedError as refused:
            await answer.problem(refused)
        except DataError as error:
            await answer.problem(RefusedError(400, str(error)))
        except Exception as error:
            if answer.status is not None:
                raise
            self.log.line("failure", request=request, error=repr(error), trace=traceback.format_exc())
            await answer.problem(RefusedError(500, "internal error; the server's log has it under this request id"))
        finally:
            self.running -= 1
            self.bodies.release(body)
            held.release()
            self._account(scope, request, answer.status or 0, time.perf_counter() - began)

    def _rights(self, scope: Scope, headers: dict[bytes, bytes], state: dict[str, Any]) -> frozenset[str]:
        need = right(scope["path"])
        if not self.keys:
            self._check_origin(headers)
            return frozenset(RIGHTS)
        if need is None:
            return frozenset()
        key = self._key(headers.get(b"authorization", b""))
        if key is None:
            raise RefusedError(401, "send a key: authorization: Bearer KEY", {"www-authenticate": "Bearer"})
        wait = self._buckets[key.name].wait()
        if wait:
            detail = f"key {key.name} may send {key.rate:g} requests per second"
            raise RefusedError(429, detail, {"retry-after": str(int(wait) + 1)})
        if need not in key.rights and HIGHEST not in key.rights:
            raise RefusedError(403, f"key {key.name} lacks the right {need}")
        state["actor"] = key.name
        return key.rights

    def _key(self, authorization: bytes) -> Key | None:
        scheme, _, secret = authorization.partition(b" ")
        digest, found = sha256(secret.strip()), None
        for key in self.keys:  # without a break, so that the time does not tell which key matched
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found if scheme.lower() == b"bearer" else None

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Without keys, refuse pages of other sites in a browser on this machine.

        Such a page could reach the server by a host name that resolves to it, or by a plain form.

        Raises:
            RefusedError: 403 the host or the origin is none of the server's names.
        """
        for name in (b"host", b"origin"):
            given = headers.get(name)
            if given is None and name == b"origin":
                continue
            text = (given or b"").decode("latin-1")
            if name == b"origin" and text in self.cors.origins:
                continue
            try:
                host = urlsplit(text if name == b"origin" else f"//{text}").hostname
            except ValueError:
                host = None
            if host not in self.hosts:
                raise RefusedError(403, f"{name.decode()} is not a name of this server; see --allow-host, or use keys")

    def _account(self, scope: Scope, request: str, status: int, seconds: float) -> None:
        route = str(scope.get("operation") or "other")
        self.metrics.requests(route, str(status)).inc()
        self.metrics.seconds(route).observe(seconds)
        self.metrics.recent.saw(route, status, seconds, scope.get("path_params", NOWHERE).get("session"))
        if self.log.requests or status >= 500:
            ms = round(seconds * 1e3, 3)
            self.log.line("request", request=request, method=scope["method"], route=route, status=status, ms=ms)


class _Outgoing:
    """Adds the headers of every answer; ``status`` is None until an answer begins."""

    def __init__(self, send: Send, request: bytes, guard: Guard, cors: list[tuple[bytes, bytes]]) -> None:
        self._send, self._request, self._guard, self._cors = send, request, guard, cors
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self._request), (b"x-content-type-options", b"nosniff")]
            if self._guard.draining:
                extra.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", []), *extra, *self._cors]
        await self._send(message)

    async def preflight(self) -> None:
        await self.send({"type": "http.response.start", "status": 204, "headers": PREFLIGHT})
        await self.send({"type": "http.response.body", "body": b""})

    async def problem(self, refused: RefusedError) -> None:
        body = refused.body(self._request.decode())
        headers = [(b"content-type", PROBLEM.encode()), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in refused.headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
