"""The context experiment: runs that differ only in the context they were trained with, on one exam."""

# Axes: R scored rows, D width.

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.errors import ExamError, SettingsError
from nextvec.evaluation import Exam, predict_rows
from nextvec.evaluation.baselines import baseline_ranks, together
from nextvec.evaluation.ranks_file import digest, kept_ranks
from nextvec.experiments.context_effects import (
    FOREIGN,
    REMOVED,
    SHUFFLED,
    ContextExperiment,
    Effect,
    Trained,
    verdicts,
)
from nextvec.experiments.disturbance import Source, foreign, intact, predict_disturbed, shuffled
from nextvec.experiments.executor import Executor, LocalProcesses, Task
from nextvec.experiments.runs import train_all
from nextvec.experiments.seeds import average, average_lift, few_documents, kept_at
from nextvec.models import Recurrent
from nextvec.pages.context_page import write_context_page
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks
from nextvec.recipes import recipe as settings_of
from nextvec.runs import Run, TrainSettings, load_model
from nextvec.runs.run import BEST
from nextvec.runs.settings import override
from nextvec.windows import Split, split, training_windows

CONTEXTS = (100, 500, 1000)
TRUNCATED = (1, 5, 20, 100, 500, 1000)
NEAR = 100  # vectors that stay intact when those before them are disturbed
ENOUGH_ROWS = 300  # with a full context, for an exam of only such rows
TOO_FEW = 30
RANKS = "ranks"  # folder
UNEQUAL = 0.03  # share by which the targets of an update may differ between contexts, where whole passages allow it
NO_EARLY_STOP = 1_000_000  # validations without progress: every run makes all its updates

Rows = Int64[np.ndarray, " R"]


def context_experiment(
    folder: str | Path,
    bank: Bank,
    contexts: Sequence[int] = CONTEXTS,
    seeds: int = 3,
    recipe: str = "default",
    sets: Sequence[str] = (),
    executor: Executor | None = None,
    rows: int = 2000,
    pool: int | None = 1000,
    progress: Progress = silent,
) -> ContextExperiment:
    """Train one run per context and seed, all with equal updates of equal numbers of targets, and evaluate all on one exam.

    The exam scores only rows that have the longest context before them where 300
    such rows exist, else all rows. ``folder/context.json`` and ``context.html``
    are written at the end. After a kill the same call goes on.

    Args:
        sets: ``name=value`` settings of every run.
        executor: trains the runs; one process of this machine by default.
        rows: scored rows at most; pool: candidates each, None for the whole bank.

    Raises:
        SettingsError: fewer than two contexts, an unknown recipe or setting, or one that the experiment decides.
        ExamError: too little to score, or a pool that a scored row cannot fill.
        RunError: the folder holds runs with other settings or of another bank.
    """
    folder, contexts = Path(folder), sorted(set(contexts))
    settings = _settings(recipe, len(bank), contexts, seeds, sets)
    parts = split(bank, settings.split.valid, settings.split.test)
    exam, history = _exam(bank, parts, contexts[-1], pool, rows)  # before training: an exam that is refused has cost nothing
    equal = _equal_targets(bank, parts, settings, contexts)
    tasks = [
        Task(
            folder / f"context-{context}" / f"seed-{seed}",
            recipe,
            settings.replaced(context=context, batch=equal[context][0], seed=seed),
        )
        for context in contexts
        for seed in range(seeds)
    ]
    runs = train_all(tasks, bank, executor or LocalProcesses(), progress)
    by_context = {c: [run for run in runs if run.settings.passages.context == c] for c in contexts}
    found = _Findings(folder, exam, parts, progress).over(by_context, equal, recipe, history)
    content = found.to_json()
    write_atomically(folder / "context.json", json.dumps(content, indent=1) + "\n")
    write_context_page(folder / "context.html", content)
    return found


