"""One middleware around everything: who may ask, how much, how fast, and what is written down of it.

It is plain ASGI and the outermost layer, so no route can be added beside it.
Everything is decided from the head of a request before its body is read, and
from the body's length before it is parsed.
"""

import hashlib
import hmac
import json
import os
import queue
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from nextvec.errors import DataError, ServingError
from nextvec.serving.bodies import Bodies, Held, Message, Receive, Scope, replayed
from nextvec.serving.cors import PREFLIGHT, Cors
from nextvec.serving.metrics import Metrics
from nextvec.serving.wire import MOST_BODY, PROBLEM, RefusedError

Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Right = Literal["predict", "session", "pin", "operate", "admin"]

RIGHTS: tuple[Right, ...] = ("predict", "session", "pin", "operate", "admin")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
OPEN = frozenset({"/healthz", "/readyz", "/", "/dashboard.css", "/dashboard.js"})  # hold no data
NOWHERE: dict[str, str] = {}  # the parameters of a path that no route knows
ON_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
LINES = 10_000  # waiting to be written at most


@dataclass(frozen=True)
class Key:
    """Who may ask. The secret itself is never kept.

    Attributes:
        sha256: of the secret, in hexadecimal.
        rights: what it may do.
        rate: requests per second, with twice as many at once.
    """

    name: str
    sha256: str
    rights: frozenset[str]
    rate: float

    @staticmethod
    def new(name: str, rights: Iterable[str], rate: float = 1_000.0) -> tuple["Key", str]:
        """A key and its secret, which is to be shown once."""
        secret = secrets.token_urlsafe(32)
        return Key(name, _sha256(secret.encode()), frozenset(rights), rate), secret

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "rights": sorted(self.rights), "rate": self.rate}


def read_keys(path: Path) -> tuple[Key, ...]:
    """Keys of a file: a JSON list of name, sha256, rights and rate.

    Raises:
        ServingError: it cannot be read, holds anything else, or none.
    """
    try:
        keys = [
            Key(str(k["name"]), str(k["sha256"]), frozenset(k["rights"]), float(k["rate"]))
            for k in json.loads(path.read_text())
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ServingError(f"{path} is no file of keys: {error}") from None
    for key in keys:
        if not re.fullmatch("[0-9a-f]{64}", key.sha256) or not key.rights <= set(RIGHTS) or not key.rate > 0:
            raise ServingError(f"{path}: key {key.name!r} needs a sha256, rights among {', '.join(RIGHTS)}, and a rate above 0")
    if not keys:
        raise ServingError(f"{path} holds no key")
    return tuple(keys)


def is_loopback(host: str) -> bool:
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
        """Take a token; else the seconds until there is one."""
        now = time.monotonic()
        self.level = min(2 * self.rate + 1, self.level + (now - self.filled) * self.rate)
        self.filled = now
        if self.level < 1:
            return (1 - self.level) / self.rate
        self.level -= 1
        return 0.0


class Log:
    """One JSON line per request or incident on standard error, written by a thread: a reader that stalls delays no answer."""

    def __init__(self, metrics: Metrics, requests: bool = False, descriptor: int | None = None) -> None:
        self.requests = requests
        self._metrics = metrics
        self._descriptor = sys.stderr.fileno() if descriptor is None else descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(LINES)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def line(self, event: str, **fields: Any) -> None:
        # UTC for people to read; nothing is ever decided by it.
        stamped = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **fields}
        try:
            self._lines.put_nowait(orjson.dumps(stamped, default=str) + b"\n")
        except queue.Full:
            self._metrics.unlogged.inc()

    def close(self) -> None:
        """Write what is waiting, for a second at most."""
        try:
            self._lines.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(1)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                os.write(self._descriptor, line)
            except OSError:
                self._metrics.unlogged.inc()  # nobody reads; the server goes on


def needed(method: str, path: str) -> Right | None:
    """The right that a request needs; None for probes and the files of the page. What is not known needs the highest."""
    if path in OPEN:
        return None
    first = path.split("/")[2:3] if path.startswith("/v1/") else []
    if path == "/openapi.json" or first == ["predict"] or (path == "/v1/models" and method in ("GET", "HEAD")):
        return "predict"
    if first == ["sessions"]:
        return "operate" if path == "/v1/sessions" else "session"  # a session's name is its owner's; the list has all
    if path == "/metrics" or first in (["models"], ["rollouts"], ["overview"]):
        return "operate"
    return "admin"


@dataclass(frozen=True)
class Access:
    """Who may ask, and from where.

    Attributes:
        hosts: names under which a server without keys may be asked.
        cors: origins whose pages may ask.
    """

    keys: tuple[Key, ...] = ()
    hosts: frozenset[str] = ON_LOOPBACK
    cors: Cors = field(default_factory=Cors)


class Guard:
    """See the module. ``most_body`` is the bytes of a body at most."""

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
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request = given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        answer = _Answer(send, request.encode(), self, self.cors.headers(headers))
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
            await answer.problem(RefusedError(500, "this is a fault of the server; its log has it under this request"))
        finally:
            self.running -= 1
            self.bodies.release(body)
            held.release()
            self._account(scope, request, answer.status or 0, time.perf_counter() - began)

    def _rights(self, scope: Scope, headers: dict[bytes, bytes], state: dict[str, Any]) -> frozenset[str]:
        need = needed(scope["method"], scope["path"])
        if not self.keys:
            self._check_origin(headers)
            return frozenset(RIGHTS)
        if need is None:
            return frozenset()
        key = self._key(headers.get(b"authorization", b""))
        if key is None:
            raise RefusedError(401, "give a key: authorization: Bearer KEY", {"www-authenticate": "Bearer"})
        wait = self._buckets[key.name].wait()
        if wait:
            raise RefusedError(429, f"key {key.name} may ask {key.rate:g} times a second", {"retry-after": str(int(wait) + 1)})
        if need not in key.rights and "admin" not in key.rights:
            raise RefusedError(403, f"key {key.name} lacks the right {need}")
        state["actor"] = key.name
        return key.rights

    def _key(self, authorization: bytes) -> Key | None:
        scheme, _, secret = authorization.partition(b" ")
        digest, found = _sha256(secret.strip()), None
        for key in self.keys:  # all of them, in the time of all of them
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found if scheme.lower() == b"bearer" else None

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Without keys a page in this machine's browser is the danger: by a name that points here, or by a plain form."""
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
        route = str(scope.get("endpoint_name") or "other")
        self.metrics.requests(route, str(status)).inc()
        self.metrics.seconds(route).observe(seconds)
        self.metrics.recent.saw(route, status, seconds, scope.get("path_params", NOWHERE).get("session"))
        if self.log.requests or status >= 500:
            ms = round(seconds * 1e3, 3)
            self.log.line("request", request=request, method=scope["method"], route=route, status=status, ms=ms)


class _Answer:
    """What goes out, with the request id; remembers whether anything did."""

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


def _sha256(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
