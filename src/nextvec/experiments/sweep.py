"""Sweeps: a recipe trained with many values of some settings, compared on one valid exam and never on the test part."""

import fcntl
import itertools
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.errors import NextvecError, RunError, SettingsError
from nextvec.evaluation import Exam
from nextvec.evaluation.results import evaluation_results
from nextvec.experiments.executor import Executor, LocalProcesses, Task
from nextvec.experiments.points import Point, Sweep, Trial, assignments
from nextvec.experiments.runs import stored, train_each
from nextvec.progress import Progress, silent
from nextvec.recipes import recipe
from nextvec.runs import Run, TrainSettings
from nextvec.runs.settings import override
from nextvec.training import Tracker, begin
from nextvec.windows import split

RECORD, LOCK = "sweep.json", "sweep.lock"
# Points that differ in these would be evaluated on different exams, or are seeds of one point.
FIXED = {
    "valid": "decides which documents the exam scores",
    "test": "decides which documents the exam scores",
    "pool": "is part of the exam",
    "seed": "is --seeds",
}


@dataclass(frozen=True)
class SweepSettings:
    """What all points of a sweep share.

    Attributes:
        recipe, base: the recipe, and its settings where they are not swept.
        folder: of the runs.
        seeds: runs per point, counted from the recipe's own seed.
        exam: over the valid documents; every run is evaluated on it.
    """

    recipe: str
    base: TrainSettings
    bank: Bank
    folder: Path
    seeds: int
    exam: Exam

    @staticmethod
    def of(name: str, bank: Bank, folder: str | Path, sets: Sequence[str], seeds: int, rows: int) -> "SweepSettings":
        """The settings of a sweep, checked; arguments as :func:`sweep`'s.

        Raises:
            SettingsError: a recipe or setting that does not exist or does not fit.
            DataError: a bank in memory, or one that cannot be split.
            ExamError: a bank too small for the exam.
        """
        base = override(recipe(name, len(bank)), sets)
        stored(bank)
        parts = split(bank, base.split.valid, base.split.test)
        exams = {
            part: Exam.over(bank, parts.part(part), part, base.validation.pool, rows) for part in ("train", "valid", "test")
        }
        return SweepSettings(name, base, bank, Path(folder), seeds, exams["valid"])

    @contextmanager
    def held(self) -> Generator[None]:
        """Make the folder and lock it; the kernel unlocks it when the process dies.

        Raises:
            RunError: the folder holds something else, or another process sweeps it.
        """
        lock = self.folder / LOCK
        if self.folder.exists() and not lock.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise RunError(f"{self.folder} exists and is not a sweep; choose another name")
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(lock, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.folder} is being swept by another process") from None
            yield

    def parsed(self, values: Mapping[str, object]) -> dict[str, Any]:
        """The values of a point, of the types of the settings.

        Raises:
            SettingsError: a setting that does not exist or must not be swept, or a value that does not fit.
        """
        for name in values:
            if name in FIXED:
                raise SettingsError(f"{name} cannot be swept: it {FIXED[name]}")
        settings = override(self.base, assignments(values))
        flat = {"model": settings.model, **settings.flat()}
        return {name: flat[name] for name in values}

    def tasks(self, values: Mapping[str, Any]) -> list[Task]:
        """The runs of a point, one per seed."""
        settings = override(self.base, assignments(values))
        place = self.folder / f"{self.recipe}-{','.join(assignments(values))}"
        seeds = range(settings.seed, settings.seed + self.seeds)
        return [Task(place / f"seed-{seed}", self.recipe, settings.replaced(seed=seed)) for seed in seeds]

    def trial(self, run: Run, error: NextvecError | None) -> Trial:
        """A run that ended: evaluated, or with the reason why it failed."""
        if error is None:
            try:
                return Trial(run, evaluation_results(run, [self.exam])[0])
            except NextvecError as refused:
                error = refused
        return Trial(run, failed=str(error))


def sweep(
    name: str,
    bank: Bank,
    folder: str | Path,
    over: Mapping[str, Sequence[object]],
    seeds: int = 3,
    sets: Sequence[str] = (),
    executor: Executor | None = None,
    rows: int = 2000,
    progress: Progress = silent,
    trackers: Sequence[Tracker] = (),
) -> Sweep:
    """Train a recipe with every combination of some values and evaluate all runs on the valid part.

    ``sweep.json`` in ``folder`` is written anew after every run. After a kill the
    same call goes on. A run that fails is recorded with its reason; the others go
    on, and the same call tries it again.

    Args:
        over: values by setting.
        seeds: runs per point, counted from the recipe's own seed.
        sets: ``name=value`` for settings that are not swept.
        executor: trains the runs; one process of this machine by default.
        rows: scored rows of the exam at most.
        trackers: receive the events of every run, in this process.

    Raises:
        SettingsError: a setting or value that does not exist or does not fit; nothing is trained then.
        DataError: a bank in memory, or one that cannot be split.
        ExamError: a bank too small for the exam.
        RunError: the folder holds something else, or another process sweeps it.
    """
    settings = SweepSettings.of(name, bank, folder, sets, seeds, rows)
    grid = [settings.parsed(dict(zip(over, values, strict=True))) for values in itertools.product(*over.values())]
    for n, values in enumerate(grid):
        if values in grid[:n]:
            raise SettingsError(f"{' '.join(assignments(values))} is listed twice; list every value once")
    with settings.held():
        return add_points(settings, grid, [], executor or LocalProcesses(), progress, trackers)


def add_points(
    settings: SweepSettings,
    added: Sequence[Mapping[str, Any]],
    before: Sequence[Point],
    executor: Executor,
    progress: Progress = silent,
    trackers: Sequence[Tracker] = (),
) -> Sweep:
    """Train and evaluate the ``added`` points, beside those of ``before``; ``sweep.json`` is written after every run."""
    points = [*before, *(_begun(settings, values) for values in added)]
    tasks = [task for values in added for task in settings.tasks(values)]
    for run, error in train_each(tasks, settings.bank, executor, progress, trackers):
        ended = settings.trial(run, error)
        points = [point.with_trial(ended) for point in points]
        found = Sweep.of(settings.folder, settings.recipe, settings.bank, points)
        write_atomically(settings.folder / RECORD, json.dumps(found.to_json(), indent=1) + "\n")
    return Sweep.of(settings.folder, settings.recipe, settings.bank, points)


def _begun(settings: SweepSettings, values: Mapping[str, Any]) -> Point:
    runs = [begin(task.path, task.recipe, task.settings, settings.bank) for task in settings.tasks(values)]
    return Point(values, tuple(Trial(run) for run in runs))


def parse_list(text: str) -> tuple[str, list[str]]:
    """``NAME=V,V,…`` as name and values.

    Raises:
        SettingsError: it is not of that form.
    """
    name, equals, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",")]
    if not equals or not name.strip() or "" in values:
        raise SettingsError(f"--over {text!r}: want NAME=VALUE,VALUE,… or, with --trials, NAME=LOW..HIGH")
    return name.strip(), values
