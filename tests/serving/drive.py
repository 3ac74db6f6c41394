"""A controller and a router in a process of their own: ``python -m tests.serving.drive LEDGER ROLLOUT NAME``.

Every pass observes what an equal canary would show, polls, and ticks; says when it holds the rollout and when it no longer
does; ends with the rollout.
"""

import sys
import time

from nextvec.rollout.judge import ASSIGN, CANARY, FAIL, MISS, NEITHER, SLOW, STABLE, UNLABELLED, Event
from nextvec.rollout.ledger import open_ledger
from nextvec.rollout.plan import Controller, Follower
from nextvec.routing import Lineup, Served

SESSIONS = 40_000
BAD = {FAIL: 0.0005, SLOW: 0.05, MISS: 0.4, UNLABELLED: 0.05}
OLD, NEW = (Lineup(Served(name), Served(name)) for name in ("old", "new"))


def alike(weight: float, sessions: int = SESSIONS, worse: float = 1.0) -> list[Event]:
    """What two arms show at a weight in percent, the canary being ``worse`` times as often bad; pairs at weight 0."""
    if not weight:
        lost = round(sessions * 0.05 * (worse - 1))
        both = Event(MISS, NEITHER, None, count=sessions)
        return [both, *([Event(MISS, NEITHER, None, shift=1.0, count=lost)] if lost else [])]
    events: list[Event] = []
    for arm, share, times in ((STABLE, 1 - weight / 100, 1.0), (CANARY, weight / 100, worse)):
        units = round(sessions * share)
        events.append(Event(ASSIGN, arm, weight, count=units))
        for stream, rate in BAD.items():
            bad = min(units, round(units * rate * times))
            events += [Event(stream, arm, weight, was, count=n) for was, n in ((True, bad), (False, units - bad)) if n]
    return events


def main(where: str, rollout: str, name: str, interval: float = 0.02) -> None:
    controller = Controller(open_ledger(where), rollout, name)
    router = Follower(open_ledger(where), rollout, f"router of {name}", OLD, NEW)
    held, state = None, controller.state
    while not state.ended:
        if router.snapshot.canary is not None:
            for event in alike(router.snapshot.weight, 4_000):
                router.observe(event)
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
