"""A controller and a router on a ledger, in one process: no clock, outage or second controller changes the rules."""

import json
import resource
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvec.errors import ServingError
from nextvec.rollout import chain
from nextvec.rollout.controller import Controller
from nextvec.rollout.evidence import UnitOutcome
from nextvec.rollout.guardrails import ASSIGN, CANARY, FAIL, MISS, STABLE, STREAMS, WORSE
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import create, fold, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.records import ConflictError, LedgerError
from nextvec.rollout.sqlite import SqliteDatabase
from nextvec.rollout.status import status
from nextvec.rollout.transition import Command
from tests.conftest import examples
from tests.rollout.drive import alike
from tests.rollout.rollouts import (
    MEMORY,
    PLAN,
    UP,
    Clock,
    chosen,
    climb,
    drafted,
    follower,
    steps,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path) -> Generator[Ledger]:
    opened = drafted(tmp_path / "l.db")
    yield opened
    opened.close()


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
    router.observe(UnitOutcome(ASSIGN, STABLE, 5.0))
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
    router.observe(UnitOutcome(ASSIGN, STABLE, 5.0, count=3))
    exchange = ledger.exchange

    def lost_answer(*arguments: Any) -> Any:
        exchange(*arguments)
        raise LedgerError("the answer was lost")

    monkeypatch.setattr(ledger, "exchange", lost_answer)
    for _ in range(2):
        with pytest.raises(LedgerError):
            router.poll()
        router.observe(UnitOutcome(ASSIGN, CANARY, 5.0, count=1))
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
        broken.setattr(ledger, "tick", fail(times))
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
    assert ledger.rows("r")[-1].cause.startswith("ledger: no tick for 31 s: ")
    ledger.verify()


def test_a_ledger_that_may_only_be_read(ledger: Ledger, clock: Clock) -> None:
    climb(ledger, clock, "CANARY(1)")[0].release()
    sealed = Ledger(SqliteDatabase(ledger.where, read_only=True))
    controller = Controller(sealed, "r", "two", clock)
    assert str(controller.tick()) == "PAUSED(CANARY(1))"
    assert "readonly" in str(controller.trouble)
    assert ledger.record("r").state == "CANARY(1)"
    sealed.close()


def test_a_page_that_rots_under_a_running_controller(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "l.db"
    ledger = drafted(path)
    controller, router = climb(ledger, clock, "CANARY(1)")
    ledger.database.run("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.database.run("PRAGMA cache_size = 0")
    ledger.database.run("PRAGMA shrink_memory")
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

    monkeypatch.setattr(chain, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    climb(ledger, clock, "PROMOTED")
    times = [row.time for row in ledger.rows("r")[2:]]
    assert times != sorted(times)
    assert steps(ledger) == ["DRAFT", *UP]
    assert ledger.verify() == len(UP) + 1


def test_a_second_rollout_of_a_route_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ConflictError, match="route 'main' has the active rollout 'r'"):
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


def test_the_status_lists_the_smallest_detectable_effects(ledger: Ledger, clock: Clock) -> None:
    controller, router = climb(ledger, clock, "CANARY(1)")
    for event in alike(router.snapshot.weight, worse=3.0):
        router.observe(event)
    router.poll()
    controller.tick()
    found = json.loads(json.dumps(status(ledger, "r")))
    assert (found["state"], found["stable"], found["canary"], found["ended"]) == ("ROLLING_BACK", "old", "new", False)
    assert [said["to"] for said in found["steps"]] == steps(ledger)
    assert found["steps"][-1]["cause"].startswith("worse: ")
    assert found["head"] == ledger.rows("r")[-1].hash
    harms = {(row["weight"], row["stream"]): row["harm"] for row in found["detectable"]}
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
