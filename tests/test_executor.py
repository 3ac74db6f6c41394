"""Executors: every task ends once, in order; a killed worker costs its own run alone; a closed call leaves no process."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from nextvec.bank import Bank
from nextvec.errors import NextvecError, RunError
from nextvec.experiments.executor import (
    LocalProcesses,
    Task,
    TaskEvent,
    TaskFailed,
    TaskFinished,
    TaskProgressed,
    TaskStarted,
)
from nextvec.experiments.runs import train_all
from nextvec.runs import Run
from nextvec.training import Evaluated, Finished, Stepped, begin, train
from tests.conftest import walk_bank
from tests.test_training import SMALL, on_disk

LONG = SMALL.replaced(updates=120, evaluate_every=20, patience=100)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("executor") / "bank"
    on_disk(walk_bank(documents=24), folder)
    return folder


def tasks(folder: Path, *settings: object) -> list[Task]:
    return [Task(folder / f"run-{n}", "test", each) for n, each in enumerate(settings)]  # type: ignore[arg-type]


def of_task(events: Sequence[TaskEvent], task: Task) -> list[TaskEvent]:
    return [event for event in events if event.task == task]


def test_every_task_starts_progresses_and_ends_in_order(bank: Path, tmp_path: Path) -> None:
    asked = tasks(tmp_path, SMALL, SMALL.replaced(seed=1), SMALL.replaced(seed=2))
    events = list(LocalProcesses(2).execute(asked, bank))
    for task in asked:
        first, *between, last = of_task(events, task)
        assert (first, last) == (TaskStarted(task), TaskFinished(task))
        trained = [event.event for event in between if isinstance(event, TaskProgressed)]
        assert len(trained) == len(between)
        assert [e.update for e in trained if isinstance(e, Stepped)] == list(range(1, SMALL.optimizer.updates + 1))
        history = Run.open(task.path).history()
        assert [e.record for e in trained if isinstance(e, Evaluated)][:-1] == history[:-1]
        assert isinstance(trained[-1], Finished)
    assert multiprocessing.active_children() == []


@pytest.mark.integration
def test_a_killed_worker_fails_its_own_run_and_the_same_call_resumes_it(bank: Path, tmp_path: Path) -> None:
    asked = tasks(tmp_path, LONG, SMALL, SMALL.replaced(seed=1))
    events: list[TaskEvent] = []
    for event in LocalProcesses().execute(asked, bank):
        events.append(event)
        if isinstance(event, TaskProgressed) and isinstance(event.event, Evaluated) and event.event.update == 20:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
    failed = [event for event in events if isinstance(event, TaskFailed)]
    assert [event.task for event in failed] == asked[:1]
    assert "was killed by SIGKILL" in str(failed[0].error)
    assert [event.task for event in events if isinstance(event, TaskFinished)] == asked[1:]
    killed = Run.open(asked[0].path)
    assert killed.finished is None
    resumed = list(LocalProcesses().execute(asked[:1], bank))
    assert resumed[-1] == TaskFinished(asked[0])
    steps = [event.event.update for event in resumed if isinstance(event, TaskProgressed) and isinstance(event.event, Stepped)]
    assert steps[0] > 20
    whole = begin(tmp_path / "whole", "test", LONG, Bank.open(bank))
    list(train(whole, Bank.open(bank)))
    assert Run.open(asked[0].path).history() == whole.history()


@pytest.mark.integration
def test_a_closed_call_leaves_no_process_and_its_run_can_be_resumed(bank: Path, tmp_path: Path) -> None:
    asked = tasks(tmp_path, LONG, LONG.replaced(seed=1))
    events = LocalProcesses(2).execute(asked, bank)
    progressed = next(event for event in events if isinstance(event, TaskProgressed))
    events.close()
    assert multiprocessing.active_children() == []
    run = Run.open(progressed.task.path)
    assert not run.is_training
    assert list(train(run, Bank.open(bank)))


@pytest.mark.integration
def test_a_task_that_is_refused_stops_no_other(bank: Path, tmp_path: Path) -> None:
    asked = tasks(tmp_path, SMALL.replaced(pool=10_000), SMALL)
    events = list(LocalProcesses().execute(asked, bank))
    (failed,) = (event for event in events if isinstance(event, TaskFailed))
    assert (failed.task, isinstance(failed.error, NextvecError)) == (asked[0], True)
    assert "pool 10,000" in str(failed.error)
    assert events[-1] == TaskFinished(asked[1])


def test_no_task_is_no_work(bank: Path) -> None:
    assert list(LocalProcesses().execute([], bank)) == []


@pytest.mark.integration
def test_all_runs_are_trained_before_the_failed_ones_are_named(bank: Path, tmp_path: Path) -> None:
    asked = tasks(tmp_path, SMALL, SMALL.replaced(seed=1), SMALL.replaced(seed=2))
    opened = Bank.open(bank)
    held = [begin(task.path, task.recipe, task.settings, opened) for task in asked[:2]]
    with held[0].training(), held[1].training(), pytest.raises(RunError, match=r"run-[01]: .*; 2 of 3 runs failed"):
        train_all(asked, opened, LocalProcesses(2))
    assert Run.open(asked[2].path).finished
    assert [run.path for run in train_all(asked, opened, LocalProcesses())] == [task.path for task in asked]
