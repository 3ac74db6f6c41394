"""Many runs on one bank: each in a process of its own, each resumed where it was killed, none trained twice."""

import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nextvec.bank import Bank
from nextvec.errors import DataError, NextvecError, RunError
from nextvec.progress import Progress, silent
from nextvec.runs import Run, TrainSettings
from nextvec.training import begin, train

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Plan:
    """One run that an experiment needs."""

    path: Path
    recipe: str
    settings: TrainSettings


def train_all(plans: Sequence[Plan], bank: Bank, jobs: int = 1, progress: Progress = silent) -> list[Run]:
    """Train whatever is not finished, ``jobs`` runs at a time; the runs, in the order of the plans.

    Killed at any moment, the same call goes on: finished runs are opened, begun
    ones resumed. A run that fails stops the experiment after the others under
    way have ended, and nothing finished is lost.

    Raises:
        DataError: the bank lies in memory only.
        RunError: a directory holds a run with other settings or of another bank.
    """
    with closing(train_each(plans, bank, jobs, progress)) as ended:
        for run, error in ended:
            if error is not None:
                raise type(error)(f"{run.path}: {error}")
    return [Run.open(plan.path) for plan in plans]


def train_each(
    plans: Sequence[Plan], bank: Bank, jobs: int = 1, progress: Progress = silent
) -> Generator[tuple[Run, NextvecError | None]]:
    """As :func:`train_all`, but every run is handed out as it ends, with what it failed of, and the others go on.

    Raises:
        DataError: the bank lies in memory only.
        RunError: a directory holds a run with other settings or of another
            bank, or a training process was killed.
    """
    path = stored(bank)
    # All are begun here, so that a plan that cannot work is refused before any has cost hours.
    runs = [begin(plan.path, plan.recipe, plan.settings, bank) for plan in plans]
    waiting = [run for run in runs if not run.finished]
    yield from ((run, None) for run in runs if run.finished)
    updates = sum(run.settings.optimizer.updates for run in waiting)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(max(1, jobs), max(1, len(waiting))), context, _die_with_parent)
    try:
        under_way: dict[Future[None], Run] = {pool.submit(_train, run.path, path): run for run in waiting}
        while under_way:
            ended, _ = wait(under_way, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            progress("training runs", sum(_done(run) for run in waiting), updates)
            for future in ended:
                yield under_way.pop(future), _failure(future)
    finally:
        pool.shutdown(cancel_futures=True)


def stored(bank: Bank) -> Path:
    """Where a bank lies, for another process to open.

    Raises:
        DataError: in memory only.
    """
    if bank.path is None:
        raise DataError("an experiment trains in processes of its own; write the bank to disk first")
    return bank.path


def _train(path: Path, bank: Path) -> None:
    for _ in train(Run.open(path), Bank.open(bank)):
        pass


def _failure(future: Future[None]) -> NextvecError | None:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise RunError("a training process was killed (out of memory?); the same command goes on from here") from None
    if error is not None and not isinstance(error, NextvecError):
        raise error
    return error


def _die_with_parent() -> None:
    """A killed experiment must not leave processes that train on and hold its runs against the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _done(run: Run) -> int:
    """Updates made; all of them once a run has ended, however early."""
    history = run.history()
    return run.settings.optimizer.updates if run.finished else history[-1]["update"] if history else 0
