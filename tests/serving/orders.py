"""How a rollout ends, in each order of the thread's step and the loop's: ``python -m tests.serving.orders RUNS``.

A real service, ledger and canary; the canary's own thread is not let near them, and its steps are taken by hand. Prints a line
for every way to end and every order. A loop that does not come to an end never prints the next line.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextvec.inference import Engine
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.lifecycle import create, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.promotions import identity
from nextvec.rollout.transition import Command
from nextvec.rollout.units import bands
from nextvec.serving.canary import Canary, Terms
from nextvec.serving.limits import Limits
from nextvec.serving.payload import from_rows
from nextvec.serving.service import Service
from tests.serving.server import asking, rows_of
from tests.waiting import PATIENCE

STEPS = (CanaryStep(5.0, 0.0, 10**6), CanaryStep(98.0, 0.0, 10**6))
ENDS = {"aborted": ("abort",), "promoted": ("promote", "promote")}
ORDERS = ("the thread first", "in turns")


async def end(runs: Path, folder: Path, verbs: tuple[str, ...], order: str) -> str:
    """The model that answers once the rollout has ended with an idle session under observation."""
    service = Service({"run0": runs / "run0"}, lambda run: Engine.open(run), folder / "sessions", Limits(idle=1e-9))
    digests = {name: Engine.open(runs / name).digest for name in ("run0", "run1")}
    ledger = open_ledger(folder / "rollouts.db")
    plan = Plan(3.0, 0.01, STEPS)
    stable, canary = (identity(name, digest) for name, digest in digests.items())
    create(ledger, "r", "default", plan, stable=stable, canary=canary, actor="tester", evidence=Evidence(bands()))
    intervene(ledger, "r", Command("start", "tester"))
    part = Canary(service, ledger, lambda name: runs / name, lambda *_, **__: None, Terms(interval=3600.0))
    intervene(ledger, "r", Command("promote", "tester"))
    for _ in range(3):  # the lease begins when a beat has been seen
        await asyncio.to_thread(part._tick)
    heard: list[Any] = []
    observe = service.listeners.observe
    service.listeners.observe = lambda happened: (heard.append(happened), observe(happened))[1]
    await session(service, "a")
    assert heard, "the session is not under observation"
    for verb in verbs:
        intervene(ledger, "r", Command(verb, "tester"))
    loop = asyncio.get_running_loop()
    if order == "in turns":
        part._in_loop = lambda call, *given: carried_out(loop, call, *given)
    for _ in range(50):  # a rollback waits for its acknowledgement
        if not ledger.record("r").active and part._watched is None:
            break
        if order == "in turns":
            await asyncio.to_thread(part._tick)
        else:
            part._tick()  # what it hands to the loop is done after all of its turns
    await asyncio.sleep(0)
    vars(part).pop("_in_loop", None)
    await session(service, "b")
    await part.close()
    await service.close()
    return service.routing.stable


def carried_out(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *given: Any) -> None:
    """Wait until the loop has made a call of the thread."""

    async def made() -> None:
        call(*given)

    asyncio.run_coroutine_threadsafe(made(), loop).result()


async def session(service: Service, name: str) -> None:
    await service.sessions.open(name)
    until = asyncio.get_running_loop().time() + PATIENCE
    await service.sessions.append(name, from_rows(rows_of(1)), None, 3, asking(name), until)


def main(runs: str) -> None:
    for name, verbs in ENDS.items():
        for order in ORDERS:
            with tempfile.TemporaryDirectory() as folder:
                print(name, order, asyncio.run(end(Path(runs), Path(folder), verbs, order)), sep=": ", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
