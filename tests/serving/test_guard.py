"""The guard, as any ASGI server would call it: who may ask, how much, and what is said when not."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nextvec.errors import ServingError
from nextvec.serving import bodies
from nextvec.serving.bodies import Bodies
from nextvec.serving.guard import Access, Guard
from nextvec.serving.keys import Key, read_keys
from nextvec.serving.listening import check_host
from nextvec.serving.log import Log
from nextvec.serving.metrics import Metrics
from nextvec.serving.refusal import RefusedError
from nextvec.serving.rights import RIGHTS
from nextvec.serving.routes import right
from nextvec.wire.limits import MOST_BODY


class Inner:
    """Says what reached it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.rights: frozenset[str] = frozenset()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        self.rights = scope["state"]["rights"]
        if scope["path"] == "/v1/predict/broken":
            raise RuntimeError("/secret/path")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def log() -> Iterator[tuple[Log, int]]:
    reader, writer = os.pipe()
    held = Log(Metrics(), descriptor=writer)
    yield held, reader
    held.close()
    os.close(writer)
    os.close(reader)


def ask(
    guard: Guard, method: str = "POST", path: str = "/v1/predict", parts: tuple[bytes, ...] = (b"",), **headers: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and problem of one request; a body in parts, the last one never sent if it is empty and not the first."""
    messages = [{"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "localhost", "transfer-encoding": "chunked", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    asyncio.run(guard(scope, receive, send))
    body = b"".join(m.get("body", b"") for m in sent[1:])
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, json.loads(body) if body.startswith(b"{") else {}


def test_a_sound_request_passes_whole_and_gets_its_id_back(log: tuple[Log, int]) -> None:
    inner = Inner()
    status, headers, _ = ask(Guard(inner, Metrics(), log[0]), parts=(b"ab", b"c"), x_request_id="mine-1")
    assert (status, inner.bodies, headers["x-request-id"]) == (200, [b"abc"], "mine-1")
    assert inner.rights == frozenset(RIGHTS)


def test_a_forged_id_is_not_repeated(log: tuple[Log, int]) -> None:
    _, headers, _ = ask(Guard(Inner(), Metrics(), log[0]), x_request_id="a b\tc")
    assert len(headers["x-request-id"]) == 16


@pytest.mark.parametrize(
    ("headers", "parts", "status"),
    [
        ({"content_length": str(MOST_BODY + 1)}, (b"",), 413),
        ({"content_length": "9" * 30}, (b"",), 400),
        ({"content_length": "x"}, (b"",), 400),
        ({}, (bytes(MOST_BODY), b"1"), 413),
        ({"content_encoding": "gzip"}, (b"",), 415),
        ({"host": "evil.example"}, (b"",), 403),
        ({"host": "[bad"}, (b"",), 403),
        ({"origin": "null"}, (b"",), 403),
    ],
)
def test_limits_hold_before_anything_is_parsed(
    log: tuple[Log, int], headers: dict[str, str], parts: tuple[bytes, ...], status: int
) -> None:
    inner = Inner()
    got, _, problem = ask(Guard(inner, Metrics(), log[0]), parts=parts, **headers)
    assert (got, problem["status"]) == (status, status)
    assert inner.bodies == []


def test_a_body_that_does_not_come_is_not_waited_for(log: tuple[Log, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    inner = Inner()

    async def never() -> Any:
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "headers": [(b"host", b"localhost"), (b"content-length", b"9")],
    }
    asyncio.run(Guard(inner, Metrics(), log[0])(scope, never, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert inner.bodies == []


def test_all_bodies_together_are_bounded_and_small_ones_still_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MOST_HELD", 300_000)
    monkeypatch.setattr(bodies, "SMALL", 1_000)

    def of(*parts: bytes) -> Any:
        messages = [{"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)]

        async def receive() -> Any:
            return messages.pop(0)

        return receive

    async def scenario() -> None:
        held, scope, chunked = Bodies(1 << 20), {"method": "POST", "path": "/v1/predict"}, {b"transfer-encoding": b"chunked"}
        first = await held.read(scope, chunked, of(bytes(100_000), bytes(100_000)))
        assert held.held == 200_000
        for headers in (chunked, {b"content-length": b"150000"}):
            with pytest.raises(RefusedError, match="300000") as refused:
                await held.read(scope, headers, of(bytes(75_000), bytes(75_000)))
            assert (refused.value.status, refused.value.headers["connection"]) == (503, "close")
            assert held.held == 200_000
        held.held += 200_000
        small = await held.read(scope, {b"content-length": b"900"}, of(bytes(900)))
        held.held -= 200_000
        held.release(first)
        held.release(small)
        assert held.held == 0
        assert len(await held.read(scope, chunked, of(bytes(150_000)))) == 150_000

    asyncio.run(scenario())


def test_what_is_held_of_a_body_is_given_back_when_its_request_ends(log: tuple[Log, int]) -> None:
    guard = Guard(Inner(), Metrics(), log[0])
    ask(guard, parts=(bytes(1_000), bytes(1_000)))
    ask(guard, parts=(bytes(1_000),), path="/v1/predict/broken")
    ask(guard, parts=(bytes(1_000), bytes(MOST_BODY)))
    assert guard.bodies.held == 0


def test_a_fault_is_told_to_the_log_and_not_to_the_client(log: tuple[Log, int]) -> None:
    status, _, problem = ask(Guard(Inner(), Metrics(), log[0]), path="/v1/predict/broken")
    log[0].close()
    line = json.loads(os.read(log[1], 65536).splitlines()[0])
    assert status == 500
    assert "secret" not in json.dumps(problem)
    assert "secret" in line["error"]
    assert line["request"] == problem["request"]


def test_a_key_opens_what_it_may_and_nothing_else(log: tuple[Log, int]) -> None:
    reader, secret = Key.new("reader", ["predict"])
    admin, master = Key.new("root", ["admin"])
    guard = Guard(Inner(), Metrics(), log[0], Access((reader, admin)))

    def status(path: str, given: str | None, method: str = "POST") -> int:
        headers = {} if given is None else {"authorization": f"Bearer {given}"}
        return ask(guard, method, path, host="anything.example", **headers)[0]

    assert status("/v1/predict", secret) == 200
    assert status("/v1/sessions/a", secret, "PUT") == 403
    assert status("/v1/rollouts/1/abort", secret) == 403
    assert status("/unheard-of", secret) == 403
    assert status("/unheard-of", master) == 200
    for wrong in (None, "", secret[:-1], secret + "x", reader.sha256):
        assert status("/v1/predict", wrong) == 401
    assert status("/healthz", None, "GET") == 200
    assert ask(guard, "POST", "/v1/predict", authorization=f"Basic {secret}")[0] == 401


def test_a_key_has_its_pace(log: tuple[Log, int]) -> None:
    key, secret = Key.new("slow", ["predict"], rate=0.01)
    guard = Guard(Inner(), Metrics(), log[0], Access((key,)))
    assert ask(guard, authorization=f"Bearer {secret}")[0] == 200
    status, headers, _ = ask(guard, authorization=f"Bearer {secret}")
    assert status == 429
    assert 90 <= int(headers["retry-after"]) <= 101


@pytest.mark.parametrize("path", ["/v1", "//", "/v1/other", "//v1/predict", "/V1/predict", "/v1/Predict", "/metricsx"])
def test_what_is_not_known_needs_the_highest_right(path: str) -> None:
    assert right(path) == "admin"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.example.org", ""])
def test_a_host_that_others_reach_needs_keys(host: str) -> None:
    with pytest.raises(ServingError, match="--keys"):
        check_host(host, Access())
    check_host(host, Access((Key.new("a", ["predict"])[0],)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_needs_none(host: str) -> None:
    check_host(host, Access())


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "[1]", '[{"name":"a"}]', '[{"name":"a","sha256":"zz","rights":[],"rate":1}]',
     '[{"name":"a","sha256":"' + "0" * 64 + '","rights":["all"],"rate":1}]',
     '[{"name":"a","sha256":"' + "0" * 64 + '","rights":["pin"],"rate":NaN}]'],
)  # fmt: skip
def test_a_file_of_keys_is_sound_or_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ServingError):
        read_keys(tmp_path / "keys")


def test_keys_are_read_as_they_were_written_without_the_secret(tmp_path: Path) -> None:
    key, secret = Key.new("a", ["predict", "pin"], 5.0)
    (tmp_path / "keys").write_text(json.dumps([key.to_json()]))
    assert read_keys(tmp_path / "keys") == (key,)
    assert secret not in (tmp_path / "keys").read_text()


def test_a_log_that_nobody_reads_delays_nobody() -> None:
    metrics = Metrics()
    reader, writer = os.pipe()
    log = Log(metrics, descriptor=writer)
    for n in range(30_000):
        log.line("x", n=n, filler="y" * 100)
    assert metrics.unlogged._value.get() > 0
    os.close(reader)  # the writer's thread meets a broken pipe and goes on
    log.close()
    os.close(writer)
