"""A session moves to another server: its context whole or not at all, its state to the bit where the weights are the same."""

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nextvec.client import AsyncClient, Client, ServerError
from nextvec.inference import Engine, snapshot
from nextvec.inference.snapshot import Context
from nextvec.serving import bodies, context_record, context_view
from nextvec.serving.app import application
from nextvec.serving.limits import Limits
from nextvec.serving.log import Log
from nextvec.serving.payload import from_rows
from nextvec.serving.refusal import RefusedError
from nextvec.serving.service import Service
from nextvec.wire.limits import MOST_LENGTH, MOST_SNAPSHOT, most_body
from nextvec.wire.media import OCTETS
from tests.serving.server import DIM, Running, rows_of, serving
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(made, tmp_path_factory.mktemp("moving") / "runs")


@pytest.fixture(scope="module")
def first(folder: Path) -> Iterator[Running]:
    with serving(folder / "run0", folder / "first") as running:
        yield running


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[Running]:
    """Of other weights, and with room for two sessions."""
    with serving(folder / "run1", folder / "other", "--max-sessions", "2") as running:
        yield running


@pytest.fixture
def http(first: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=first.url, timeout=PATIENCE) as client:
        yield client


def put(http: httpx.Client, name: str, data: bytes, kind: str = OCTETS) -> httpx.Response:
    return http.put(f"/v1/sessions/{name}/snapshot", content=data, headers={"content-type": kind, "x-deadline-ms": "60000"})


def begun(client: Client, name: str) -> bytes:
    """A session of three appends, halves and whole floats; its snapshot."""
    session = client.session(name)
    session.append(rows_of(40, 1))
    session.append(rows_of(7, 2).astype(np.float16))
    session.append(rows_of(1, 3))
    return session.snapshot()


def context_of(data: bytes) -> Context:
    context = snapshot.read(data).context
    assert context is not None
    return context


def forged(data: bytes, rows: np.ndarray | None = None, **about: Any) -> bytes:
    """The same snapshot with other content, and a hash that fits."""
    facts, tensors = snapshot._opened(data)
    facts["context"] |= about
    if rows is not None:
        made = snapshot.with_context(data, Context(rows, 1, bytes(16), facts["context"]["encoder"]))
        facts, tensors = snapshot._opened(made)
        facts["length"] = len(rows)
    return snapshot._packed(tensors, facts)


@pytest.mark.integration
def test_a_restored_session_survives_sigkill_and_answers_as_the_first_one(first: Running, folder: Path) -> None:
    with Client(first.url) as here:
        data = begun(here, "bits")
        there = here.session("bits")
        with serving(folder / "run0", folder / "second") as second, Client(second.url) as client:
            killed = client.restore("killed", data)
            second.kill()
        with serving(folder / "run0", folder / "second", "--isolate") as second, Client(second.url) as client:
            after = client.session("killed")
            assert (after.seq, after.length, after.incarnation) == (3, 48, killed.incarnation)
            assert context_of(after.snapshot()).rows.tobytes() == context_of(data).rows.tobytes()
            moved = client.restore("bits", data)
            assert (moved.seq, moved.length, moved.state) == (3, 48, "restored")
            for n in range(3):
                got, want = (session.append(rows_of(1, 10 + n), k=7) for session in (moved, there))
                assert (got.expected, got.seq, got.length) == (want.expected, want.seq, want.length)
            assert moved.snapshot() == there.snapshot()


def test_what_the_server_gives_an_engine_restores_to_the_same_bits(first: Running, folder: Path) -> None:
    with Client(first.url) as client:
        restored = Engine.open(folder / "run0").restore(begun(client, "engine"))
        answer = client.session("engine").predict(6)
        assert restored.length == answer.length
        assert [(e.row, e.score) for e in restored.predict(6)] == [(e.row, e.score) for e in answer.expected]


@pytest.mark.integration
def test_other_weights_read_the_context_anew(first: Running, other: Running) -> None:
    async def moved(data: bytes) -> tuple[Any, Any]:
        async with AsyncClient(other.url) as client:
            session = await client.restore("anew", data)
            assert (session.seq, session.length, session.state) == (3, 48, "rebuilt")
            assert snapshot.read(await session.snapshot()).model != snapshot.read(data).model
            return await session.predict(5), await client.predict(context_of(data).rows, 5)

    with Client(first.url) as client:
        data = begun(client, "anew")
    got, want = asyncio.run(moved(data))
    assert [e.row for e in got.expected] == [e.row for e in want.expected]
    assert got.digest == want.digest
    with Client(other.url) as client:
        client.session("second")
        with pytest.raises(ServerError, match="2 sessions") as full:
            client.restore("third", data)
        assert full.value.status == 507
        assert client.restore("second", data).length == 48  # there is room in a session that is empty


