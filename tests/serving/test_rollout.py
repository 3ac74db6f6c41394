"""The rollout: what may follow what, on which evidence, and that no crash, clock or second controller changes it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nextvec.errors import ServingError
from nextvec.rollout import ledger as ledger_module
from nextvec.rollout.judge import (
    ASSIGN,
    CANARY,
    FAIL,
    MISS,
    OK,
    STABLE,
    STREAMS,
    UNDECIDED,
    WEIGHTS,
    WORSE,
    Event,
    Rung,
    Verdict,
)
from nextvec.rollout.ledger import FAILPOINT, ConflictError, Ledger, LedgerError, SqliteLedger, open_ledger
from nextvec.rollout.plan import (
    LIVE,
    TERMINAL,
    Command,
    Controller,
    Follower,
    Observation,
    Phase,
    Plan,
    State,
    create,
    edges,
    fold,
    intervene,
    ready,
    step,
)
from nextvec.rollout.report import report
from nextvec.routing import BUCKETS, Route, bucket, route
from tests.conftest import examples
from tests.serving import postgres
from tests.serving.drive import NEW, OLD, alike
from tests.waiting import until

RUNGS = tuple(Rung(weight, 10.0, 1_000) for weight in WEIGHTS)
PLAN = Plan(50.0, 0.001, RUNGS, Rung(0.0, 10.0, 1_000), max_wait=500.0, silence=60.0, longest_pause=200.0)
QUICK = Plan(50.0, 0.001, tuple(replace(rung, dwell=0.0) for rung in RUNGS), Rung(0.0, 0.0, 1_000), lease=1.0)
PATIENT = replace(QUICK, lease=3.0)  # which a loaded machine renews in time, too
NAMES = ["DRAFT", "SHADOW", *(f"CANARY({rung})" for rung in range(4)), "FULL", "ROLLING_BACK"]
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
ENOUGH = Observation(ALL_OK, units=5_000, watched=20.0)


def state(name: str, plan: Plan = PLAN) -> State:
    return State(plan).at(name, 3)


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


# The machine itself


@pytest.mark.parametrize("name", [*NAMES, *PAUSES, "PROMOTED", "ROLLED_BACK", "REJECTED"])
def test_a_state_is_its_name(name: str) -> None:
    assert str(state(name)) == name
    assert (state(name).weight > 0) == any(live in name for live in ("CANARY", "FULL"))
    assert state(name).ended == (name in ("PROMOTED", "ROLLED_BACK", "REJECTED"))


@pytest.mark.parametrize(
    "name", ["", "CANARY", "CANARY(4)", "CANARY(-1)", "SHADOW(0)", "PAUSED", "PAUSED(DRAFT)", "PAUSED(PAUSED)", "FULL)"]
)
def test_no_other_name_is_a_state(name: str) -> None:
    with pytest.raises(ServingError, match="is not a state of"):
        state(name)


@pytest.mark.parametrize(("name", "after"), list(pairwise(UP)))
def test_evidence_carries_up_one_step(name: str, after: str) -> None:
    found, entry = step(state(name), ENOUGH)
    assert (str(found), found.epoch) == (after, 4)
    assert entry is not None
    assert (entry.before, entry.after, entry.actor, entry.ends) == (name, after, "controller", after == "PROMOTED")
    assert entry.evidence["verdict"] == dict.fromkeys(STREAMS, OK)
    assert entry.evidence["override"] is None


@pytest.mark.parametrize("name", UP[:-1])
@pytest.mark.parametrize(
    "seen", [replace(ENOUGH, watched=9.0), replace(ENOUGH, units=999), replace(ENOUGH, units=0, watched=499.0, silent=59.0)]
)
def test_too_short_or_too_few_is_no_step(name: str, seen: Observation) -> None:
    assert step(state(name), seen) == (state(name), None)


@pytest.mark.parametrize(
    ("name", "verdict", "is_enough"),
    [
        ("SHADOW", said(), False),
        ("SHADOW", said(miss=OK), True),
        ("SHADOW", said(fail=OK, slow=OK), False),
        ("CANARY(0)", said(), True),
        ("CANARY(3)", said(), False),
        ("CANARY(3)", Verdict({**ALL_OK.streams, "assign": UNDECIDED}), False),
        ("CANARY(3)", ALL_OK, True),
        ("FULL", said(), True),
        ("DRAFT", ALL_OK, False),
        ("ROLLING_BACK", ALL_OK, False),
    ],
)
def test_what_each_step_asks_of_the_judge(name: str, verdict: Verdict, is_enough: bool) -> None:
    assert ready(state(name), replace(ENOUGH, verdict=verdict)) is is_enough


@pytest.mark.parametrize("name", [*UP[:-1], *PAUSES])
@pytest.mark.parametrize("stream", STREAMS)
def test_anything_worse_ends_it_at_once(name: str, stream: str) -> None:
    for command in (None, Command("promote", "ann"), Command("resume", "ann")):
        bad = replace(ENOUGH, verdict=Verdict({**ALL_OK.streams, stream: WORSE}), command=command)
        found, entry = step(state(name), bad)
        assert str(found) == ("REJECTED" if name == "SHADOW" else "ROLLING_BACK")
        assert found.weight == 0
        assert entry is not None
        assert entry.cause == f"worse: {stream}"


@pytest.mark.parametrize("name", [*UP[:-1], *PAUSES])
def test_an_alarm_and_a_person_end_it_too(name: str) -> None:
    found, entry = step(state(name), replace(ENOUGH, alarm="NaN from the canary"))
    assert found.weight == 0
    assert entry is not None
    assert entry.cause == "alarm: NaN from the canary"
    found, entry = step(state(name), Observation(said(), 0, command=Command("abort", "ann", "no")))
    assert str(found) == "ROLLING_BACK"
    assert entry is not None
    assert (entry.cause, entry.actor) == ("abort: no", "ann")


@pytest.mark.parametrize("name", UP[:-1])
@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (replace(ENOUGH, silent=60.0), "no evidence: not a unit for 60 s"),
        (replace(ENOUGH, units=999, watched=500.0), "no verdict in 500 s"),
        (replace(ENOUGH, trouble="no turn for 40 s: disk full"), "ledger: no turn for 40 s: disk full"),
    ],
)
def test_what_teaches_nothing_pauses_with_the_weight_held(name: str, seen: Observation, cause: str) -> None:
    found, entry = step(state(name), seen)
    assert str(found) == f"PAUSED({name})"
    assert found.weight == state(name).weight
    assert entry is not None
    assert entry.cause == cause
    assert step(found, replace(seen, watched=199.0)) == (found, None)
    assert str(step(found, replace(seen, watched=200.0))[0]) == "ROLLING_BACK"


@pytest.mark.parametrize("name", UP[:-1])
def test_a_gate_waits_for_a_person(name: str) -> None:
    gated = replace(PLAN, gated=True)
    found, entry = step(state(name, gated), ENOUGH)
    assert str(found) == f"PAUSED({name})"
    assert entry is not None
    assert entry.evidence["verdict"] == dict.fromkeys(STREAMS, OK)
    for units, override in ((5_000, None), (999, "ann")):  # a person who approves overrides nothing
        after, entry = step(found, replace(ENOUGH, units=units, command=Command("promote", "ann")))
        assert str(after) == UP[UP.index(name) + 1]
        assert entry is not None
        assert (entry.actor, entry.evidence["override"]) == ("ann", override)


def test_rolling_back_ends_when_routers_know_or_their_leases_have_run_out() -> None:
    back = state("ROLLING_BACK")
    assert step(back, Observation(said(), 0, watched=29.0)) == (back, None)
    for seen in (Observation(said(), 0, acked=True), Observation(said(), 0, watched=30.0)):
        assert str(step(back, seen)[0]) == "ROLLED_BACK"


ALLOWED = {
    "start": ["DRAFT"],
    "abort": ["DRAFT", *UP[:-1], *PAUSES],
    "pause": UP[:-1],
    "resume": PAUSES,
    "promote": [*UP[:-1], *PAUSES],
}


@pytest.mark.parametrize("verb", ALLOWED)
@pytest.mark.parametrize("name", [*NAMES, *PAUSES, "PROMOTED", "ROLLED_BACK", "REJECTED"])
def test_what_a_person_may_do(verb: Any, name: str) -> None:
    seen = Observation(said(), 0, command=Command(verb, "ann"))
    if name in ALLOWED[verb]:
        found, entry = step(state(name), seen)
        assert str(found) in edges(state(name))
        assert entry is not None
        assert entry.actor == "ann"
    else:
        with pytest.raises(ConflictError, match=f"cannot {verb}; nothing was changed"):
            step(state(name), seen)


def test_checks_that_fail_reject_the_draft() -> None:
    failed = Command("start", "ann", failures=("digest differs", "dim 384, want 768"))
    found, entry = step(state("DRAFT"), Observation(said(), 0, command=failed))
    assert str(found) == "REJECTED"
    assert entry is not None
    assert entry.cause == "start: digest differs; dim 384, want 768"


def test_a_command_has_a_name_on_it() -> None:
    for nobody in ("", "controller"):
        with pytest.raises(ServingError, match="a person must be named"):
            Command("abort", nobody)


verdicts = st.fixed_dictionaries({stream: st.sampled_from([WORSE, OK, UNDECIDED]) for stream in STREAMS}).map(Verdict)
observations = st.builds(
    Observation,
    verdict=verdicts,
    units=st.integers(0, 3_000),
    watched=st.sampled_from([0.0, 5.0, 10.0, 30.0, 200.0, 500.0]),
    silent=st.sampled_from([0.0, 5.0, 60.0]),
    alarm=st.none() | st.just("NaN"),
    trouble=st.none() | st.just("disk full"),
    acked=st.booleans(),
)


@settings(max_examples=examples(400))
@given(name=st.sampled_from([*NAMES, *PAUSES, "PROMOTED", "ROLLED_BACK", "REJECTED"]), seen=observations)
def test_every_step_is_an_edge_and_rises_on_evidence_only(name: str, seen: Observation) -> None:
    before = state(name)
    after, entry = step(before, seen)
    assert (entry is None) == (after == before)
    if entry is None:
        return
    assert entry.after in edges(before)
    assert before.phase not in TERMINAL
    assert after.weight <= before.weight or (ready(before, seen) and not seen.verdict.worse)
    assert not seen.verdict.worse or after.weight == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((5.0,), "at least two"),
        ((5.0, 5.0), "rising"),
        ((50.0, 25.0), "rising"),
        ((5.0, 100.0), "below 100"),
        ((0.0, 5.0), "above 0"),
    ],
)
def test_a_plan_rises_and_leaves_something_to_compare_with(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        replace(PLAN, rungs=tuple(Rung(weight, 0.0, 1) for weight in weights))


def test_a_plan_is_read_back_from_its_first_row(tmp_path: Path) -> None:
    plan = Plan.catching(50.0, 0.001)
    ledger = drafted(tmp_path / "l.db", plan, start=False)
    assert fold(ledger.rows("r")).plan == plan
    assert [rung.weight for rung in plan.rungs] == [5.0, 10.0, 25.0, 50.0, 98.0]
    ledger.close()


def test_rows_that_no_rollout_writes_are_refused(tmp_path: Path) -> None:
    ledger = drafted(tmp_path / "l.db")
    rows = ledger.rows("r")
    with pytest.raises(ServingError, match="row 2 leads from DRAFT to FULL; no rollout goes there from DRAFT"):
        fold([rows[0], replace(rows[1], after="FULL")])
    with pytest.raises(ServingError, match="begins as a draft"):
        fold(rows[1:])
    ledger.close()


# On a ledger, in one process


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path) -> Generator[Ledger]:
    opened = drafted(tmp_path / "l.db")
    yield opened
    opened.close()


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


def test_a_good_canary_climbs_to_the_top(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "PROMOTED")
    assert steps(ledger) == ["DRAFT", *UP]
    assert fold(ledger.rows("r")) == controller.state
    assert ledger.active("main") is None
    found = chosen(router, clock)
    assert (found.model.name, router.snapshot.canary) == ("new", None)
    ledger.verify()


@pytest.mark.parametrize("at", ["CANARY(0)", "CANARY(2)", "FULL"])
def test_a_bad_canary_is_at_weight_0_in_the_transaction_that_sees_it(ledger: Ledger, clock: Clock, at: str) -> None:
    controller, router = climb(ledger, clock, at)
    for event in alike(router.snapshot.weight, worse=3.0):
        router.observe(event)
    router.poll()
    assert str(controller.tick()) == "ROLLING_BACK"
    last = ledger.rows("r")[-1]
    assert WORSE in last.evidence["verdict"].values()
    assert last.evidence["weight"][1] == 0
    assert router.poll().canary is None
    assert str(controller.tick()) == "ROLLING_BACK"  # the router has not said yet that it knows
    router.poll()
    assert str(controller.tick()) == "ROLLED_BACK"
    assert ledger.rows("r")[-1].cause == "every router has acknowledged"


def test_pairs_that_lose_reject_the_canary_in_the_shadow(ledger: Ledger, clock: Clock) -> None:
    _, router = climb(ledger, clock, "SHADOW")
    for event in alike(0.0, worse=1.5):
        router.observe(event)
    router.poll()
    assert str(Controller(ledger, "r", "two", clock).state) == "SHADOW"
    clock.now += 16
    controller, _ = climb(ledger, clock, "REJECTED")
    assert ledger.rows("r")[-1].cause == "worse: miss"
    assert controller.state.ended


def test_an_alarm_needs_no_statistics(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(1)")
    router.alarm("NaN from the canary")
    router.poll()
    assert str(controller.tick()) == "ROLLING_BACK"
    assert ledger.rows("r")[-1].cause == "alarm: NaN from the canary"


def test_no_traffic_pauses_and_a_person_resumes(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(1)")
    for _ in range(4):
        clock.now += 20
        controller.tick()
    assert str(controller.state) == "PAUSED(CANARY(1))"
    assert router.poll().weight == 10.0
    assert str(intervene(ledger, "r", Command("resume", "ann")).state) == "CANARY(1)"
    assert str(controller.tick()) == "CANARY(1)"


def test_a_long_pause_rolls_back(ledger: Ledger, clock: Clock) -> None:
    controller, _ = climb(ledger, clock, "CANARY(1)")
    intervene(ledger, "r", Command("pause", "ann"))
    for _ in range(8):
        clock.now += 25
        controller.tick()
    assert ledger.rows("r")[-1].cause == "paused for 200 s"


def test_all_requests_of_one_session_are_one_unit(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(0)")
    router.observe(Event(ASSIGN, STABLE, 5.0))
    for _ in range(4):
        clock.now += 19
        router.poll()
        assert str(controller.tick()) == "CANARY(0)"
    clock.now += 19
    assert str(controller.tick()) == "PAUSED(CANARY(0))"


def test_time_that_nobody_watched_does_not_count(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(0)")
    for event in alike(5.0):
        router.observe(event)
    router.poll()
    controller.release()
    clock.now += 10_000
    fresh = Controller(ledger, "r", "two", clock)
    assert str(fresh.tick()) == "CANARY(0)"
    assert ledger.record("r").watched == 0
    clock.now += 10
    assert str(fresh.tick()) == "CANARY(1)"


def test_a_controller_that_was_stopped_has_not_watched(ledger: Ledger, clock: Clock) -> None:
    controller, _ = climb(ledger, clock, "CANARY(0)")
    clock.now += 10_000
    assert str(controller.tick()) == "CANARY(0)"
    assert ledger.record("r").watched == PLAN.lease


def test_routers_give_the_canary_up_when_nobody_watches(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(0)")
    beaten_at = clock()
    controller.tick()
    router.poll()
    assert chosen(router, clock).arm == "canary"
    while clock() < beaten_at + 30:
        clock.now += 1
        router.poll()
    assert chosen(router, clock).reason == "lease expired, short"
    assert ledger.record("r").state == "CANARY(0)"
    controller.tick()
    router.poll()
    assert chosen(router, clock).arm == "canary"


@settings(max_examples=examples(50))
@given(doings=st.lists(st.sampled_from(["tick", "poll"]) | st.floats(0.1, 20), min_size=3, max_size=30))
def test_no_router_outlives_a_lease_after_the_last_beat(doings: list[str | float]) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        clock, ledger = Clock(), drafted(Path(folder) / "l.db")
        controller, router = Controller(ledger, "r", "one", clock), follower(ledger, clock)
        beaten_at = -1e9
        for doing in ["poll", "tick", *doings, "poll"]:
            if doing == "tick":
                controller.tick()
                beaten_at = clock()
            elif doing == "poll":
                router.poll()
                assert router.snapshot.deadline <= beaten_at + PLAN.lease or not router.snapshot.deadline
            else:
                clock.now += float(doing)
        ledger.close()


def test_a_fresh_router_gives_the_canary_nothing_until_it_has_seen_a_beat(ledger: Ledger, clock: Clock) -> None:
    controller, _ = climb(ledger, clock, "CANARY(0)")
    fresh = follower(ledger, clock, "fresh")
    assert chosen(fresh, clock).reason == "no canary, short"
    fresh.poll()
    assert chosen(fresh, clock).reason == "lease expired, short"
    clock.now += 1
    controller.tick()
    fresh.poll()
    assert chosen(fresh, clock).arm == "canary"


def test_the_second_controller_waits_and_takes_over_within_a_lease(ledger: Ledger, clock: Clock) -> None:
    first, router = climb(ledger, clock, "CANARY(0)")
    second = Controller(ledger, "r", "two", clock)
    for _ in range(30):
        clock.now += 2
        first.tick()
        assert second.tick() == first.state
        assert second.token is None
    router.poll()
    died_at = clock()  # it does not tick again until the end
    while second.token is None:
        clock.now += 1
        second.tick()
        router.poll()
    assert clock() <= died_at + PLAN.lease
    assert chosen(router, clock).arm == "canary"  # nobody lost the canary meanwhile
    assert first.token is not None
    first.tick()
    assert first.token is None
    assert ledger.record("r").holder == "two"


def test_undelivered_observations_are_delivered_once(ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, router = climb(ledger, clock, "CANARY(0)")
    before = Controller(ledger, "r", "x", clock)._ledger.record("r").evidence["units"]
    router.observe(Event(ASSIGN, STABLE, 5.0, count=3))
    exchange = ledger.exchange

    def lost_answer(*arguments: Any) -> Any:
        exchange(*arguments)
        raise LedgerError("the answer was lost")

    monkeypatch.setattr(ledger, "exchange", lost_answer)
    for _ in range(2):
        with pytest.raises(LedgerError):
            router.poll()
        router.observe(Event(ASSIGN, CANARY, 5.0, count=1))
    monkeypatch.setattr(ledger, "exchange", exchange)
    router.poll()
    router.poll()
    controller.tick()
    assert ledger.record("r").evidence["units"] == before + 5


def fail(times: list[int]) -> Callable[..., Any]:
    def failing(*_: Any) -> Any:
        times.append(1)
        raise LedgerError("disk full")

    return failing


@pytest.mark.parametrize(("outage", "after"), [(29.0, "CANARY(1)"), (31.0, "PAUSED(CANARY(1))")])
def test_a_ledger_that_cannot_be_written_pauses_in_memory_and_the_lease_lapses(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch, outage: float, after: str
) -> None:
    controller, router = climb(ledger, clock, "CANARY(1)")
    times: list[int] = []
    with monkeypatch.context() as broken:
        broken.setattr(ledger, "turn", fail(times))
        assert str(controller.tick()) == "PAUSED(CANARY(1))"
        clock.now += outage
        assert str(controller.tick()) == "PAUSED(CANARY(1))"
        assert controller.trouble == "disk full"
        router.poll()
    assert len(times) == 2
    assert ledger.record("r").state == "CANARY(1)"
    assert (chosen(router, clock).arm_reason == "lease expired") == (outage > 30)
    assert str(controller.tick()) == after
    assert controller.trouble is None


def test_a_full_disk(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(1)")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{ledger.where}-wal").stat().st_size, hard))
    try:
        assert str(controller.tick()) == "PAUSED(CANARY(1))"
        assert controller.trouble is not None
        clock.now += 31
        with pytest.raises(LedgerError):
            router.poll()
        assert chosen(router, clock).reason == "lease expired, short"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(controller.tick()) == "PAUSED(CANARY(1))"
    assert ledger.rows("r")[-1].cause.startswith("ledger: no turn for 31 s: ")
    ledger.verify()


def test_a_ledger_that_may_only_be_read(ledger: Ledger, clock: Clock) -> None:
    climb(ledger, clock, "CANARY(1)")[0].release()
    sealed = SqliteLedger(ledger.where, read_only=True)
    controller = Controller(sealed, "r", "two", clock)
    assert str(controller.tick()) == "PAUSED(CANARY(1))"
    assert "readonly" in str(controller.trouble)
    assert ledger.record("r").state == "CANARY(1)"
    sealed.close()


def test_a_page_that_rots_under_a_running_controller(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "l.db"
    ledger = drafted(path)
    controller, router = climb(ledger, clock, "CANARY(1)")
    ledger._run("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger._run("PRAGMA cache_size = 0")
    ledger._run("PRAGMA shrink_memory")
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xff" * (len(raw) - 4096)
    path.write_bytes(raw)
    assert str(controller.tick()) == "PAUSED(CANARY(1))"
    assert controller.trouble is not None
    clock.now += 31
    assert chosen(router, clock).reason == "lease expired, short"
    ledger.close()
    with pytest.raises(LedgerError):
        open_ledger(path)


def test_a_wall_clock_that_jumps_changes_nothing(ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Jumping(datetime):
        jumps: ClassVar[Iterator[int]] = iter([1, -1] * 1_000)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(hours=next(cls.jumps))

    monkeypatch.setattr(ledger_module, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    climb(ledger, clock, "PROMOTED")
    times = [row.time for row in ledger.rows("r")[2:]]
    assert times != sorted(times)
    assert steps(ledger) == ["DRAFT", *UP]
    assert ledger.verify() == len(UP) + 1


def test_a_second_rollout_of_a_route_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ConflictError, match="route 'main' has rollout 'r' under way"):
        create(ledger, "s", "main", PLAN, stable="old", canary="newer", actor="ann")
    intervene(ledger, "r", Command("abort", "ann"))
    Controller(ledger, "r", "one").tick()
    create(ledger, "s", "main", PLAN, stable="old", canary="newer", actor="ann", parent="r")
    with pytest.raises(ServingError, match="a canary that is not the stable model"):
        create(ledger, "t", "other", PLAN, stable="old", canary="old", actor="ann")


def test_a_person_acts_without_a_controller_and_on_what_was_seen(ledger: Ledger, clock: Clock) -> None:
    controller, _ = climb(ledger, clock, "CANARY(0)")
    epoch = controller.state.epoch
    intervene(ledger, "r", Command("pause", "ann", "lunch"), epoch)
    with pytest.raises(ConflictError, match="not in epoch"):
        intervene(ledger, "r", Command("abort", "bob"), epoch)
    assert str(controller.tick()) == "PAUSED(CANARY(0))"
    last = ledger.rows("r")[-1]
    assert (last.actor, last.cause) == ("ann", "pause: lunch")


def test_a_promotion_by_hand_names_who_overrode(ledger: Ledger) -> None:
    assert intervene(ledger, "r", Command("promote", "ann", "known good")).state == "CANARY(0)"
    last = ledger.rows("r")[-1]
    assert (last.actor, last.evidence["override"], last.evidence["weight"]) == ("ann", "ann", [0.0, 5.0])


def test_the_report_says_what_could_not_have_been_seen(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(1)")
    for event in alike(router.snapshot.weight, worse=3.0):
        router.observe(event)
    router.poll()
    controller.tick()
    found = json.loads(json.dumps(report(ledger, "r")))
    assert (found["state"], found["stable"], found["canary"], found["ended"]) == ("ROLLING_BACK", "old", "new", False)
    assert [said["to"] for said in found["steps"]] == steps(ledger)
    assert found["steps"][-1]["cause"].startswith("worse: ")
    assert found["head"] == ledger.rows("r")[-1].hash
    harms = {(row["weight"], row["stream"]): row["harm"] for row in found["unseen"]}
    assert set(harms) == {(weight, stream) for weight in (5.0, 10.0) for stream in STREAMS if stream != ASSIGN}
    assert all(harms[10.0, stream] < harms[5.0, stream] for stream in (FAIL, MISS))
    assert 1 < harms[10.0, MISS] < 3 < harms[5.0, FAIL]


def test_the_controller_runs_until_it_is_stopped(ledger: Ledger) -> None:
    import threading

    stop = threading.Event()
    controller = Controller(ledger, "r", "one")
    thread = threading.Thread(target=controller.run, args=(stop, 0.001))
    thread.start()
    while ledger.record("r").beat < 5:
        pass
    stop.set()
    thread.join()
    assert ledger.record("r").holder == ""
    intervene(ledger, "r", Command("abort", "ann"))
    assert str(Controller(ledger, "r", "two").run(threading.Event())) == "ROLLED_BACK"


# Everything at random


class Killed(BaseException):
    """Stands for SIGKILL at a failpoint: nothing after it runs."""


class RolloutMachine(RuleBasedStateMachine):
    """Traffic, time, people, crashes and a second controller, in any order."""

    @initialize(at=st.sampled_from(["DRAFT", "SHADOW", "CANARY(0)", "CANARY(3)", "FULL"]))
    def begin(self, at: str) -> None:
        self.folder = TemporaryDirectory(dir=MEMORY)
        self.path = Path(self.folder.name) / "l.db"
        self.clock = Clock()
        self.ledger = drafted(self.path, start=at != "DRAFT")
        if at != "DRAFT":
            climb(self.ledger, self.clock, at)
        self.deadly: str | None = None
        self.real = ledger_module.failpoint
        ledger_module.failpoint = self.die  # type: ignore[assignment]
        self.start_processes()

    def start_processes(self) -> None:
        self.born = getattr(self, "born", 0) + 1
        self.controllers = [Controller(self.ledger, "r", name, self.clock) for name in ("one", "two")]
        self.router = follower(self.ledger, self.clock, f"router {self.born}")

    def die(self, point: str) -> None:
        if point == self.deadly:
            raise Killed

    @property
    def state(self) -> State:
        return fold(self.ledger.rows("r"))

    @rule(seconds=st.sampled_from([1.0, 5.0, 11.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(which=st.integers(0, 1), point=st.sampled_from([None, None, None, "before_begin", "before_commit", "after_commit"]))
    def tick(self, which: int, point: str | None) -> None:
        self.deadly = point
        try:
            self.controllers[which].tick()
        except Killed:
            self.start_processes()
        finally:
            self.deadly = None

    @rule(worse=st.sampled_from([1.0, 1.0, 1.0, 1.0, 3.0]), sessions=st.sampled_from([100, 40_000]))
    def traffic(self, worse: float, sessions: int) -> None:
        if self.router.snapshot.canary is not None:
            for event in alike(self.router.snapshot.weight, sessions, worse):
                self.router.observe(event)

    @rule()
    def poll(self) -> None:
        self.router.poll()

    @rule()
    def go_on(self) -> None:
        """What happens most of the time."""
        self.poll()
        self.traffic(1.0, 40_000)
        self.clock.now += 11
        self.poll()
        self.tick(0, None)
        self.tick(1, None)

    @rule()
    @precondition(lambda self: self.state.phase in LIVE)
    def alarm(self) -> None:
        if self.born % 5 == 0:
            self.router.alarm("NaN")

    @rule(verb=st.sampled_from(["pause", "resume"]))
    def hold(self, verb: Any) -> None:
        before = self.state
        try:
            intervene(self.ledger, "r", Command(verb, "ann"))
        except ConflictError:
            assert str(before) not in ALLOWED[verb]
            assert self.state == before
        else:
            assert str(before) in ALLOWED[verb]

    @rule(verb=st.sampled_from(["start", "promote", "abort"]))
    def steer(self, verb: Any) -> None:
        self.hold(verb)

    @rule()
    def reopen(self) -> None:
        before = self.state
        self.ledger.close()
        self.ledger = open_ledger(self.path)
        assert self.state == before
        self.start_processes()

    @invariant()
    def every_promise_holds(self) -> None:
        self.ledger.verify()
        rows, record = self.ledger.rows("r"), self.ledger.record("r")
        state = fold(rows)
        # The state is what the rows add up to, and only some have a weight.
        assert (str(state), state.epoch, state.ended) == (record.state, record.epoch, not record.active)
        assert (state.weight > 0) == (state.going in (Phase.CANARY, Phase.FULL))
        # The weight rises on evidence, or by name.
        for row in rows[1:]:
            before, after = row.evidence["weight"]
            by_name = row.evidence["override"] == row.actor == "ann"
            enough = row.evidence["watched"] >= 10 and row.evidence["units"] >= 1_000
            assert after <= before or ((by_name or enough) and WORSE not in row.evidence["verdict"].values())
        # What is worse has no weight.
        assert state.weight == 0 or WORSE not in record.evidence["verdict"].values()
        # The way back is open, and the end is the end.
        if state.phase in LIVE:
            assert step(state, Observation(said(), 0, command=Command("abort", "ann")))[0].weight == 0
        assert not {row.after for row in rows[:-1]} & {str(phase) for phase in TERMINAL}

    def teardown(self) -> None:
        ledger_module.failpoint = self.real
        self.ledger.close()
        self.folder.cleanup()


TestRolloutMachine = RolloutMachine.TestCase
TestRolloutMachine.settings = settings(max_examples=examples(30), stateful_step_count=20)


# Real processes


@pytest.fixture(scope="module")
def socket() -> Generator[str]:
    with postgres.server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return postgres.database(request.getfixturevalue("socket"))


def process(where: str, name: str, failpoint: str = "") -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", FAILPOINT: failpoint}
    command = [sys.executable, "-m", "tests.serving.drive", where, "r", name]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def settled(ledger: Ledger) -> None:
    """All that must hold whatever was killed."""
    rows = ledger.rows("r")
    record = ledger.record("r")
    assert ledger.verify() == len(rows)
    assert (str(fold(rows)), fold(rows).epoch) == (record.state, record.epoch)
    assert [row.after for row in rows] == ["DRAFT", *UP][: len(rows)]  # each step once


@pytest.mark.integration
@pytest.mark.parametrize(
    "failpoint",
    [
        "before_begin:kill:3",
        "before_commit:kill:1",
        "before_commit:kill:5",
        "after_commit:kill:1",
        "after_commit:kill:5",
        "before_ack:kill:4",
    ],
)
def test_a_controller_killed_at_a_failpoint_is_replaced(tmp_path: Path, failpoint: str) -> None:
    ledger = drafted(tmp_path / "l.db", QUICK)
    victim = process(ledger.where, "one", failpoint)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert ledger.record("r").active
    settled(ledger)
    heir = process(ledger.where, "two")
    said = heir.communicate()[0].split("\n")
    assert heir.returncode == 0
    assert said[0].startswith("holds ")
    assert steps(ledger) == ["DRAFT", *UP]
    settled(ledger)
    ledger.close()


@pytest.mark.integration
def test_two_controllers_and_one_is_killed(where: str) -> None:
    ledger = drafted(where, replace(PATIENT, rungs=tuple(replace(rung, dwell=0.3) for rung in RUNGS)))
    first = process(where, "one", "after_commit:kill:4")
    assert first.stdout is not None
    assert first.stdout.readline() == "holds 1\n"
    second = process(where, "two")
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert second.communicate()[0] == "holds 2\nPROMOTED\n"
    assert steps(ledger) == ["DRAFT", *UP]
    settled(ledger)
    ledger.close()


@pytest.mark.integration
def test_a_controller_that_was_stopped_finds_its_token_stale(where: str) -> None:
    slow = replace(PATIENT, rungs=(replace(QUICK.rungs[0], dwell=1e6), *QUICK.rungs[1:]), max_wait=1e7)
    ledger = drafted(where, slow)
    stopped = process(where, "one", "before_begin:stop:40")
    router = Follower(ledger, "r", "observer", OLD, NEW)

    def arm() -> str:
        router.poll()
        return route(EARLY, 1, None, {}, router.snapshot, now=time.monotonic()).arm

    until(lambda: arm() == "canary")
    assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
    until(lambda: arm() == "stable")  # the lease has run out
    assert ledger.record("r").state == "CANARY(0)"
    heir = process(where, "two")
    until(lambda: arm() == "canary")  # watched again
    assert ledger.record("r").holder == "two"
    stopped.send_signal(signal.SIGCONT)
    assert stopped.stdout is not None
    assert [stopped.stdout.readline() for _ in range(2)] == ["holds 1\n", "idle\n"]
    intervene(ledger, "r", Command("abort", "ann"))
    for one in (stopped, heir):
        assert one.communicate()[0].endswith("ROLLED_BACK\n")
    assert steps(ledger) == ["DRAFT", "SHADOW", "CANARY(0)", "ROLLING_BACK", "ROLLED_BACK"]
    ledger.verify()
    ledger.close()
