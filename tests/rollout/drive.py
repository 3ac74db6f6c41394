"""A controller and a router in a process of their own: ``python -m tests.rollout.drive LEDGER ROLLOUT NAME [POINT]``.

Every pass observes what an equal canary would show, polls, and ticks. The process prints when it holds the rollout and when it
no longer does, and ends with the rollout.
"""

import sys
import time

from nextvec.rollout.controller import Controller
from nextvec.rollout.evidence import UnitOutcome
from nextvec.rollout.follower import Follower
from nextvec.rollout.guardrails import ASSIGN, CANARY, FAIL, MISS, NEITHER, SLOW, STABLE, UNLABELLED
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.opening import open_ledger
from nextvec.routing import ArmModels, RoutedModel
from tests.rollout.interrupted import Interrupted, strike

SESSIONS = 40_000
BAD = {FAIL: 0.0005, SLOW: 0.05, MISS: 0.4, UNLABELLED: 0.05}
OLD, NEW = (ArmModels(RoutedModel(name), RoutedModel(name)) for name in ("old", "new"))


def alike(weight: float, sessions: int = SESSIONS, worse: float = 1.0) -> list[UnitOutcome]:
    """What two arms show at a weight in percent, the canary being ``worse`` times as often bad; pairs at weight 0."""
    if not weight:
        lost = round(sessions * 0.05 * (worse - 1))
        both = UnitOutcome(MISS, NEITHER, None, count=sessions)
        return [both, *([UnitOutcome(MISS, NEITHER, None, shift=1.0, count=lost)] if lost else [])]
    outcomes: list[UnitOutcome] = []
    for arm, share, times in ((STABLE, 1 - weight / 100, 1.0), (CANARY, weight / 100, worse)):
        units = round(sessions * share)
        outcomes.append(UnitOutcome(ASSIGN, arm, weight, count=units))
        for stream, rate in BAD.items():
            bad = min(units, round(units * rate * times))
            outcomes += [UnitOutcome(stream, arm, weight, was, count=n) for was, n in ((True, bad), (False, units - bad)) if n]
    return outcomes


def opened(where: str, role: str, point: str) -> Ledger:
    """The ledger; interrupted at a point such as ``controller:after_commit:kill:3``, if ``role`` is to meet it."""
    ledger = open_ledger(where)
    who, *rest = point.split(":")
    if who == role:
        name, action, passing = rest
        ledger.database = Interrupted(ledger.database, name, strike(action), int(passing))
    return ledger


def main(where: str, rollout: str, name: str, point: str = "", interval: float = 0.02) -> None:
    controller = Controller(opened(where, "controller", point), rollout, name)
    router = Follower(opened(where, "router", point), rollout, f"router of {name}", OLD, NEW)
    held, state = None, controller.state
    while not state.ended:
        if router.snapshot.canary is not None:
            for outcome in alike(router.snapshot.weight, 4_000):
                router.observe(outcome)
        router.poll()
        state = controller.tick()
        if controller.token != held:
            held = controller.token
            print("idle" if held is None else f"holds {held}", flush=True)
        time.sleep(interval)
    controller.release()
    print(state, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
