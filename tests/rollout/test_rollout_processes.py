"""Controllers in real processes, killed and stopped at any point of a transaction."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from nextvec.rollout.follower import Follower
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import fold, intervene
from nextvec.rollout.transition import Command
from nextvec.routing import route
from tests.rollout import postgres
from tests.rollout.drive import NEW, OLD
from tests.rollout.rollouts import (
    EARLY,
    PATIENT,
    QUICK,
    STEPS,
    UP,
    drafted,
    steps,
)
from tests.waiting import until


@pytest.fixture(scope="module")
def socket() -> Generator[str]:
    with postgres.server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return postgres.database(request.getfixturevalue("socket"))


def process(where: str, name: str, point: str = "") -> "subprocess.Popen[str]":
    """A controller and a router in a process; ``point`` as of :mod:`tests.rollout.interrupted`, with who meets it."""
    command = [sys.executable, "-m", "tests.rollout.drive", where, "r", name, point]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)


def settled(ledger: Ledger) -> None:
    """All that must hold whatever was killed."""
    rows = ledger.rows("r")
    record = ledger.record("r")
    assert ledger.verify() == len(rows)
    assert (str(fold(rows)), fold(rows).epoch) == (record.state, record.epoch)
    assert [row.after for row in rows] == ["DRAFT", *UP][: len(rows)]  # each step once


@pytest.mark.integration
@pytest.mark.parametrize(
    "point",
    [
        "controller:before_begin:kill:3",
        "controller:before_commit:kill:1",
        "controller:before_commit:kill:5",
        "controller:after_commit:kill:1",
        "controller:after_commit:kill:5",
        "router:before_begin:kill:4",
    ],
)
def test_a_controller_killed_at_any_point_of_a_transaction_is_replaced(tmp_path: Path, point: str) -> None:
    ledger = drafted(tmp_path / "l.db", QUICK)
    victim = process(ledger.where, "one", point)
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
    ledger = drafted(where, replace(PATIENT, steps=tuple(replace(canary_step, dwell=0.3) for canary_step in STEPS)))
    first = process(where, "one", "controller:after_commit:kill:4")
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
    slow = replace(PATIENT, steps=(replace(QUICK.steps[0], dwell=1e6), *QUICK.steps[1:]), max_wait=1e7)
    ledger = drafted(where, slow)
    stopped = process(where, "one", "controller:before_begin:stop:40")
    router = Follower(ledger, "r", "observer", OLD, NEW)

    def arm() -> str:
        router.poll()
        return route(EARLY, 1, None, {}, router.snapshot, now=time.monotonic()).arm

    until(lambda: arm() == "canary")
    assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
    until(lambda: arm() == "stable")  # the lease has expired
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
