"""Two arms: whatever a canary does, its users are answered by stable, and it is counted against the canary."""

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvec.errors import NotFiniteError, ServingError
from nextvec.inference import Engine
from nextvec.routing import ArmModels, RoutedModel, Snapshot
from nextvec.serving.limits import Limits
from nextvec.serving.observations import Closed, LabelledPrediction, Observation, Pair, SessionEvent
from nextvec.serving.outcomes import PendingPrediction
from nextvec.serving.payload import from_rows
from nextvec.serving.refusal import RefusedError
from nextvec.serving.service import Service
from nextvec.serving.state_cache import OVERHEAD, StateCache
from nextvec.serving.state_rebuild import INLINE
from tests.serving.faults import FAULTS, raises
from tests.serving.server import asking, rows_of
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def runs(made: Path) -> dict[str, Path]:
    return {"stable": made / "run0", "new": made / "run1"}


def alone(name: str) -> ArmModels:
    return ArmModels(RoutedModel(name), RoutedModel(name))


def rollout(weight: float) -> Snapshot:
    return Snapshot(1, alone("stable"), alone("new"), weight, "r1", time.monotonic() + 3600)


Talk = Callable[[Service, list[SessionEvent]], Awaitable[Any]]


def served(
    runs: dict[str, Path], folder: Path, talk: Callable[[Service, list[SessionEvent]], Awaitable[Any]], **limits: Any
) -> Any:
    async def main() -> Any:
        given = Limits(**{"budget": PATIENCE, "deadline": PATIENCE} | limits)
        service, events = Service(runs, lambda run: Engine.open(run), folder / "s", given), []
        service.listeners.observe = events.append
        try:
            return await talk(service, events)
        finally:
            await service.close()

    return asyncio.run(main())


async def say(service: Service, session: str, rows: np.ndarray, k: int = 5, ids: list[int] | None = None) -> Any:
    until = asyncio.get_running_loop().time() + PATIENCE
    return await service.sessions.append(session, from_rows(rows, ids), None, k, asking(session), until)


def of(events: list[SessionEvent], stream: str) -> list[Observation]:
    return [event for event in events if isinstance(event, Observation) and event.stream == stream]


@pytest.mark.parametrize("name", ["raises", "hangs", "says_nan"])
def test_a_canary_that_fails_is_answered_for(
    runs: dict[str, Path], tmp_path: Path, name: str, released: threading.Event
) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.routing.adopt(rollout(100.0))
        service.models["new"].engine.predict = FAULTS[name]  # type: ignore[method-assign]
        service.contexts.open("a")
        answers = [await say(service, "a", rows_of(1, n)) for n in range(3)]
        want = Engine.open(runs["stable"]).session()
        want.push_many(np.concatenate([rows_of(1, n) for n in range(3)]))
        assert [e.row for e in answers[-1].expected] == [e.row for e in want.predict(5)]
        assert {a.arm for a in answers} == {"stable"}
        assert all(a.reason.startswith("canary ") for a in answers)
        assert [e.value for e in of(events, "fail")] == [1.0] * 3
        assert {e.arm for e in of(events, "fail")} == {"canary"}
        released.set()

    served(runs, tmp_path, talk, budget=0.1)