class _Findings:
    """Evaluates runs on one exam in many ways; ranks are kept on disk, named by everything they depend on."""

    def __init__(self, folder: Path, exam: Exam, parts: Split, progress: Progress) -> None:
        self.folder, self.exam, self.bank, self.parts, self.progress = folder, exam, exam.bank, parts, progress
        self.past = exam.rows - exam.bank.offsets[exam.clusters]

    def over(
        self, runs: Mapping[int, list[Run]], equal: Mapping[int, tuple[int, float]], recipe: str, history: int
    ) -> ContextExperiment:
        shortest, longest = min(runs), max(runs)
        near = min(NEAR, longest // 5)
        own = {context: [self._truncated(run, context) for run in of_it] for context, of_it in runs.items()}
        full = np.flatnonzero(self.past >= longest)
        trained = tuple(
            self._trained(runs[context], self._effect(f"{context:,}", own[context], own[shortest], full), *equal[context])
            for context in runs
        )
        lengths = [length for length in TRUNCATED if length < longest] + [longest]
        truncated = tuple(
            self._effect(f"{length:,}", [self._truncated(run, length) for run in runs[longest]], own[longest], full)
            for length in lengths
        )
        notes = [_noted_rows(len(full), len(self.past), longest), *few_documents(self.exam.clusters)]
        every = [run for of_it in runs.values() for run in of_it]
        notes += [f"{run.path.parent.name}, {run.name}: {alarm}" for run in every for alarm in run.alarms()]
        disturbed = self._disturbances(runs[longest], longest, near, full, notes)
        return ContextExperiment(
            recipe,
            len(runs[longest]),
            self.exam,
            history,
            trained,
            truncated,
            disturbed,
            near,
            float((self.past > near).mean()),
            len(full),
            verdicts(trained, disturbed, near),
            tuple(notes),
        )

    def _disturbances(self, runs: list[Run], longest: int, near: int, full: Rows, notes: list[str]) -> tuple[Effect, ...]:
        def ranks(kind: str, far: Source) -> list[Ranks]:
            return [self._disturbed(run, longest, near, kind, far) for run in runs]

        # Predicted in the same way as the disturbed contexts, not in shared passages, so that rounding is no effect.
        whole = ranks("intact", partial(intact, near))
        effects = [
            self._effect("intact", whole, whole, full),
            self._effect(SHUFFLED, ranks("shuffled", partial(shuffled, near)), whole, full),
        ]
        try:
            other = ranks("foreign", partial(foreign, self.bank, self.parts.test))
            effects.append(self._effect(FOREIGN, other, whole, full))
        except ExamError as error:
            notes.append(f"no far part was taken from another document: {error}")
        removed = [self._truncated(run, near) for run in runs]
        return (*effects, self._effect(REMOVED, removed, whole, full))

    def _effect(self, name: str, seeds: Sequence[Ranks], against: Sequence[Ranks], full: Rows) -> Effect:
        restricted = None
        if TOO_FEW <= len(full) < len(self.past):
            a, b = ([ranks.only(full) for ranks in each] for each in (seeds, against))
            restricted = average(a, 5), average_lift(a, b, 5)
        each = tuple(float(ranks.hits(5).mean()) for ranks in seeds)
        return Effect(name, average(seeds, 5), each, average_lift(seeds, against, 5), restricted)

    def _trained(self, runs: list[Run], effect: Effect, batch: int, targets: float) -> Trained:
        context = runs[0].settings.passages.context
        own = [self._truncated(run, context) for run in runs]
        of_baselines = self._baselines(runs[0], context)
        best = max(of_baselines, key=lambda name: of_baselines[name].hits(5).mean())
        return Trained(
            context,
            batch,
            targets,
            tuple(run.history()[-1]["update"] for run in runs),
            tuple(kept_at(run) for run in runs),
            tuple(run.seconds() for run in runs),
            float((self.past >= context).mean()),
            effect,
            (best, of_baselines[best].hit(5), average_lift(own, [of_baselines[best]], 5)),
        )

    def _truncated(self, run: Run, context: int) -> Ranks:
        return self._kept(run, f"context-{context}", lambda model: predict_rows(model, self.bank, self.exam.rows, context))

    def _disturbed(self, run: Run, context: int, near: int, kind: str, far: Source) -> Ranks:
        def predicted(model: Recurrent[Any]) -> Tensor:
            return predict_disturbed(model, self.bank, self.exam.rows, context, near, far, self.progress)

        return self._kept(run, f"{kind}-{context}-{near}", predicted)

    def _kept(self, run: Run, how: str, predicted: Callable[[Recurrent[Any]], Tensor]) -> Ranks:
        def ranked(model: Recurrent[Any]) -> Ranks:
            return self.exam.rank(predicted(model), model)

        name = digest(self.exam.id, how, (run.path / BEST).read_bytes())
        file = self.folder / RANKS / f"{how}-{name}.safetensors"
        return kept_ranks(file, lambda: {"model": ranked(load_model(run))})["model"]

    def _baselines(self, run: Run, context: int) -> dict[str, Ranks]:
        groups = list(together(run.moments(), (self.bank, self.parts.train)))
        name = digest(self.exam.id, *(name for group in groups for name in group.names), self.parts.train.tobytes())

        def ranked() -> dict[str, Ranks]:
            return baseline_ranks(self.exam, groups, context, self.progress)

        return kept_ranks(self.folder / RANKS / f"baselines-{context}-{name}.safetensors", ranked)


def _settings(recipe: str, rows: int, contexts: Sequence[int], seeds: int, sets: Sequence[str]) -> TrainSettings:
    if len(contexts) < 2:
        raise SettingsError("name at least two different contexts, like --contexts 100,500,1000")
    if seeds < 1:
        raise SettingsError(f"seeds={seeds}: at least 1")
    decided = {"seed": "--seeds", "context": "--contexts", "patience": "the experiment, which gives every run all its updates"}
    for assignment in sets:
        name = assignment.partition("=")[0]
        if name in decided:
            raise SettingsError(f"{name} is decided by {decided[name]}; it cannot be set")
    return override(settings_of(recipe, rows), sets).replaced(patience=NO_EARLY_STOP, seconds=None)


def _exam(bank: Bank, parts: Split, longest: int, pool: int | None, rows: int) -> tuple[Exam, int]:
    """The exam, and the rows that each scored row has before it: the longest context where enough rows have it, else 1."""
    available = int(np.maximum(bank.lengths[parts.test] - longest, 0).sum())
    history = longest if available >= ENOUGH_ROWS else 1
    return Exam.over(bank, parts.test, "test", pool, rows, history), history


def _equal_targets(bank: Bank, parts: Split, settings: TrainSettings, contexts: Sequence[int]) -> dict[int, tuple[int, float]]:
    """By context, the passages of a batch and the targets of an update, as equal as whole passages allow.

    The longest context has at least the recipe's own number of targets, and up to
    twice as many where shorter passages can then match it better. The targets of
    a passage are the mean over the passages of the bank: many documents end
    before a long passage does.
    """
    if settings.passages.supervision == "last":
        o = settings.optimizer
        return {context: (o.batch, float(o.batch * o.accumulate)) for context in contexts}

    def of_a_passage(context: int) -> float:
        windows = training_windows(bank, parts.train, context, np.random.default_rng(0))
        return windows.targets / len(windows)

    targets = {context: of_a_passage(context) for context in contexts}
    longest = targets[contexts[-1]]

    def batches(passages: int) -> dict[int, int]:
        return {context: max(1, round(passages * longest / mean)) for context, mean in targets.items()}

    def off(passages: int) -> float:
        """The largest relative difference to the longest context."""
        return max(abs(n * targets[c] / (passages * longest) - 1) for c, n in batches(passages).items())

    least = max(1, round(settings.optimizer.batch * of_a_passage(settings.passages.context) / longest))
    choices = range(least, 2 * least + 1)
    chosen = batches(next((n for n in choices if off(n) <= UNEQUAL), min(choices, key=off)))
    return {c: (batch, batch * targets[c] * settings.optimizer.accumulate) for c, batch in chosen.items()}


def _noted_rows(full: int, rows: int, longest: int) -> str:
    if full == rows:
        return f"every scored row has {longest:,} rows before it"
    note = f"{full:,} of {rows:,} scored rows have {longest:,} rows before them; the others read what their document has"
    if full >= TOO_FEW:
        return note
    return f"{note}. Too few for figures of their own: the value of {longest:,} vectors for rows that have them is unknown"
