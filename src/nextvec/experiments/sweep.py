"""Sweeps: one question about settings, many runs, judged on one valid exam and never on the test part."""

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
from nextvec.evaluation.runs import Sitting, sittings
from nextvec.experiments.points import Point, Sweep, Trial, assignments
from nextvec.experiments.runs import Plan, stored, train_each
from nextvec.progress import Progress, silent
from nextvec.recipes import recipe
from nextvec.runs import Run, TrainSettings
from nextvec.runs.settings import override
from nextvec.training import begin
from nextvec.windows import split

RECORD, LOCK = "sweep.json", "sweep.lock"
# Points that differ in these would sit different exams, or are no points at all.
FIXED = {
    "valid": "decides who is examined",
    "test": "decides who is examined",
    "pool": "is part of the exam",
    "seed": "is --seeds",
}


@dataclass(frozen=True)
class Question:
    """What all points of a sweep share.

    Attributes:
        recipe, base: a recipe and its settings, where they are not swept.
        seeds: runs per point, counted from the recipe's own seed.
        jobs: runs at a time; rows: of the exam, at most.
    """

    recipe: str
    base: TrainSettings
    bank: Bank
    folder: Path
    seeds: int
    jobs: int
    rows: int

    @staticmethod
    def of(name: str, bank: Bank, folder: str | Path, sets: Sequence[str], seeds: int, jobs: int, rows: int) -> "Question":
        """
        Raises:
            SettingsError: a recipe or setting that does not exist or does not fit.
            DataError: a bank in memory, or one that cannot be split.
            ExamError: a bank too small for the exam.
        """
        base = override(recipe(name, len(bank)), sets)
        stored(bank)
        parts = split(bank, base.split.valid, base.split.test)
        for part in ("train", "valid", "test"):
            Exam.over(bank, parts.part(part), part, base.validation.pool, rows)
        return Question(name, base, bank, Path(folder), seeds, jobs, rows)

    @contextmanager
    def held(self) -> Generator[None]:
        """Make the folder and hold it; the kernel lets go of it when the process dies.

        Raises:
            RunError: it holds something else, or is being swept by another process.
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

    def settled(self, values: Mapping[str, object]) -> dict[str, Any]:
        """The values of a point, as the settings hold them.

        Raises:
            SettingsError: a setting that does not exist or must not be swept, or a value that does not fit.
        """
        for name in values:
            if name in FIXED:
                raise SettingsError(f"{name} cannot be swept: it {FIXED[name]}")
        settings = override(self.base, assignments(values))
        settled = {"model": settings.model, **settings.flat()}
        return {name: settled[name] for name in values}

    def plans(self, values: Mapping[str, Any]) -> list[Plan]:
        """The runs of a point, one a seed."""
        settings = override(self.base, assignments(values))
        place = self.folder / f"{self.recipe}-{','.join(assignments(values))}"
        seeds = range(settings.seed, settings.seed + self.seeds)
        return [Plan(place / f"seed-{seed}", self.recipe, settings.replaced(seed=seed)) for seed in seeds]

    def sit(self, run: Run) -> Sitting:
        return sittings(run, self.bank, "valid", pools=(self.base.validation.pool,), max_rows=self.rows)[0]


def sweep(
    name: str,
    bank: Bank,
    folder: str | Path,
    over: Mapping[str, Sequence[object]],
    seeds: int = 3,
    sets: Sequence[str] = (),
    jobs: int = 1,
    rows: int = 2000,
    progress: Progress = silent,
) -> Sweep:
    """Train a recipe at every combination of some values and judge all on the valid part; kept in ``folder``.

    ``sweep.json`` is written anew after every run. Killed at any moment, the
    same call goes on. A run that fails is on record with its reason, the others
    go on, and the same call tries it again.

    Args:
        over: values by setting.
        seeds: runs per point, counted from the recipe's own seed.
        sets: ``name=value`` for settings that are not swept.
        jobs: runs at a time.
        rows: scored rows of the exam at most.

    Raises:
        SettingsError: a setting or value that does not exist or does not fit; nothing is trained then.
        DataError: a bank in memory, or one that cannot be split.
        ExamError: a bank too small for the exam.
        RunError: the folder holds something else, or is being swept.
    """
    question = Question.of(name, bank, folder, sets, seeds, jobs, rows)
    asked = [question.settled(dict(zip(over, values, strict=True))) for values in itertools.product(*over.values())]
    for n, values in enumerate(asked):
        if values in asked[:n]:
            raise SettingsError(f"{' '.join(assignments(values))} is asked for twice; list every value once")
    with question.held():
        return judged(question, asked, [], progress)


def judged(
    question: Question, asked: Sequence[Mapping[str, Any]], before: Sequence[Point], progress: Progress = silent
) -> Sweep:
    """Train and judge some points beside those that were judged ``before``; the record is written after every run."""
    points = [*before, *(_begun(question, values) for values in asked)]
    plans = [plan for values in asked for plan in question.plans(values)]
    for run, error in train_each(plans, question.bank, question.jobs, progress):
        ended = _judged(question, run, error)
        points = [point.with_trial(ended) for point in points]
        found = Sweep.of(question.folder, question.recipe, question.bank, points)
        write_atomically(question.folder / RECORD, json.dumps(found.to_json(), indent=1) + "\n")
    return Sweep.of(question.folder, question.recipe, question.bank, points)


def _begun(question: Question, values: Mapping[str, Any]) -> Point:
    runs = [begin(plan.path, plan.recipe, plan.settings, question.bank) for plan in question.plans(values)]
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


def _judged(question: Question, run: Run, error: NextvecError | None) -> Trial:
    if error is None:
        try:
            return Trial(run, question.sit(run))
        except NextvecError as refused:
            error = refused
    return Trial(run, failed=str(error))
