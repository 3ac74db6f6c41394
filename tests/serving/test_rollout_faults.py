"""A rollout that a server cannot take part in, or that ends at once: stable answers, and nothing stays open or is asked again.

The canary's own thread waits for ever, and its turns are taken by hand, so that every order of the steps is chosen.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nextvec.inference import Engine
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.follower import Follower
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import create, fold, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.plan import Plan
from nextvec.rollout.promotions import identity
from nextvec.rollout.transition import Command
from nextvec.rollout.units import bands
from nextvec.serving.canary import Canary, Terms
from nextvec.serving.limits import Limits
from nextvec.serving.service import Service
from tests.serving.server import rows_of
from tests.serving.test_canary import PERSON, STEPS, spoil, state
from tests.serving.test_service import alone, say
from tests.waiting import PATIENCE

Opens = Callable[[Path], Engine]


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    for name in ("run0", "run1"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def ledger(runs: Path) -> Iterator[Ledger]:
    opened = open_ledger(runs / "rollouts.db")
    begin(opened, runs, "r")
    yield opened
    opened.close()


def begin(ledger: Ledger, runs: Path, rollout: str) -> None:
    stable, canary = (identity(name, Engine.open(runs / name).digest) for name in ("run0", "run1"))
    terms = Plan(3.0, 0.01, STEPS)
    create(ledger, rollout, "default", terms, stable=stable, canary=canary, actor=PERSON, evidence=Evidence(bands()))
    intervene(ledger, rollout, Command("start", PERSON))


def taking_part(
    runs: Path,
    play: Callable[[Service, Canary, list[dict[str, Any]]], Awaitable[None]],
    opens: Opens = lambda run: Engine.open(run),
) -> None:
    """Play with a service of run0 that follows the ledger, and with the lines that it logs."""

    async def main() -> None:
        service = Service({"run0": runs / "run0"}, opens, runs / "s", Limits(budget=PATIENCE, deadline=PATIENCE))
        said: list[dict[str, Any]] = []
        terms = Terms(interval=1e6)
        ledger = open_ledger(runs / "rollouts.db")
        part = Canary(service, ledger, lambda name: runs / name, lambda *_, **more: said.append(more), terms)
        try:
            service.contexts.open("a")
            await play(service, part, said)
        finally:
            await part.close()
            await service.close()

    asyncio.run(main())


async def turn(part: Canary) -> None:
    """One turn of the rollout's thread, and all that it hands to the loop."""
    await asyncio.to_thread(part._tick)
    await asyncio.sleep(0)


async def until(part: Canary, done: Callable[[], bool]) -> None:
    """Let unloading go on until ``done``."""
    async with asyncio.timeout(PATIENCE):
        while not done():
            await asyncio.sleep(0.01)


def reject(ledger: Ledger, rollout: str) -> None:
    """Another server's alarm, which this server's next turn decides by."""
    other = Follower(ledger, rollout, "other", alone("run0"), alone("run1"))
    other.alarm("test")
    other.poll()
    other.leave()


def test_a_canary_that_is_rejected_in_the_shadow_is_unloaded(ledger: Ledger, runs: Path) -> None:
    async def play(service: Service, part: Canary, said: list[dict[str, Any]]) -> None:
        await turn(part)
        assert set(service.models) == {"run0", "run1"}
        assert service.models["run0"].queue.in_thread
        reject(ledger, "r")
        await turn(part)
        assert state(ledger) == "REJECTED"
        await until(part, lambda: set(service.models) == {"run0"})
        assert (service.routing.snapshot.canary, service.background.mirror) == (None, 0.0)
        assert not service.models["run0"].queue.in_thread
        await say(service, "a", rows_of(1))
        assert not service.outcomes.pending  # nothing waits for a label that no rollout counts

    taking_part(runs, play)


@pytest.mark.parametrize("fault", ["gone", "other weights"])
@pytest.mark.parametrize("seen", ["by another server", "in its own turn"])
def test_a_promoted_model_that_a_server_could_not_take_part_with_leaves_its_stable_one(
    ledger: Ledger, runs: Path, fault: str, seen: str
) -> None:
    if fault == "gone":
        shutil.rmtree(runs / "run1")
    else:
        spoil(runs / "run1", 1.5)

    async def play(service: Service, part: Canary, said: list[dict[str, Any]]) -> None:
        part._watched = await asyncio.to_thread(lambda: part._follow(ledger.active("default")))  # type: ignore[arg-type]
        part._watched.follower._alarm = None  # it was lost
        if seen == "by another server":
            for _ in range(len(STEPS) + 1):
                intervene(ledger, "r", Command("promote", PERSON))
        else:
            tick = part._watched.controller.tick

            def promoted() -> Any:  # between the poll and the tick
                for _ in range(len(STEPS) + 1):
                    intervene(ledger, "r", Command("promote", PERSON))
                return tick()

            part._watched.controller.tick = promoted  # type: ignore[method-assign]
        await turn(part)
        assert str(fold(ledger.rows("r"))) == "PROMOTED"
        await until(part, lambda: set(service.models) == {"run0"})
        assert service.routing.stable == service.routing.snapshot.stable.short.name == "run0"
        assert (await say(service, "a", rows_of(1))).model == "run0"
        assert any(line.get("model") == "run1" and line.get("kept") == "run0" for line in said)

    taking_part(runs, play)


def test_a_canary_whose_opening_fails_in_any_way_is_rejected_and_not_opened_again(ledger: Ledger, runs: Path) -> None:
    tried: list[Path] = []

    def opens(run: Path) -> Engine:
        if run.name == "run1":
            tried.append(run)
            raise OSError(5, "Input/output error")
        return Engine.open(run)

    async def play(service: Service, part: Canary, said: list[dict[str, Any]]) -> None:
        for _ in range(3):
            await turn(part)
        assert state(ledger) == "REJECTED"
        assert "run1 cannot be served" in ledger.rows("r")[-1].cause
        assert len(tried) == 1
        assert any("OSError" in str(line.get("refused")) for line in said)

    taking_part(runs, play, opens)


def test_a_model_that_the_next_rollout_found_open_is_not_unloaded_before_its_end(ledger: Ledger, runs: Path) -> None:
    async def play(service: Service, part: Canary, said: list[dict[str, Any]]) -> None:
        await turn(part)
        async with service.models.changing:  # as while a run is opened: unloading waits
            intervene(ledger, "r", Command("abort", PERSON))
            async with asyncio.timeout(PATIENCE):
                while part._watched is not None:
                    await turn(part)
            assert len(part._retiring) == 1
            begin(ledger, runs, "again")
            active = ledger.active("default")
            assert active is not None
            part._watched = await asyncio.to_thread(part._follow, active)
        await until(part, lambda: not part._retiring)
        assert set(service.models) == {"run0", "run1"}
        await turn(part)
        assert service.routing.snapshot.canary == alone("run1")
        reject(ledger, "again")
        await turn(part)
        await until(part, lambda: set(service.models) == {"run0"})  # it was opened for rollouts alone

    taking_part(runs, play)