def test_a_session_is_never_overwritten_and_the_same_again_is_a_retry(first: Running, http: httpx.Client) -> None:
    with Client(first.url) as client:
        data = begun(client, "source")
        empty = client.session("twice")
        moved = client.restore("twice", data)
        assert moved.incarnation == empty.incarnation
        again = put(http, "twice", data)
        assert (again.status_code, again.json()["incarnation"], again.json()["seq"]) == (200, moved.incarnation, 3)
        last = rows_of(1, 3)  # the last append of before the move is still known for a retry
        retried = http.post(
            "/v1/sessions/twice/append?seq=3", content=last.tobytes(), headers={"content-type": "application/vnd.nextvec.f32"}
        )
        assert (retried.status_code, retried.json()["length"]) == (200, 48)
        moved.append(rows_of(1, 4))
        refused = put(http, "twice", data)
        assert (refused.status_code, refused.json()["seq"], refused.json()["length"]) == (409, 4, 49)
        assert client.session("twice").length == 49
        nothing = client.session("nothing").snapshot()
        assert client.restore("nothing-too", nothing).seq == 0
        assert client.session("nothing-too").append(rows_of(1)).seq == 1


BAD: dict[str, tuple[int, str, Callable[[bytes], bytes]]] = {
    "nothing": (400, "snapshot", lambda _: b""),
    "other bytes": (400, "snapshot", lambda _: b"a" * 5000),
    "cut short": (400, "snapshot", lambda data: data[:-1]),
    "a flipped bit": (400, "damaged", lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]),
    "another width": (422, "width 17", lambda data: forged(data, np.ones((48, DIM + 1), np.float32))),
    "another encoder": (422, "'u'", lambda data: forged(data, encoder="u")),
    "no digest": (400, "digest", lambda data: forged(data, digest="ab")),
    "more appends than vectors": (400, "48 vectors", lambda data: forged(data, seq=49)),
    "no append": (400, "48 vectors", lambda data: forged(data, seq=0)),
    "not finite": (400, "row 1: not a finite", lambda data: forged(data, np.float32([[1] * DIM, [np.nan] * DIM]))),
    "a zero vector": (400, "row 0: a zero", lambda data: forged(data, np.zeros((3, DIM), np.float32))),
    "too many": (413, str(MOST_LENGTH), lambda data: forged(data, np.ones((MOST_LENGTH + 1, DIM), np.float16))),
    "a state of another length": (400, "another form", lambda data: forged(data, np.ones((3, DIM), np.float32), seq=2)),
}


@pytest.fixture(scope="module")
def sound(first: Running) -> bytes:
    with Client(first.url) as client:
        return begun(client, "sound")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_snapshot_is_refused_in_one_line_and_begins_nothing(http: httpx.Client, sound: bytes, name: str) -> None:
    status, said, spoil = BAD[name]
    answer = put(http, "bad", spoil(sound))
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert said in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert http.get("/v1/sessions/bad").status_code == 404


def test_a_snapshot_of_an_engine_or_of_an_older_server_is_refused_for_its_missing_context(
    http: httpx.Client, folder: Path
) -> None:
    session = Engine.open(folder / "run0").session()
    session.push_many(rows_of(3))
    answer = put(http, "old", session.snapshot())
    assert answer.status_code == 400
    assert "no context" in answer.json()["detail"]
    assert put(http, "old", session.snapshot(), "application/json").status_code == 415


def test_a_snapshot_may_be_larger_than_other_bodies_within_a_bound_of_its_own(first: Running, http: httpx.Client) -> None:
    with Client(first.url) as client:
        session = client.session("large")
        for n in range(2):
            session.append(rows_of(10_000, n))
        data = session.snapshot()
        assert len(data) > most_body(DIM)
        assert client.restore("large-too", data).length == 20_000
        assert client.session("large-too").snapshot() == data
    head = "{} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n"
    for line, length in (
        ("PUT /v1/sessions/x/snapshot", MOST_SNAPSHOT + 1),
        ("POST /v1/sessions/x/append", most_body(DIM) + 1),
        ("PUT /v1/sessions/x/snapshot/more", most_body(DIM) + 1),
    ):
        assert b" 413 " in first.talk(head.format(line, length).encode())[:40]


