"""What a rollout says of itself: counts, what is missing, why it ended, and how soon the command answers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextvec.rollout.controller import Controller
from nextvec.rollout.evidence import Evidence, UnitOutcome
from nextvec.rollout.follower import Follower
from nextvec.rollout.guardrails import ASSIGN, CANARY, MISS, NEITHER, STABLE
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import create, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.status import caution, status
from nextvec.rollout.transition import Command
from nextvec.rollout.units import bands
from nextvec.routing import ArmModels, RoutedModel
from nextvec.serving.observations import Closed, Observation, Pair
from nextvec.serving.participation import Participation
from nextvec.serving.rollout_state import rollout_state
from tests.waiting import PATIENCE

OLD, NEW = (ArmModels(RoutedModel(name), RoutedModel(name)) for name in ("old", "new"))
PLAN = Plan(3.0, 0.01, (CanaryStep(5.0, 60.0, 40), CanaryStep(98.0, 0.0, 40)), CanaryStep(0.0, 60.0, 50))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(tmp_path / "rollouts.db")
    create(opened, "r", "default", PLAN, stable="old@1", canary="new@2", actor="ann", evidence=Evidence(bands()))
    intervene(opened, "r", Command("start", "ann"))
    yield opened
    opened.close()


def driven(ledger: Ledger, clock: Clock) -> tuple[Follower, Controller, Participation]:
    follower = Follower(ledger, "r", "router", OLD, NEW, clock=clock)
    return follower, Controller(ledger, "r", "holder", clock), Participation("r", follower, frozenset(bands()), clock)


def turn(follower: Follower, controller: Controller) -> None:
    follower.poll()
    controller.tick()


def test_a_status_counts_what_the_next_step_waits_for(ledger: Ledger, clock: Clock) -> None:
    follower, controller, _ = driven(ledger, clock)
    turn(follower, controller)
    clock.now = 5.0
    follower.observe(UnitOutcome(MISS, NEITHER, None, count=32, stratum=bands()[0]))
    turn(follower, controller)
    found = status(ledger, "r")
    step = found["next"]
    assert (step["kind"], step["units"], step["units_needed"], step["pairs"]["miss"]) == ("pairs", 32, 50, 32)
    assert step["missing"] == [
        "18 more mirrored sessions (32 of 50)", "55 more seconds under watch (5 of 60)", "the verdict OK of miss",
    ]  # fmt: skip
    intervene(ledger, "r", Command("promote", "ann"))
    for arm, count in ((STABLE, 19), (CANARY, 1)):
        follower.observe(UnitOutcome(ASSIGN, arm, 5.0, count=count, stratum=bands()[0]))
    turn(follower, controller)
    step = status(ledger, "r")["next"]
    assert step["sessions"] == {"stable": 19, "canary": 1}
    assert step["missing"][0] == "20 more sessions at 5 % (20 of 40)"
    assert rollout_state(status(ledger, "r")).next == step


def test_a_promoted_rollout_gives_all_to_the_canary_and_waits_for_nothing(ledger: Ledger) -> None:
    for _ in range(3):
        intervene(ledger, "r", Command("promote", "ann"))
    found = status(ledger, "r")
    assert (found["state"], found["weight"], found["next"]["missing"]) == ("PROMOTED", 100.0, [])
    assert found["steps"][-1]["weight"] == [98.0, 100.0]
    assert rollout_state(found).weight == 100.0


def test_a_promotion_by_hand_without_traffic_is_warned_of(ledger: Ledger, clock: Clock) -> None:
    follower, controller, _ = driven(ledger, clock)
    warned = caution(intervene(ledger, "r", Command("promote", "ann")))
    assert warned is not None
    assert "without traffic" in warned
    follower.observe(UnitOutcome(ASSIGN, STABLE, 5.0, count=7, stratum=bands()[0]))
    turn(follower, controller)
    assert caution(intervene(ledger, "r", Command("pause", "ann"))) is None
    warned = caution(intervene(ledger, "r", Command("promote", "ann")))
    assert warned == "promoted before the evidence sufficed: 7 sessions counted in PAUSED(CANARY(0))"


def test_a_rollback_says_why_in_plain_words(ledger: Ledger, clock: Clock) -> None:
    follower, controller, part = driven(ledger, clock)
    intervene(ledger, "r", Command("promote", "ann"))
    for n in range(20):
        why = "the process did not answer for 10 s" if n % 4 else "no answer within 200 ms"
        part.observe(Observation("fail", "canary", f"s{n}", 5.0, 1.0, 3, cause=why))
    turn(follower, controller)
    turn(follower, controller)
    turn(follower, controller)
    found = status(ledger, "r")
    assert found["state"] == "ROLLED_BACK"
    assert found["cause"] == (
        "worse: fail (the process did not answer for 10 s (15 times), no answer within 200 ms (5 times))"
    )  # fmt: skip


def test_an_alarm_says_what_stable_had_to_answer_for(ledger: Ledger, clock: Clock) -> None:
    follower, _, part = driven(ledger, clock)
    alarms: list[str] = []
    follower.alarm = alarms.append  # type: ignore[method-assign]
    for n in range(20):
        bad = n % 5 > 0
        part.observe(Observation("fail", "canary", f"s{n}", 5.0, float(bad), 3, cause="it raised Fault" if bad else ""))
    assert alarms[0] == "stable had to answer 16 of the canary's last 20 requests: it raised Fault (16 times)"
    clock.now = 61.0  # what is older than a minute no longer counts
    alarms.clear()
    part.observe(Observation("fail", "canary", "t", 5.0, 1.0, 3, cause="it raised Fault"))
    assert alarms == []


def test_sessions_count_although_they_never_end(ledger: Ledger, clock: Clock) -> None:
    follower, _, part = driven(ledger, clock)
    counted: list[UnitOutcome] = []
    follower.observe = counted.append  # type: ignore[method-assign]
    for n in range(3):
        clock.now = float(n)
        part.observe(Observation("fail", "canary", f"s{n}", 5.0, 0.0, 3))
        part.observe(Pair("miss", f"p{n}", False, n == 0, 3))
    clock.now = 61.5
    part.settle(60.0)
    assert [(e.stream, e.bad, e.shift) for e in counted] == [
        ("fail", False, 0.0), ("miss", True, 1.0), ("fail", False, 0.0), ("miss", True, 0.0),
    ]  # fmt: skip
    counted.clear()
    part.observe(Observation("fail", "canary", "s0", 5.0, 1.0, 3))  # its time at risk is over
    part.observe(Pair("miss", "p0", False, True, 3))
    for name in ("s0", "p0"):
        part.observe(Closed(name))
    assert counted == []
    part.observe(Observation("fail", "canary", "s2", 5.0, 1.0, 3))  # that of this one is not
    assert [(e.stream, e.bad) for e in counted] == [("fail", True)]
    counted.clear()
    for n in range(20):
        part.observe(Pair("miss", "q", False, n < 4, 3))
    assert [(e.stream, e.shift) for e in counted] == [("miss", 4 / 16)]  # with the 16th, at once
    part.observe(Closed("q"))
    assert len(counted) == 1


def test_a_status_imports_no_torch(ledger: Ledger) -> None:
    program = (
        "import sys; from nextvec.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'uvicorn', 'tokenizers'} & set(sys.modules), 'a module that takes a second'; sys.exit(code)"
    )
    words = ["rollout", "status", "--ledger", ledger.where, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["next"]["units_needed"] == 50
    shown = subprocess.run(
        [sys.executable, "-c", program, *words[:-1]], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "50 more mirrored sessions" in shown.stdout
