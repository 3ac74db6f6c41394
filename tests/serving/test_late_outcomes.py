"""What becomes known of a session after its end is not told: the session was counted when it ended."""

import asyncio
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nextvec.serving.causes import cause
from nextvec.serving.observations import Closed, SessionEvent
from nextvec.serving.service import Service
from nextvec.serving.state_rebuild import INLINE
from tests.serving.faults import raises
from tests.serving.server import rows_of
from tests.serving.test_service import rollout, say, served

T = TypeVar("T")


@pytest.fixture(scope="module")
def runs(made: Path) -> dict[str, Path]:
    return {"stable": made / "run0", "new": made / "run1"}


def held(call: Any, gate: asyncio.Event) -> Any:
    """The same call, once the gate is open."""

    async def waits(*given: Any) -> Any:
        await gate.wait()
        return await call(*given)

    return waits


@pytest.mark.parametrize("late", ["label", "mirror", "failed mirror", "warming"])
def test_nothing_is_told_of_a_session_after_its_end(runs: dict[str, Path], tmp_path: Path, late: str) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        gate = asyncio.Event()
        service.background.mirror = 100.0 if "mirror" in late else 0.0
        service.contexts.open("a")
        if late == "warming":
            await say(service, "a", rows_of(INLINE * 4, 1))
        service.routing.adopt(rollout(50.0 if late == "label" else 100.0 if late == "warming" else 0.0))
        ask = service.models["new"].queue.ask
        if late == "label":
            service.outcomes.appended_row = held(service.outcomes.appended_row, gate)  # type: ignore[method-assign]
        elif late == "warming":
            service.inference.warm = held(service.inference.warm, gate)  # type: ignore[method-assign]
            service.models["new"].engine.read = raises  # type: ignore[method-assign]
        else:
            service.models["new"].queue.ask = held(raising if late == "failed mirror" else ask, gate)  # type: ignore
        await say(service, "a", rows_of(1, 2))
        appended = asyncio.create_task(say(service, "a", rows_of(1, 3), k=0)) if late == "label" else None
        while appended is not None and "a" in service.outcomes.pending:  # until the search for the label has begun
            await asyncio.sleep(0)
        service.outcomes.lapse("a")
        told = len(events)
        assert events[-1] == Closed("a")
        gate.set()
        if appended is not None:
            await appended
        await asyncio.gather(*service.background.tasks.values(), *service.outcomes.labelling)
        assert events[told:] == []

    served(runs, tmp_path, talk)


async def raising(*_: Any) -> Any:
    raise ValueError("a fault")


def test_a_session_whose_requests_all_failed_ends_too(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, events: list[SessionEvent]) -> None:
        service.routing.adopt(rollout(100.0))
        for model in service.models.values():
            model.engine.predict = raises  # type: ignore[method-assign]
        service.contexts.open("a")
        with pytest.raises(Exception):  # noqa: B017
            await say(service, "a", rows_of(1))
        assert events
        assert "a" in service.outcomes.observed.due(inf, 1)  # so that its end will be told

    served(runs, tmp_path, talk)


def test_causes_of_one_kind_are_one_text_whatever_was_left_of_the_time() -> None:
    engine = None  # no process has ended
    said = {cause("canary late", engine, 0.9 + n / 1e5) for n in range(2001)}
    assert said == {"no answer within 900 ms", "no answer within 910 ms", "no answer within 920 ms"}
    assert cause("canary late", engine, 1.0) == "no answer within 1000 ms"
    assert cause("canary late", engine, 0.0123) == "no answer within 12 ms"
    assert cause("canary late", engine, 30.0) == "no answer within 30000 ms"
