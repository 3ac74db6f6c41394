"""Who answers next: one decision for canaries, experts and ended processes, whatever stopped the model before."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nextvec.errors import NotFiniteError
from nextvec.inference import Engine, Expected
from nextvec.serving.answering import EndedError
from nextvec.serving.fallback import Attempt, Fallback, Query, Role
from nextvec.serving.limits import Limits
from nextvec.serving.refusal import RefusedError
from nextvec.serving.served_models import ServedModel
from nextvec.serving.service import Service
from tests.waiting import PATIENCE

FOUND = [Expected(3, 1.0, "", None)]


@pytest.fixture(scope="module")
def runs(made: Path) -> dict[str, Path]:
    return {"stable": made / "run0", "new": made / "run1"}


def tried(runs: dict[str, Path], folder: Path, talk: Callable[[Service, Fallback], Awaitable[None]]) -> None:
    async def main() -> None:
        service = Service(runs, lambda run: Engine.open(run), folder / "s", Limits())
        try:
            await talk(service, Fallback(service.routing, service.limits, service.listeners))
        finally:
            await service.close()

    asyncio.run(main())


def query(ask: Callable[[ServedModel], Any], ready: bool = True, seconds: float = PATIENCE) -> Query:
    async def asked(model: ServedModel) -> list[Expected]:
        found = ask(model)
        return await found if isinstance(found, Awaitable) else found

    deadline = asyncio.get_running_loop().time() + seconds
    return Query(1, None, deadline, "chosen", asked, lambda _: ready)


def fails(error: Exception, model: str = "new", times: int = 1_000) -> tuple[Callable[[ServedModel], Any], list[str]]:
    """A question that a model fails at the first times, and the models that were asked."""
    asked: list[str] = []

    def ask(asking: ServedModel) -> list[Expected]:
        asked.append(asking.name)
        if asking.name == model and asked.count(model) <= times:
            raise error
        return FOUND

    return ask, asked


class Down(Engine):
    """As an isolated engine while its process is started again."""

    @property
    def fault(self) -> str | None:
        return "its process has ended"


@pytest.mark.parametrize("role", ["canary", "expert"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("x"), "ValueError"),
        (EndedError("x"), "EndedError"),
        (RefusedError(504, "x"), "RefusedError"),
        (NotFiniteError("x"), "not finite"),
    ],
)
def test_after_any_failure_of_a_canary_or_an_expert_stable_answers(
    runs: dict[str, Path], tmp_path: Path, role: Role, error: Exception, reason: str
) -> None:
    async def talk(service: Service, fallback: Fallback) -> None:
        alarms: list[str] = []
        service.listeners.alarm = alarms.append
        ask, asked = fails(error)
        held = query(ask)
        found, model = await fallback.answer(Attempt(role, service.models["new"], PATIENCE), held)
        assert (found, model.name, held.reason) == (FOUND, "stable", f"{role} {reason}")
        assert asked == ["new", "stable"]
        assert bool(alarms) == (role == "canary" and reason == "not finite")

    tried(runs, tmp_path, talk)


def test_a_late_canary_an_unready_one_and_one_without_time_are_passed_over(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, fallback: Fallback) -> None:
        asked: list[str] = []

        def ask(model: ServedModel) -> Any:
            asked.append(model.name)
            return asyncio.sleep(PATIENCE if model.name == "new" else 0, FOUND)

        for seconds, ready, reason, names in (
            (0.01, True, "canary late", ["new", "stable"]),
            (0.0, True, "canary not tried", ["stable"]),
            (PATIENCE, False, "canary warming", ["stable"]),
            (0.0, False, "canary warming", ["stable"]),
        ):
            asked.clear()
            held = query(ask, ready)
            _, model = await fallback.answer(Attempt("canary", service.models["new"], seconds), held)
            assert (model.name, held.reason, asked) == ("stable", reason, names)

    tried(runs, tmp_path, talk)


def test_stable_is_asked_twice_only_after_its_process_ended(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, fallback: Fallback) -> None:
        first = Attempt("stable", service.models["stable"])
        ask, asked = fails(EndedError("x"), "stable", times=1)
        held = query(ask)
        assert (await fallback.answer(first, held))[0] == FOUND
        assert (asked, held.reason) == (["stable", "stable"], "chosen")
        for error, times in ((EndedError("x"), 2), (ValueError("x"), 1), (RefusedError(504, "x"), 1)):
            ask, asked = fails(error, "stable")
            with pytest.raises(type(error)):
                await fallback.answer(first, query(ask))
            assert asked == ["stable"] * times

    tried(runs, tmp_path, talk)


def test_after_a_canary_stable_has_its_second_try_too(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, fallback: Fallback) -> None:
        asked: list[str] = []

        def ask(model: ServedModel) -> list[Expected]:
            asked.append(model.name)
            if len(asked) < 3:
                raise EndedError("x")
            return FOUND

        held = query(ask)
        _, model = await fallback.answer(Attempt("canary", service.models["new"], PATIENCE), held)
        assert (asked, model.name, held.reason) == (["new", "stable", "stable"], "stable", "canary EndedError")

    tried(runs, tmp_path, talk)


def test_a_client_that_leaves_is_not_answered_by_another_model(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, fallback: Fallback) -> None:
        asked: list[str] = []

        def ask(model: ServedModel) -> Any:
            asked.append(model.name)
            return asyncio.sleep(PATIENCE)

        answer = asyncio.ensure_future(fallback.answer(Attempt("canary", service.models["new"], PATIENCE), query(ask)))
        while not asked:
            await asyncio.sleep(0)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        assert asked == ["new"]

    tried(runs, tmp_path, talk)


def test_a_process_that_is_not_back_before_the_deadline_is_the_error(runs: dict[str, Path], tmp_path: Path) -> None:
    async def talk(service: Service, fallback: Fallback) -> None:
        stable: Any = service.models["stable"]
        stable.engine.__class__ = Down
        ask, _ = fails(EndedError("ended"), "stable")
        held = query(ask, seconds=0.05)
        with pytest.raises(EndedError, match="ended"):
            async with asyncio.timeout_at(held.deadline):
                await fallback.answer(Attempt("stable", stable), held)

    tried(runs, tmp_path, talk)
