"""Deadlines: a request is answered or refused in time, says what was written, and holds up no other one."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request

from nextvec.client import AsyncClient, OverloadedError, ReplacedError, SeqConflictError
from nextvec.inference import Engine
from nextvec.routing import BUCKETS, ArmModels, RoutedModel, Snapshot, bucket
from nextvec.serving.app import application
from nextvec.serving.disconnects import unless_disconnected
from nextvec.serving.limits import Limits
from nextvec.serving.log import Log
from nextvec.serving.observations import LabelledPrediction, Observation, SessionEvent
from nextvec.serving.overview import unready
from nextvec.serving.payload import from_rows
from nextvec.serving.refusal import RefusedError
from nextvec.serving.round_robin import RoundRobinThread, Steps
from nextvec.serving.server import _config, _Server
from nextvec.serving.service import Service
from nextvec.serving.text_encoding import ALWAYS, BATCH, FRESH_SECONDS, TextEncoding
from nextvec.wire.media import F32
from tests.serving.server import DIM, asking, rows_of

LONG = 60.0  # seconds that no sound test needs
Talk = Callable[[Service, list[SessionEvent]], Awaitable[None]]


@pytest.fixture(scope="module")
def runs(made: Path) -> dict[str, Path]:
    return {"stable": made / "run0", "new": made / "run1"}


def served(runs: dict[str, Path], folder: Path, talk: Talk, **limits: Any) -> None:
    async def main() -> None:
        service, events = Service(runs, lambda run: Engine.open(run), folder / "s", Limits(**limits)), []
        service.listeners.observe = events.append
        try:
            await asyncio.wait_for(talk(service, events), LONG)
        finally:
            for gate in GATES:
                gate.open()
            GATES.clear()
            await service.close()

    asyncio.run(main())


@asynccontextmanager
async def live(service: Service) -> AsyncIterator[str]:
    """The service behind a real server on loopback; the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    log = Log(service.metrics)
    guard = application(service, log)
    server = _Server(_config(guard, service, log), service, guard, listener)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        log.close()


GATES: list["Gate"] = []


class Gate:
    """Stands before a call of an engine: the call waits until the test lets it through."""

    def __init__(self, call: Callable[..., Any]) -> None:
        GATES.append(self)  # a test that fails leaves no thread behind
        self.call, self.begun, self.done = call, 0, 0
        self._free = threading.Semaphore(0)

    def __call__(self, *given: Any) -> Any:
        self.begun += 1
        self._free.acquire()
        self.done += 1
        return self.call(*given)

    def let(self, calls: int = 1) -> None:
        self._free.release(calls)

    def open(self) -> None:
        self.let(1_000_000)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not what():
            await asyncio.sleep(0.005)


async def say(service: Service, session: str, rows: np.ndarray, seconds: float = LONG, k: int = 5) -> Any:
    deadline = asyncio.get_running_loop().time() + seconds
    return await service.sessions.append(session, from_rows(rows), None, k, asking(session), deadline)


def rollout(weight: float) -> Snapshot:
    stable, new = RoutedModel("stable"), RoutedModel("new")
    return Snapshot(1, ArmModels(stable, stable), ArmModels(new, new), weight, "r1", asyncio.get_running_loop().time() + 3600)


def named(arm: str) -> str:
    """A session that a coin of 50 % gives to an arm."""
    return next(name for name in map(str, range(100)) if (bucket(name, "r1") < BUCKETS / 2) == (arm == "canary"))


def of(events: list[SessionEvent], stream: str) -> list[tuple[str, float]]:
    return [(event.arm, event.value) for event in events if isinstance(event, Observation) and event.stream == stream]


def encoder(engine: Any) -> Gate:
    """Have an engine of a bank of vectors encode: a chunk for every ten characters, a row of ones for each chunk."""

    def encode(chunks: Sequence[str]) -> np.ndarray:
        return np.ones((len(chunks), DIM), np.float32)

    gate = Gate(encode)
    engine.cut = lambda text: [text[n : n + 10] for n in range(0, len(text), 10)]
    engine.encode_chunks = gate
    return gate


# A canary that hangs


