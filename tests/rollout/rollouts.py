"""Plans, ledgers and clocks that the tests of a rollout share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nextvec.rollout.controller import Controller
from nextvec.rollout.evidence import Verdict
from nextvec.rollout.follower import Follower
from nextvec.rollout.guardrails import OK, STREAMS, UNDECIDED
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import create, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.plan import STEP_WEIGHTS, CanaryStep, Plan
from nextvec.rollout.state import State
from nextvec.rollout.transition import Command, Readings
from nextvec.routing import BUCKETS, Route, bucket, route
from tests.rollout.drive import NEW, OLD, alike

STEPS = tuple(CanaryStep(weight, 10.0, 1_000) for weight in STEP_WEIGHTS)
PLAN = Plan(50.0, 0.001, STEPS, CanaryStep(0.0, 10.0, 1_000), max_wait=500.0, silence=60.0, longest_pause=200.0)
QUICK = Plan(
    50.0, 0.001, tuple(replace(canary_step, dwell=0.0) for canary_step in STEPS), CanaryStep(0.0, 0.0, 1_000), lease=1.0
)
PATIENT = replace(QUICK, lease=3.0)  # which a loaded machine renews in time, too
NAMES = ["DRAFT", "SHADOW", *(f"CANARY({step})" for step in range(4)), "FULL", "ROLLING_BACK"]
UP = ["SHADOW", "CANARY(0)", "CANARY(1)", "CANARY(2)", "CANARY(3)", "FULL", "PROMOTED"]
PAUSES = [f"PAUSED({name})" for name in UP[:-1]]


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # many commits, and no crash that only a disk survives


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def said(**streams: str) -> Verdict:
    return Verdict({stream: streams.get(stream, UNDECIDED) for stream in STREAMS})


ALL_OK = Verdict(dict.fromkeys(STREAMS, OK))
ENOUGH = Readings(ALL_OK, units=5_000, watched=20.0)


def state(name: str, plan: Plan = PLAN) -> State:
    return State(plan).named(name, 3)


def drafted(where: str | Path, plan: Plan = PLAN, start: bool = True) -> Ledger:
    ledger = open_ledger(where)
    create(ledger, "r", "main", plan, stable="old", canary="new", actor="ann")
    if start:
        intervene(ledger, "r", Command("start", "ann"))
    return ledger


def follower(ledger: Ledger, clock: Callable[[], float], name: str = "router") -> Follower:
    return Follower(ledger, "r", name, OLD, NEW, clock=clock)


def steps(ledger: Ledger) -> list[str]:
    return [row.after for row in ledger.rows("r")]


ALLOWED = {
    "start": ["DRAFT"],
    "abort": ["DRAFT", *UP[:-1], *PAUSES],
    "pause": UP[:-1],
    "resume": PAUSES,
    "promote": [*UP[:-1], *PAUSES],
}


def climb(ledger: Ledger, clock: Clock, to: str) -> tuple[Controller, Follower]:
    """Up to a state, on the evidence of an equal canary."""
    controller, router = Controller(ledger, "r", "one", clock), follower(ledger, clock)
    for _ in range(20):
        router.poll()
        if str(controller.tick()) == to:
            router.poll()
            return controller, router
        for event in alike(router.snapshot.weight):
            router.observe(event)
        clock.now += 11
    raise AssertionError(f"{to} was not reached: {controller.state}")


EARLY = next(f"k{n}" for n in range(100_000) if bucket(f"k{n}", "r") < BUCKETS / 100)


def chosen(router: Follower, clock: Clock) -> Route:
    """Who answers a key that any weight above 1 % gives to the canary."""
    return route(EARLY, 1, None, {}, router.snapshot, now=clock())