def test_snapshots_that_are_sent_count_among_the_bodies_that_are_held(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not read its snapshot holds its bytes; another client's is refused meanwhile, and sent afterwards."""
    monkeypatch.setattr(bodies, "SMALL", 1_000)

    async def main() -> None:
        service = Service({"run0": folder / "run0"}, lambda run: Engine.open(run), tmp_path / "s", Limits(deadline=PATIENCE))
        log = Log(service.metrics)
        guard = application(service, log)
        service.contexts.open("a")
        service.contexts.append("a", from_rows(rows_of(20_000, 1)))
        size = len(await service.snapshots.save("a", asyncio.get_running_loop().time() + PATIENCE))
        monkeypatch.setattr(bodies, "MOST_HELD", size * 3 // 2)
        reads = asyncio.Event()

        async def get(takes: Callable[[], Awaitable[Any]]) -> tuple[int, int]:
            statuses: list[int] = []
            lengths: list[int] = []

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])
                else:
                    lengths.append(len(message["body"]))
                    await takes()

            async def receive() -> Any:
                return await asyncio.Event().wait()

            headers = [(b"host", b"localhost")]
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/v1/sessions/a/snapshot",
                "query_string": b"",
                "headers": headers,
            }
            await guard(scope, receive, send)
            return statuses[0], sum(lengths)

        async def at_once() -> None:
            return

        try:
            slow = asyncio.create_task(get(reads.wait))
            while guard.bodies.held != size:
                await asyncio.sleep(0.005)
            assert (await get(at_once))[0] == 503
            reads.set()
            assert await slow == (200, size)
            assert guard.bodies.held == 0
            assert await get(at_once) == (200, size)
        finally:
            await service.close()
            log.close()

    asyncio.run(main())


def test_the_loop_neither_reads_nor_packs_a_context_that_is_restored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one, the same again, and another one: what takes long for a long context runs in threads."""
    threads: dict[str, set[threading.Thread]] = {"read": set(), "packed": set()}
    read, packed = context_view.View.read, context_record.Record.packed

    def reading(view: context_view.View, start: int = 0) -> Any:
        threads["read"].add(threading.current_thread())
        return read(view, start)

    def packing(record: context_record.Record) -> Any:
        if record.kind == context_record.WHOLE:
            threads["packed"].add(threading.current_thread())
        return packed(record)

    async def main() -> None:
        service = Service({"run0": folder / "run0"}, lambda run: Engine.open(run), tmp_path / "s", Limits())
        until = asyncio.get_running_loop().time() + PATIENCE
        try:
            service.contexts.open("a")
            service.contexts.append("a", from_rows(rows_of(40, 1)))
            data = await service.snapshots.save("a", until)
            monkeypatch.setattr(context_view.View, "read", reading)
            monkeypatch.setattr(context_record.Record, "packed", packing)
            assert (await service.snapshots.restore("b", data, until))[0]
            assert not (await service.snapshots.restore("b", data, until))[0]
            service.contexts.append("b", from_rows(rows_of(1, 2)))
            with pytest.raises(RefusedError) as refused:
                await service.snapshots.restore("b", data, until)
            assert (refused.value.status, refused.value.members["seq"]) == (409, 2)
        finally:
            await service.close()

    asyncio.run(main())
    assert threads["read"] and threads["packed"]
    assert threading.main_thread() not in threads["read"] | threads["packed"]


def test_a_restore_that_is_late_has_written_nothing(folder: Path, tmp_path: Path) -> None:
    async def main() -> None:
        service = Service({"run0": folder / "run0"}, lambda run: Engine.open(run), tmp_path / "s", Limits())
        gate = threading.Event()
        loop, engine = asyncio.get_running_loop(), service.models["run0"].engine
        try:
            service.contexts.open("a")
            data = await service.snapshots.save("a", loop.time() + PATIENCE)
            restore = engine.restore

            def held(given: bytes) -> Any:
                gate.wait(PATIENCE)
                return restore(given)

            engine.restore = held  # type: ignore[method-assign]
            with pytest.raises(RefusedError) as refused:
                await service.snapshots.restore("b", data, loop.time() + 0.2)
            assert refused.value.status == 504
            gate.set()
            assert await service.snapshots.restore("c", data, loop.time() + PATIENCE) == (True, True)
            assert set(service.contexts) == {"a", "c"}
        finally:
            gate.set()
            await service.close()

    asyncio.run(main())