def test_both_arms_answer_and_switching_is_a_rebuild(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.contexts.open("a")
        rows = rows_of(INLINE * 4, 1)
        first = await say(service, "a", rows)
        service.routing.adopt(rollout(100.0))
        warming = await say(service, "a", rows_of(1, 2))
        assert (warming.arm, warming.reason) == ("stable", "canary warming")
        assert events == []  # what a rebuild costs says nothing of the model
        await asyncio.gather(*service.background.tasks.values())
        second = await say(service, "a", rows_of(1, 3))
        assert (second.arm, second.model) == ("canary", "new")
        service.routing.adopt(Snapshot(2, alone("stable")))
        third = await say(service, "a", rows_of(1, 4))
        assert (first.model, third.model) == ("stable", "stable")
        whole = np.concatenate([rows, rows_of(1, 2), rows_of(1, 3), rows_of(1, 4)])
        want = Engine.open(runs["stable"]).session()
        want.push_many(whole)
        assert [e.row for e in third.expected] == [e.row for e in want.predict(5)]

    served(runs, tmp_path, talk)


def test_a_canary_that_cannot_even_read_is_counted(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.contexts.open("a")
        await say(service, "a", rows_of(INLINE * 4, 1))
        service.models["new"].engine.read = raises  # type: ignore[method-assign]
        service.routing.adopt(rollout(100.0))
        answer = await say(service, "a", rows_of(1, 2))
        assert answer.reason == "canary warming"
        await asyncio.gather(*service.background.tasks.values())
        assert [(e.arm, e.value) for e in of(events, "fail")] == [("canary", 1.0)]

    served(runs, tmp_path, talk)


def test_the_next_append_is_the_label(runs: dict[str, Path], tmp_path: Path) -> None:
    """Exact Hit@K, by the nearest row of all or by the row that was named, against the definition."""

    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.routing.adopt(rollout(50.0))
        service.contexts.open("a")
        bank = service.models["stable"].engine.bank
        rows = np.asarray(bank.rows, np.float32)
        draw, hits = np.random.default_rng(0), []
        answer = await say(service, "a", rows[:1], 50)
        for n in range(30):
            row = int(draw.integers(len(rows))) if n % 2 else answer.expected[int(draw.integers(50))].row
            noisy = rows[row : row + 1] + 0.01 * draw.standard_normal((1, rows.shape[1])).astype(np.float32)
            nearest = int((rows @ noisy[0]).argmax())
            named = n % 3 == 0
            hits.append((row if named else nearest) in {e.row for e in answer.expected})
            answer = await say(service, "a", noisy, 50, [row] if named else None)
        assert [e.value == 0.0 for e in of(events, "miss")] == hits
        assert 0 < sum(hits) < 30
        assert [e.value for e in of(events, "unlabelled")] == [0.0] * 30
        await service.sessions.delete("a")
        assert of(events, "unlabelled")[-1].value == 1.0
        assert events[-1] == Closed("a")

    served(runs, tmp_path, talk)


def test_mirrored_questions_make_pairs_and_no_user_waits(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.routing.adopt(rollout(0.0))
        service.background.mirror = 100.0
        service.contexts.open("a")
        for n in range(6):
            answer = await say(service, "a", rows_of(1, n))
            assert answer.arm == "stable"
            await asyncio.gather(*service.background.tasks.values())
        pairs = [event for event in events if isinstance(event, Pair)]
        assert [p.stream for p in pairs].count("fail") == 6
        assert [p.stream for p in pairs].count("miss") == 5
        service.models["new"].engine.step = raises  # type: ignore[method-assign]
        await say(service, "a", rows_of(1, 9))
        await asyncio.gather(*service.background.tasks.values())
        assert [e for e in events if isinstance(e, Pair)][-1].canary_bad

    served(runs, tmp_path, talk)


def test_a_snapshot_of_unknown_models_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        before = service.routing.snapshot
        with pytest.raises(ServingError, match="not served"):
            service.routing.adopt(Snapshot(1, alone("other")))
        assert service.routing.snapshot is before

    served(runs, tmp_path, talk)


def test_a_reload_swaps_the_model_and_keeps_the_sessions(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        service.contexts.open("a")
        await say(service, "a", rows_of(30, 1))
        other = Engine.open(runs["new"])
        service.models.open_run = lambda _: other
        asked = [asyncio.ensure_future(say(service, "a", rows_of(1, n))) for n in range(4)]
        await service.models.reload("stable")
        assert {(await answer).model for answer in asked} == {"stable"}
        after = await say(service, "a", rows_of(1, 9))
        assert (after.digest, after.length) == (other.digest, 35)
        with pytest.raises(RefusedError):
            service.models.open_run = lambda _: raise_(ServingError("gone"))
            await service.models.reload("stable")
        assert (await say(service, "a", rows_of(1, 10))).digest == other.digest

    served(runs, tmp_path, talk)


def raise_(error: Exception) -> Any:
    raise error


def test_a_request_past_its_deadline_is_not_computed(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        service.contexts.open("a")
        await say(service, "a", rows_of(1, 1))
        with pytest.raises(RefusedError) as refused:
            await service.sessions.predict("a", 5, asking("a"), asyncio.get_running_loop().time() - 1)
        assert refused.value.status == 504
        assert (await say(service, "a", rows_of(1, 2))).length == 2

    served(runs, tmp_path, talk)


def test_one_broken_session_does_not_break_its_batch(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        engine = service.models["stable"].engine
        for n in range(5):
            service.contexts.open(f"s{n}")
            await say(service, f"s{n}", rows_of(2, n))
        poisoned: Any = service.states._held["s2", engine.digest][0]
        poisoned.prediction = None  # as no sound engine would leave it
        asked = [
            service.sessions.predict(f"s{n}", 3, asking(f"s{n}"), asyncio.get_running_loop().time() + PATIENCE)
            for n in range(5)
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(answer, Exception) for answer in found] == [False, False, True, False, False]
        assert (await service.sessions.predict("s2", 3, asking("s2"), asyncio.get_running_loop().time() + PATIENCE)).length == 2

    served(runs, tmp_path, talk)


def test_a_reload_that_cannot_answer_leaves_the_old_model(runs: dict[str, Path], tmp_path: Path) -> None:
    def broken(*_: object) -> Any:
        raise NotFiniteError("planted")

    async def talk(service: Service, events: list[SessionEvent]) -> None:
        engine = Engine.open(runs["stable"])
        engine.predict = broken  # type: ignore[method-assign]
        service.models.open_run = lambda _: engine
        with pytest.raises(RefusedError, match="the old model stays") as refused:
            await service.models.reload("stable")
        assert refused.value.status == 409
        service.contexts.open("a")
        assert (await say(service, "a", rows_of(1))).model == "stable"

    served(runs, tmp_path, talk)


def test_a_record_without_a_rollout_forgets_idle_sessions(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        settled: list[LabelledPrediction] = []
        service.listeners.record = settled.append
        for n in range(20):
            service.contexts.open(f"s{n}")
            await say(service, f"s{n}", rows_of(1, n))
        async with asyncio.timeout(PATIENCE):
            while service.outcomes.pending:
                await asyncio.sleep(0.01)
        assert sorted(s.session for s in settled) == sorted(f"s{n}" for n in range(20))
        assert {s.hit for s in settled} == {None}
        assert len(service.contexts) == 20  # what has ended for the record is not forgotten by the server

    served(runs, tmp_path, talk, idle=1e-9)


def test_a_rollout_that_begins_loses_no_record_and_judges_nothing_from_before(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        settled: list[LabelledPrediction] = []
        service.listeners.record = settled.append
        service.contexts.open("a")
        service.routing.adopt(rollout(50.0))
        await say(service, "a", rows_of(1, 0))
        events.clear()
        service.routing.adopt(replace(rollout(50.0), rollout="r2"))
        await say(service, "a", rows_of(1, 1), ids=[0])
        assert [s.hit is None for s in settled] == [False]  # the append labels the prediction that was asked before
        assert of(events, "miss") == of(events, "unlabelled") == []  # but not for the new rollout

    served(runs, tmp_path, talk)


def test_a_model_that_is_closed_gives_its_last_answers_and_is_freed(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, _: list[SessionEvent]) -> None:
        service.contexts.open("a")
        await say(service, "a", rows_of(2, 1))
        service.routing.promote("new", "stable")
        service.routing.promote("stable", "new")
        old, engine = weakref.ref(service.models["stable"].engine), service.models["stable"].engine
        service.models["stable"].queue.in_thread = True
        begun, release = threading.Event(), threading.Event()
        answers = engine.answers

        def held(questions: Any) -> Any:
            begun.set()
            release.wait(PATIENCE)
            return answers(questions)

        engine.answers = held  # type: ignore[method-assign]
        asked = asyncio.ensure_future(say(service, "a", rows_of(1, 2)))
        await asyncio.to_thread(begun.wait, PATIENCE)
        service.routing.promote("new", "stable")
        closing = asyncio.ensure_future(service.routing.unload("stable"))
        await asyncio.sleep(0)
        assert (await say_other(service)).model == "new"
        release.set()
        answer = await asked
        assert (answer.model, answer.length) == ("stable", 3)
        await closing
        assert set(service.models) == {"new"}
        assert not [name for name in service.states._held if name[1] == answer.digest]
        del engine, answers, held, asked, closing
        gc.collect()
        assert old() is None
        with pytest.raises(ServingError, match="still needed"):
            await service.routing.unload("new")

    served(runs, tmp_path, talk)


async def say_other(service: Service) -> Any:
    service.contexts.open("b")
    return await say(service, "b", rows_of(1, 3))


def test_forgetting_a_session_costs_its_own_states_whatever_else_is_held(runs: dict[str, Path]) -> None:
    state = Engine.open(runs["stable"]).session()
    state.push(rows_of(1)[0])

    def held(sessions: int) -> StateCache:
        states = StateCache(1 << 40)
        for n in range(sessions):
            for digest in ("old", "new"):
                states.put(f"s{n}", digest, state, 100)
        return states

    def lines(states: StateCache) -> int:
        """Lines of Python that forgetting one session takes."""
        count = 0

        def line(_frame: Any, event: str, _given: Any) -> Any:
            nonlocal count
            count += event == "line"
            return line

        sys.settrace(line)
        try:
            states.drop(session="s7")
        finally:
            sys.settrace(None)
        return count

    few, many = held(10), held(1_000)
    whole = many.bytes
    assert lines(few) == lines(many)
    assert many.bytes == whole - 2 * (whole // 2_000)
    assert many.length("s7", "old") == many.length("s7", "new") == 0
    assert many.length("s8", "old") == 1
    many.drop(digest="old")
    assert len(many) == 999
    assert few.take("s1", "old") is state
    few.drop(session="s1")
    few.lose("s1", "old")
    assert few.bytes == 16 * (100 + OVERHEAD)


def test_a_batch_counts_once_among_the_requests_that_wait_for_a_thread(runs: dict[str, Path], tmp_path: Path) -> None:
    """What a canary does in the background counts not at all: load is shed by requests that wait for the loop."""

    async def talk(service: Service, _: list[SessionEvent]) -> None:
        free = threading.Event()
        model, background = service.models["stable"], asyncio.Event()

        def read(session: Any, rows: np.ndarray) -> None:
            free.wait(PATIENCE)

        model.engine.read = read  # type: ignore[method-assign]
        service.worker.thread.submit(free.wait, PATIENCE)

        async def work() -> None:
            background.set()
            await service.worker.run(lambda: None)

        deadline = asyncio.get_running_loop().time() + PATIENCE
        contexts = [rows_of(INLINE + 1, n) for n in range(5)]
        batch = asyncio.create_task(service.predictions.once(contexts, 3, asking(""), deadline))
        service.background.run(model, "a", work)
        await background.wait()
        while not service.worker.waiting:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert service.worker.waiting == 1
        model.queue.seconds_per_request = 2 * service.limits.budget
        assert service.overloaded(3)  # this one, the batch, and one that waits for the loop
        free.set()
        batch.cancel()
        await asyncio.gather(batch, *service.background.tasks.values(), return_exceptions=True)
        assert service.worker.waiting == 0

    served(runs, tmp_path, talk)


def test_a_state_that_is_warm_but_for_a_few_vectors_is_kept(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.contexts.open("a")
        await say(service, "a", rows_of(40, 1))
        model = service.models["stable"]
        service.contexts.append("a", from_rows(rows_of(2, 2)))
        promise = PendingPrediction("canary", frozenset(), 42, 1.0, True)
        service.background.warm(model, "a", service.contexts.view("a"), promise, None)
        await asyncio.gather(*service.background.tasks.values())
        assert service.states.length("a", model.engine.digest) == 40

    served(runs, tmp_path, talk)