def test_a_hanging_canary_leaves_stable_its_time(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.routing.adopt(rollout(100.0))
        service.contexts.open("a")
        hung = service.models["new"].engine.answers = Gate(service.models["new"].engine.answers)  # type: ignore[method-assign]
        service.models["stable"].queue._waits.append(14.75)  # so 29.5 of 30 seconds are stable's
        answer = await say(service, "a", rows_of(1), 30.0)
        assert (answer.arm, answer.reason, hung.begun) == ("stable", "canary late", 1)
        assert of(events, "fail") == [("canary", 1.0)]

    served(runs, tmp_path, talk, budget=LONG)  # by the budget alone the canary might take two minutes


def test_where_stable_needs_all_the_time_a_canary_is_not_tried_and_not_judged(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        for arm in ("stable", "canary"):
            service.contexts.open(named(arm))
        service.models["stable"].queue._waits.extend([20.0] * 256)
        service.models["new"].engine.answers = None  # type: ignore[assignment, method-assign]
        service.routing.adopt(rollout(50.0))
        assert (await say(service, named("canary"), rows_of(1), 30.0)).reason == "canary not tried"
        assert (await say(service, named("stable"), rows_of(1), 30.0)).arm == "stable"
        assert events == []  # of either arm, or one would have fewer requests than the other

    served(runs, tmp_path, talk, budget=LONG)


@pytest.mark.parametrize("arm", ["stable", "canary"])
def test_a_request_without_an_answer_counts_against_its_arm(runs: dict[str, Path], tmp_path: Path, arm: str) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.routing.adopt(rollout(50.0))
        name = named(arm)
        service.contexts.open(name)
        gates = [Gate(model.engine.answers) for model in service.models.values()]
        for model, gate in zip(service.models.values(), gates, strict=True):
            model.engine.answers = gate  # type: ignore[method-assign]
        left = asyncio.ensure_future(say(service, name, rows_of(1)))
        await until(lambda: any(gate.begun for gate in gates))
        left.cancel()  # a client that leaves before its deadline
        await asyncio.gather(left, return_exceptions=True)
        assert events == []
        with pytest.raises(RefusedError) as refused:
            await say(service, name, rows_of(1), 0.2)
        assert refused.value.status == 504
        assert of(events, "assign") == [(arm, 0.0)]
        assert of(events, "fail") == [(arm, 1.0)]

    served(runs, tmp_path, talk, budget=0.02)


def test_both_arms_fail_by_one_rule(runs: dict[str, Path], tmp_path: Path) -> None:
    """Stable's answer that took longer than a canary may is a failure, too: or an incident of both would condemn one."""

    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.routing.adopt(rollout(50.0))
        service.contexts.open(named("stable"))
        await say(service, named("stable"), rows_of(1))
        assert of(events, "fail") == [("stable", 1.0)]

    served(runs, tmp_path, talk, budget=1e-9)


# Long contexts


def test_a_request_that_ends_in_the_queue_costs_no_state(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        model = service.models["stable"]
        model.queue.in_thread = True
        for session in ("a", "b"):
            await service.sessions.open(session)
            await say(service, session, rows_of(40, 1))
        gate = Gate(model.engine.answers)
        model.engine.answers = gate  # type: ignore[method-assign]
        first = asyncio.create_task(say(service, "a", rows_of(1, 2)))
        await until(lambda: gate.begun == 1)
        second = asyncio.create_task(say(service, "b", rows_of(1, 3)))
        await until(lambda: len(model.queue) == 1)
        second.cancel()  # as its deadline does
        await asyncio.gather(second, return_exceptions=True)
        assert service.states.length("b", model.engine.digest) == 40  # still there, for the next request
        gate.open()
        await first
        answer = await say(service, "b", rows_of(1, 4))
        want = Engine.open(runs["stable"]).session()
        want.push_many(np.concatenate([rows_of(40, 1), rows_of(1, 3), rows_of(1, 4)]))
        assert [e.row for e in answer.expected] == [e.row for e in want.predict(5)]

    served(runs, tmp_path, talk)


def test_a_long_append_is_refused_at_its_deadline_and_read_once(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        engine, rows = service.models["stable"].engine, rows_of(2_500, 1)
        service.contexts.open("a")
        reading = engine.read = Gate(engine.read)  # type: ignore[attr-defined]
        with pytest.raises(RefusedError) as refused:
            await say(service, "a", rows, 1.0)
        told = refused.value.members
        assert (refused.value.status, told["seq"], told["length"], told["applied"]) == (504, 1, 2_500, True)
        with pytest.raises(RefusedError) as waiting:  # another one waits for the same reading, and no longer than it may
            await service.sessions.predict("a", 5, asking("a"), asyncio.get_running_loop().time() + 0.2)
        assert waiting.value.status == 504
        holding = asyncio.ensure_future(say(service, "a", rows_of(1, 2)))
        await asyncio.sleep(0)
        for ask in (
            service.sessions.open,
            service.sessions.delete,
        ):  # behind a request of the session
            with pytest.raises(RefusedError) as behind:
                await ask("a", asyncio.get_running_loop().time() + 0.05)
            assert behind.value.status == 504
        reading.open()
        assert (await holding).length == 2_501
        answer = await service.sessions.predict("a", 5, asking("a"), asyncio.get_running_loop().time() + LONG)
        assert reading.begun == 3  # segments of 1,024, each once
        want = Engine.open(runs["stable"]).session()
        want.push_many(rows)
        want.push(rows_of(1, 2)[0])
        assert [e.row for e in answer.expected] == [e.row for e in want.predict(5)]

    served(runs, tmp_path, talk)


def test_a_reading_that_outlives_its_session_is_not_the_next_ones_state(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        engine = service.models["stable"].engine
        service.contexts.open("a")
        reading = engine.read = Gate(engine.read)  # type: ignore[attr-defined]
        with pytest.raises(RefusedError):
            await say(service, "a", rows_of(20, 1), 0.2)
        await service.sessions.delete("a")
        await service.sessions.open("a")
        rows = rows_of(30, 2)
        await say(service, "a", rows, k=0)
        reading.open()
        await until(lambda: not service.rebuilds._running)
        answer = await say(service, "a", rows_of(1, 3))
        want = Engine.open(runs["stable"]).session()
        want.push_many(np.concatenate([rows, rows_of(1, 3)]))
        assert [e.row for e in answer.expected] == [e.row for e in want.predict(5)]

    served(runs, tmp_path, talk)


# TextEncoding


def test_jobs_take_turns_and_one_that_is_cancelled_ends() -> None:
    order: list[str] = []

    def steps(name: str, count: int) -> Steps[str]:
        for n in range(count):
            if n:
                yield
            order.append(f"{name}{n}")
        return name

    async def main() -> None:
        turns = RoundRobinThread("test")
        long, gone, short = turns.run(steps("l", 3)), turns.run(steps("g", 2)), turns.run(steps("s", 1))
        await until(lambda: "g0" in order)
        gone.cancel()
        assert await short == "s"
        assert await long == "l"
        turns.close(RefusedError(503, "closed"))
        with pytest.raises(RefusedError):
            await turns.run(steps("x", 1))

    asyncio.run(main())
    assert order.index("s0") < order.index("l1")
    assert "x0" not in order


def test_a_long_text_holds_up_no_short_one_no_label_and_no_vectors(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        settled: list[LabelledPrediction] = []
        service.listeners.record = settled.append
        gate = encoder(service.models["stable"].engine)
        async with live(service) as url, AsyncClient(url) as client:
            one, two, three = [await client.session(name) for name in ("one", "two", "three")]
            long = asyncio.ensure_future(one.append_text("x" * 10 * BATCH * 5))
            await until(lambda: gate.begun == 1)
            await two.append(rows_of(1), k=3)
            await two.append(rows_of(1, 2), k=3)
            assert settled[0].hit is not None  # its label was searched for meanwhile
            short = asyncio.ensure_future(three.append_text("two words"))
            await until(lambda: len(service.texts._under_way) == 2)
            gate.let(1)
            await until(lambda: gate.begun == 2)
            gate.let(1)
            assert (await short).length == 1
            assert not long.done()
            gate.open()
            assert (await long).length == 5 * BATCH

    served(runs, tmp_path, talk, deadline=LONG)


def test_a_text_past_its_deadline_or_of_a_client_that_left_is_encoded_no_further(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        gate = encoder(service.models["stable"].engine)
        text = {"text": "x" * 10 * BATCH * 5}
        async with live(service) as url, httpx.AsyncClient(base_url=url, timeout=LONG) as http:
            await http.put("/v1/sessions/a")
            asked = asyncio.ensure_future(http.post("/v1/sessions/a/append", json=text, headers={"x-deadline-ms": "200"}))
            late = await asked
            problem = late.json()
            assert (late.status_code, problem["seq"], problem["length"], problem["applied"]) == (504, 0, 0, False)
            gate.let(1)
            left = asyncio.ensure_future(http.post("/v1/sessions/a/append", json=text, headers={"x-deadline-ms": "60000"}))
            await until(lambda: gate.begun == 2)
            left.cancel()
            await until(lambda: not service.texts._under_way)
            gate.let(1)
            await until(lambda: gate.done == 2)
            whole = asyncio.ensure_future(http.post("/v1/sessions/a/append?seq=1", json={"text": "whole"}))
            await until(lambda: gate.begun == 3)
            gate.open()
            assert (await whole).json()["length"] == 1
            assert gate.done == 3  # one step each

    served(runs, tmp_path, talk, deadline=LONG)


def test_a_stop_refuses_the_texts_that_wait(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        gate = encoder(service.models["stable"].engine)
        async with live(service) as url, httpx.AsyncClient(base_url=url, timeout=LONG) as http:
            stands = {name: (await http.put(f"/v1/sessions/{name}")).json()["incarnation"] for name in "ab"}
            body = {"text": "x" * 10 * BATCH * 5}
            asked = [asyncio.ensure_future(http.post(f"/v1/sessions/{name}/append", json=body)) for name in "ab"]
            await until(lambda: gate.begun == 1 and len(service.texts._under_way) == 2)
            service.drain()
            for name, answer in zip("ab", await asyncio.gather(*asked), strict=True):
                problem = answer.json()
                assert (answer.status_code, problem["applied"], problem["incarnation"]) == (503, False, stands[name])
            gate.open()
        assert gate.done == 1

    served(runs, tmp_path, talk, deadline=LONG)


def test_a_text_that_cannot_be_encoded_in_time_is_refused_with_what_can(runs: dict[str, Path]) -> None:
    """By a clock on which a character takes a millisecond."""
    now = 0.0
    engine: Any = Engine.open(runs["stable"])
    gate = encoder(engine)

    def encode(chunks: Sequence[str]) -> np.ndarray:
        nonlocal now
        now += 1e-3 * sum(map(len, chunks)) if len(chunks) > 1 else 10.0
        return np.ones((len(chunks), DIM), np.float32)

    gate.call = encode
    gate.open()

    async def main() -> None:
        nonlocal now
        texts = TextEncoding(lambda: now)
        deadline = asyncio.get_running_loop().time() + LONG
        assert len(await texts.rows(engine, "x", deadline)) == 1  # two words say nothing of a long text
        assert len(await texts.rows(engine, "x" * 100_000, deadline)) == 10_000  # nothing is known yet
        with pytest.raises(RefusedError) as refused:
            await texts.rows(engine, "x" * 100_000, deadline)
        assert refused.value.status == 413
        fits = refused.value.members["fits"]
        assert 0.9 * 1e3 * LONG < fits <= 1e3 * LONG
        assert str(fits) in str(refused.value)
        assert len(await texts.rows(engine, "x" * (fits - 1_000), deadline))
        assert len(await texts.rows(engine, "x" * ALWAYS, asyncio.get_running_loop().time() + 1.0))  # so that it is measured
        now += 2 * FRESH_SECONDS
        assert len(await texts.rows(engine, "x" * 100_000, deadline)) == 10_000
        texts.close()

    asyncio.run(main())


def test_a_text_that_would_be_late_for_others_is_refused_as_overload(runs: dict[str, Path]) -> None:
    engine: Any = Engine.open(runs["stable"])
    gate = encoder(engine)

    async def main() -> None:
        texts = TextEncoding(lambda: 0.0)
        texts.pace, texts._measured = 1e-3, 0.0
        deadline = asyncio.get_running_loop().time() + LONG
        first = asyncio.ensure_future(texts.rows(engine, "x" * 50_000, deadline))
        await until(lambda: gate.begun == 1)
        with pytest.raises(RefusedError) as refused:
            await texts.rows(engine, "x" * 50_000, deadline)
        assert (refused.value.status, refused.value.headers) == (503, {"retry-after": "1"})
        short = asyncio.ensure_future(texts.rows(engine, "two words", deadline))
        gate.open()
        assert len(await short) == 1
        assert len(await first) == 5_000
        texts.close()

    asyncio.run(main())


# What a client knows


def test_after_a_504_the_client_goes_on_and_the_same_append_again_applies_once(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        engine, rows = service.models["stable"].engine, rows_of(20, 1)
        async with live(service) as url, AsyncClient(url) as client:
            session = await client.session("a")
            reading = engine.read = Gate(engine.read)  # type: ignore[attr-defined]
            for again in (False, True):
                with pytest.raises(OverloadedError) as late:
                    await session.append(rows, k=3)
                assert late.value.problem.applied is True
                assert (session.seq, session.length, again) == (1, 20, again)
            reading.open()
            assert (await session.append(rows, k=3)).length == 20
            assert (await session.append(rows_of(1, 2), k=3)).length == 21
            assert (await session.append(rows_of(1, 3))).seq == 3

    served(runs, tmp_path, talk, deadline=1.0)


def test_after_a_conflict_the_client_knows_where_the_session_stands(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        async with live(service) as url, AsyncClient(url) as one, AsyncClient(url) as other:
            mine, theirs = await one.session("a"), await other.session("a")
            await mine.append(rows_of(1))
            with pytest.raises(SeqConflictError):
                await theirs.append(rows_of(1, 2))
            assert (await theirs.append(rows_of(1, 3))).length == 2

    served(runs, tmp_path, talk)


def test_a_late_append_to_a_session_that_was_made_again_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        async with live(service) as url, AsyncClient(url) as client, httpx.AsyncClient(base_url=url) as http:
            late = await client.session("a")
            await late.delete()
            made = (await http.put("/v1/sessions/a")).json()["incarnation"]
            assert made != late.incarnation
            headers, body = {"content-type": F32}, rows_of(1).tobytes()
            path = "/v1/sessions/a/append?seq=1&incarnation="
            refused = await http.post(f"{path}{late.incarnation}", content=body, headers=headers)
            assert (refused.status_code, refused.json()["incarnation"], refused.json()["seq"]) == (409, made, 0)
            for _ in range(2):  # it does not take the other session for its own
                with pytest.raises(ReplacedError):
                    await late.append(rows_of(1))
            assert (await http.post(f"{path}{made}", content=body, headers=headers)).json()["length"] == 1
            assert (await http.post("/v1/sessions/a/append?incarnation=1", content=body, headers=headers)).status_code == 400

    served(runs, tmp_path, talk)


# Readiness


def test_readiness_sees_a_blocked_encoder_and_a_full_disk(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        gate = encoder(service.models["stable"].engine)
        with pytest.raises(RefusedError):
            await service.encode("x", asyncio.get_running_loop().time() + 0.01)
        assert unready(service) is None
        await until(lambda: unready(service) is not None)
        assert "encoder" in str(unready(service))
        gate.open()
        await until(lambda: unready(service) is None)
        service.contexts.log.free = 1 << 62
        assert "disk" in str(unready(service))

    served(runs, tmp_path, talk, deadline=1.0)


def test_a_handler_that_is_cancelled_ends_what_it_asked_for() -> None:
    """As a stop does it: nothing of the request goes on when the service has closed."""

    async def main() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def asked() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def receive() -> Any:
            return await asyncio.Event().wait()

        task = asyncio.create_task(unless_disconnected(Request({"type": "http"}, receive), asked()))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert ended.is_set()

    asyncio.run(main())
