"""The runs of an experiment: each is begun before any is trained, resumed where it was killed, and never trained twice."""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from nextvec.bank import Bank
from nextvec.errors import DataError, NextvecError
from nextvec.experiments.executor import Executor, Task, TaskFailed, TaskFinished, TaskProgressed
from nextvec.progress import Progress, silent
from nextvec.runs import Run
from nextvec.training import Stepped, Tracker, begin
from nextvec.training.trackers import tell


def train_all(
    tasks: Sequence[Task], bank: Bank, executor: Executor, progress: Progress = silent, trackers: Sequence[Tracker] = ()
) -> list[Run]:
    """Train every run that is not finished; the runs, in the order of the tasks.

    A run that fails stops no other. After a kill the same call goes on: finished
    runs are opened, runs that were begun are resumed.

    Raises:
        DataError: the bank lies in memory only.
        RunError: a folder holds a run with other settings or of another bank.
        NextvecError: a run failed; raised after all others have ended.
    """
    with closing(train_each(tasks, bank, executor, progress, trackers)) as ended:
        failed = [(run, error) for run, error in ended if error is not None]
    refuse_failed(failed, len(tasks))
    return [Run.open(task.path) for task in tasks]


def refuse_failed(failed: Sequence[tuple[Run, NextvecError]], runs: int) -> None:
    """Name the first of the runs that failed, and how many of ``runs`` did.

    Raises:
        NextvecError: any failed; of the type of the first error.
    """
    if failed:
        run, error = failed[0]
        others = f"; {len(failed)} of {runs} runs failed" if len(failed) > 1 else ""
        raise type(error)(f"{run.path}: {error}{others}")


def train_each(
    tasks: Sequence[Task], bank: Bank, executor: Executor, progress: Progress = silent, trackers: Sequence[Tracker] = ()
) -> Generator[tuple[Run, NextvecError | None]]:
    """Train as :func:`train_all`, and yield each run as it ends, with the error that it failed with.

    Args:
        trackers: receive the events of every run, in this process.

    Raises:
        DataError: the bank lies in memory only.
        RunError: a folder holds a run with other settings or of another bank.
    """
    path = stored(bank)
    # All are begun first, so that a task that cannot work is refused before any run has cost hours.
    runs = {task.path: begin(task.path, task.recipe, task.settings, bank) for task in tasks}
    waiting = [task for task in tasks if not runs[task.path].finished]
    yield from ((run, None) for run in runs.values() if run.finished)
    updates = {task.path: _updates_made(runs[task.path]) for task in waiting}
    total = sum(runs[task.path].settings.optimizer.updates for task in waiting)
    with closing(executor.execute(waiting, path)) as events:
        for event in events:
            run = runs[event.task.path]
            if isinstance(event, TaskProgressed):
                tell(trackers, run, event.event)
            match event:
                case TaskProgressed(event=Stepped() as step):
                    updates[run.path] = step.update
                case TaskFinished() | TaskFailed():
                    updates[run.path] = run.settings.optimizer.updates  # all, however early it ended
                case _:
                    pass
            progress("training runs", sum(updates.values()), total)
            if isinstance(event, TaskFinished | TaskFailed):
                yield run, event.error if isinstance(event, TaskFailed) else None


def stored(bank: Bank) -> Path:
    """The folder of a bank, for another process to open.

    Raises:
        DataError: the bank lies in memory only.
    """
    if bank.path is None:
        raise DataError("an experiment trains in other processes; write the bank to disk first")
    return bank.path


def _updates_made(run: Run) -> int:
    history = run.history()
    return history[-1]["update"] if history else 0
