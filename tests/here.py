"""An executor of experiments without processes."""

from collections.abc import Generator, Sequence
from pathlib import Path

from nextvec.bank import Bank
from nextvec.experiments.executor import Task, TaskEvent, TaskFinished
from nextvec.training import begin, train


class Here:
    """An executor that trains in this process, which starts faster than another; may be told to die before a run."""

    def __init__(self) -> None:
        self.trained: list[Path] = []
        self.dies_before = -1

    def execute(self, tasks: Sequence[Task], bank: Path) -> Generator[TaskEvent]:
        for task in tasks:
            if len(self.trained) == self.dies_before:
                raise KeyboardInterrupt
            opened = Bank.open(bank)
            run = begin(task.path, task.recipe, task.settings, opened)
            self.trained.append(task.path)
            list(train(run, opened))
            yield TaskFinished(task)
