"""The predecessor's phases trained again, in our form and as published, and evaluated on one exam."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.bank.layout import read_json, write_atomically
from nextvec.errors import ExamError, RunError, SettingsError
from nextvec.evaluation import Exam
from nextvec.evaluation.baselines import RAW_MEANS, Together, together
from nextvec.evaluation.by_lane import expert_use, places_by_lane
from nextvec.evaluation.ranks_file import digest, read_ranks, write_ranks
from nextvec.evaluation.results import evaluation_results
from nextvec.experiments.executor import Executor, LocalProcesses, Task
from nextvec.experiments.runs import refuse_failed, train_each
from nextvec.experiments.seeds import average, few_documents
from nextvec.lanes import Lanes
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks
from nextvec.recipes import recipe as settings_of
from nextvec.reproduction.families import EXPERTS_FAMILY
from nextvec.reproduction.phase_table import Phase, Phases, Step
from nextvec.reproduction.phases_page import write_phases_page
from nextvec.reproduction.reported import FIXED_POOL, FORMS, ORDER, POOLS, RECIPES, SHRINKING, Pool, parts_of
from nextvec.runs import Run, bank_of, load_model
from nextvec.runs.run import BEST, RUN
from nextvec.runs.settings import TrainSettings, override, reads
from nextvec.windows import Split


def phases(
    folder: str | Path,
    bank: Bank | None = None,
    recipes: Sequence[str] = RECIPES,
    seeds: int = 1,
    sets: Sequence[str] = (),
    pools: Sequence[Pool] = POOLS,
    executor: Executor | None = None,
    rows: int = 2000,
    progress: Progress = silent,
    lanes: Lanes | None = None,
) -> Phases:
    """Train the missing runs in ``folder/<recipe>/seed-<s>`` and evaluate every finished run there on one exam.

    ``folder/phases.json`` and ``phases.html`` are written anew whenever a run
    ends. After a kill the same call goes on.

    Args:
        bank: to train on; without one nothing is trained, and the table is
            built from the finished runs of the folder.
        sets: ``name=value`` settings of every recipe.
        pools: candidates per scored row; those that a scored row cannot fill are left out, with a note.
        executor: trains the runs; one process of this machine by default.
        rows: scored rows at most.
        lanes: of the bank, for the figures of each lane.

    Raises:
        SettingsError: an unknown recipe or setting.
        RunError: no finished run and no bank; or runs of another bank or with other settings.
        ExamError: runs that hold out different documents, or too few rows to score.
    """
    folder = Path(folder)
    if bank is None:
        table = _Table(folder, _bank_of(folder), pools, rows, progress, lanes)
        return table.write(())
    table = _Table(folder, bank, pools, rows, progress, lanes)
    tasks = _tasks(folder, bank, recipes, seeds, sets)
    planned, failed = [task.path for task in tasks], []
    with closing(train_each(tasks, bank, executor or LocalProcesses(), progress)) as ended:
        for run, error in ended:
            if error is not None:
                failed.append((run, error))
            elif table.grew():
                table.write(planned)
    refuse_failed(failed, len(tasks))
    return table.write(planned)


class _Table:
    """The table of a folder. It keeps what it has evaluated, so that each run is evaluated once."""

    def __init__(
        self, folder: Path, bank: Bank, pools: Sequence[Pool], rows: int, progress: Progress, lanes: Lanes | None
    ) -> None:
        if not pools:
            raise SettingsError("no pool is named; name one, like --pools 1000")
        self.folder, self.bank, self.rows, self.progress, self.lanes = folder, bank, rows, progress, lanes
        self.pools = tuple(dict.fromkeys(pools))
        self.notes: list[str] = []
        self.exams: dict[Pool, Exam] = {}
        self.parts: Split | None = None
        self._baseline_groups: list[Together] = []
        self._ranks: dict[Path, dict[Pool, Ranks]] = {}
        self._baselines: dict[int, dict[Pool, dict[str, Ranks]]] = {}

    def grew(self) -> bool:
        """Whether a run has finished since the last write."""
        return any(run.path not in self._ranks for runs in _finished(self.folder).values() for run in runs)

    def write(self, planned: Iterable[Path]) -> Phases:
        """Evaluate every finished run, and write the table and its page."""
        found = _finished(self.folder)
        if not found:
            raise RunError(f"{self.folder} holds no finished run; train some: nextvec phases {self.folder} --bank BANK")
        for runs in found.values():
            for run in runs:
                self._evaluate(run)
        waiting = [str(path.relative_to(self.folder)) for path in planned if path not in self._ranks]
        table = self._phases(found)
        untrained, steps = self._steps(table)
        held = Phases(
            self.bank, self.exams, self._pool, tuple(table.values()), untrained, steps, tuple(waiting), tuple(self.notes)
        )
        content = held.to_json()
        write_atomically(self.folder / "phases.json", json.dumps(content, indent=1) + "\n")
        write_phases_page(self.folder / "phases.html", content)
        return held

    @property
    def _pool(self) -> Pool:
        """1,000; else the largest one."""
        numbers = [pool for pool in self.exams if pool is not None]
        return FIXED_POOL if FIXED_POOL in numbers else max(numbers, default=None)

    def _evaluate(self, run: Run) -> None:
        if run.path in self._ranks:
            return
        parts = run.split(self.bank)
        if self.parts is None:
            self._set_exams(run, parts)
            self.notes += few_documents(self.exams[self._pool].clusters)
        elif not all(np.array_equal(getattr(parts, name), getattr(self.parts, name)) for name in ("train", "test")):
            raise ExamError(
                f"{run.path} holds out other documents than the runs beside it; train all with the same valid and test"
            )
        results = evaluation_results(run, list(self.exams.values()), progress=self.progress)
        self._ranks[run.path] = {result.pool: result.ranks for result in results}

    def _set_exams(self, run: Run, parts: Split) -> None:
        whole = Exam.over(self.bank, parts.test, "test", None, self.rows)
        most = whole.largest_pool
        large = [pool for pool in self.pools if pool is not None and pool > most]
        if large:
            named = ", ".join(f"{pool:,}" for pool in large)
            self.notes.append(f"some scored row has no more than {most:,} candidates; larger pools are left out: {named}")
        fitting = [pool for pool in self.pools if pool not in large]
        if not fitting:
            raise ExamError(f"the largest pool that every scored row can fill is {most:,}; name a smaller one, or all")
        self.exams = {pool: whole.among(pool) for pool in fitting}
        self._baseline_groups = list(together(run.moments(), (self.bank, parts.train)))
        self.parts = parts

    def _phases(self, found: Mapping[str, Sequence[Run]]) -> dict[str, Phase]:
        table: dict[str, Phase] = {}
        for name in sorted(found, key=_place):
            runs = found[name]
            ranks = {pool: tuple(self._ranks[run.path][pool] for run in runs) for pool in self.exams}
            context = runs[0].settings.passages.context
            before = table.get(_before(name, table))
            baseline_ranks = self._baseline_ranks(context)
            use, places = self._use(runs[0]), self._places()
            table[name] = Phase(name, tuple(runs), ranks, baseline_ranks, self._full(context), self._pool, before, use, places)
        return table

    def _places(self) -> dict[str, Int64[np.ndarray, " kept"]]:
        return places_by_lane(self.lanes, self.bank, self.exams[self._pool].rows) if self.lanes else {}

    def _use(self, run: Run) -> dict[str, Any] | None:
        """The experts that were active in its predictions; computed once, kept on disk. None for a model without experts."""
        if run.settings.model != EXPERTS_FAMILY.name:
            return None
        exam = self.exams[self._pool]
        weights = (run.path / BEST).read_bytes()
        file = self.folder / "experts" / f"{digest(exam.id, str(run.settings.passages.context), weights)}.json"
        if not file.exists():
            model = load_model(run)
            found = expert_use(model, self.bank, exam.rows, run.settings.passages.context, self.progress).to_json()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(found))
        return read_json(file)

    def _full(self, context: int) -> float:
        exam = self.exams[self._pool]
        past = exam.rows - self.bank.offsets[exam.clusters]
        return float((past >= context).mean())

    def _baseline_ranks(self, context: int) -> dict[Pool, dict[str, Ranks]]:
        """The ranks of every baseline with one context, by pool; computed once, kept on disk."""
        if context not in self._baselines:
            assert self.parts is not None
            names = (name for group in self._baseline_groups for name in group.names)
            kind = digest(*names, self.parts.train.tobytes())
            place = self.folder / "baselines"
            files = {pool: place / f"{exam.id}-{context}-{kind}.safetensors" for pool, exam in self.exams.items()}
            if not all(file.exists() for file in files.values()):
                self._predict(context, files)
            self._baselines[context] = {pool: read_ranks(file) for pool, file in files.items()}
        return self._baselines[context]

    def _predict(self, context: int, files: Mapping[Pool, Path]) -> None:
        found: dict[Pool, dict[str, Ranks]] = {pool: {} for pool in self.exams}
        for done, group in enumerate(self._baseline_groups):
            self.progress("baselines", done, len(self._baseline_groups))
            predicted = group.predict(self.exams[self._pool], context)
            for pool, exam in self.exams.items():
                found[pool] |= group.ranks(exam, predicted)
        self.progress("baselines", len(self._baseline_groups), len(self._baseline_groups))
        for pool, file in files.items():
            write_ranks(file, found[pool])

    def _steps(self, table: Mapping[str, Phase]) -> tuple[str, tuple[Step, ...]]:
        steps = [step for step in SHRINKING if step[2] in self.exams]
        if len(steps) < 2:
            return "", ()
        first = self._baseline_ranks(steps[0][1])
        means = {name: ranks for name, ranks in first[self._pool].items() if name in RAW_MEANS}
        name = max(means, key=lambda mean: means[mean].hits(5).mean())
        rise = [
            Step(
                phase,
                context,
                pool,
                (first[pool][name].hit(5), self._baseline_ranks(context)[self._pool][name].hit(5)),
                {
                    form: (average(held.ranks[pool], 5), average(held.ranks[self._pool], 5))
                    for form in FORMS
                    if (held := table.get(phase if form == "ours" else f"{phase}-{form}"))
                },
            )
            for phase, context, pool in steps
        ]
        return name, tuple(rise)


def _tasks(folder: Path, bank: Bank, recipes: Sequence[str], seeds: int, sets: Sequence[str]) -> list[Task]:
    if any(assignment.startswith("seed=") for assignment in sets):
        raise SettingsError("seed is counted from 0 by --seeds; it cannot be set")
    tasks: list[Task] = []
    for name, settings in _settings(recipes, len(bank), sets).items():
        tasks += [Task(folder / name / f"seed-{seed}", name, settings.replaced(seed=seed)) for seed in range(seeds)]
    return tasks


def _settings(recipes: Sequence[str], rows: int, sets: Sequence[str]) -> dict[str, TrainSettings]:
    """The settings of every recipe. An option of some models changes the recipes whose model reads it.

    Raises:
        SettingsError: an unknown recipe or setting, or an option that no recipe's model reads.
    """
    models, rest = [s for s in sets if s.startswith("model=")], [s for s in sets if not s.startswith("model=")]
    found = {name: override(settings_of(name, rows), models) for name in recipes}
    read = {name: [s for s in rest if reads(settings.model, s.partition("=")[0])] for name, settings in found.items()}
    for assignment in rest:
        if all(assignment not in kept for kept in read.values()):
            for settings in found.values():
                override(settings, [assignment])
    return {name: override(settings, read[name]) for name, settings in found.items()}


def _finished(folder: Path) -> dict[str, list[Run]]:
    """The finished runs of every recipe, seeds in order."""
    found: dict[str, list[Run]] = {}
    for file in folder.glob(f"*/seed-*/{RUN}"):
        run = Run.open(file.parent)
        if run.finished:
            found.setdefault(run.path.parent.name, []).append(run)
    return {name: sorted(runs, key=lambda run: run.settings.seed) for name, runs in found.items()}


def _bank_of(folder: Path) -> Bank:
    run = next((run for runs in _finished(folder).values() for run in runs), None)
    if run is None:
        raise RunError(f"{folder} holds no finished run; train some: nextvec phases {folder} --bank BANK")
    return bank_of(run)


def _place(recipe: str) -> tuple[int, str]:
    return RECIPES.index(recipe) if recipe in RECIPES else len(RECIPES), recipe


def _before(recipe: str, table: Mapping[str, Phase]) -> str:
    """The nearest earlier phase of the same form in the table; for an ablation, the recipe without the ablation."""
    phase, form, without = parts_of(recipe)
    suffix = "" if form == "ours" else f"-{form}"
    if without:
        return f"{phase}{suffix}"
    earlier = ORDER[: ORDER.index(phase)] if phase in ORDER else ()
    return next((name for name in (f"{p}{suffix}" for p in reversed(earlier)) if name in table), "")
