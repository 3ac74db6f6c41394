"""The experts experiment: the same model with and without experts, at equal and at equal active parameters, on one exam."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.errors import SettingsError
from nextvec.evaluation import Exam
from nextvec.evaluation.by_lane import Json, expert_use, places_by_lane
from nextvec.evaluation.results import evaluation_results
from nextvec.experiments.context import NO_EARLY_STOP
from nextvec.experiments.executor import Executor, LocalProcesses, Task
from nextvec.experiments.runs import train_all
from nextvec.experiments.seeds import few_documents
from nextvec.lanes import Lanes
from nextvec.progress import Progress, silent
from nextvec.ranks import candidate_terms
from nextvec.recipes import recipe as settings_of
from nextvec.reproduction.expert_gru import ExpertGRU
from nextvec.reproduction.expert_kinds import KINDS, Kind, settings_of_kind
from nextvec.runs import Run, TrainSettings, load_model
from nextvec.runs.settings import override
from nextvec.windows import split


def experts_experiment(
    folder: str | Path,
    bank: Bank,
    lanes: Lanes | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    seeds: int = 3,
    recipe: str = "memory",
    sets: Sequence[str] = (),
    executor: Executor | None = None,
    rows: int = 2000,
    pool: int | None = 1000,
    progress: Progress = silent,
) -> Json:
    """Train one run per kind and seed, all with equal updates, and evaluate them on one exam.

    ``folder/experts.json`` is written at the end. After a kill the same call goes on.

    Args:
        lanes: of the bank, for the figures of each lane.
        kinds: of :data:`~nextvec.reproduction.expert_kinds.KINDS`.
        sets: ``name=value`` settings of every run.
        executor: trains the runs; one process of this machine by default.
        rows: scored rows at most; pool: candidates each, None for the whole bank.

    Raises:
        SettingsError: an unknown kind, recipe or setting, or one that the experiment decides.
        DataError: lanes by description of a bank whose encoder is unknown or not installed.
        ExamError: too few rows to score, or a pool that a scored row cannot fill.
        RunError: the folder holds runs with other settings or of another bank.
    """
    folder, base = Path(folder), _settings(recipe, len(bank), seeds, sets, kinds)
    exam = Exam.over(bank, split(bank, base.split.valid, base.split.test).test, "test", pool, rows)
    tasks = [
        Task(folder / kind / f"seed-{seed}", recipe, settings_of_kind(base, kind).replaced(seed=seed))
        for kind in kinds
        for seed in range(seeds)
    ]
    runs = train_all(tasks, bank, executor or LocalProcesses(), progress)
    found: dict[str, Kind] = {}
    for n, kind in enumerate(kinds):
        progress("evaluating kinds", n, len(kinds))
        found[kind] = _evaluated(kind, runs[n * seeds : (n + 1) * seeds], exam)
    progress("evaluating kinds", len(kinds), len(kinds))
    content = {"recipe": recipe, "sets": list(sets), **_content(exam, found, lanes)}
    write_atomically(folder / "experts.json", json.dumps(content, indent=1) + "\n")
    return content


def _content(exam: Exam, kinds: Mapping[str, Kind], lanes: Lanes | None) -> Json:
    places = places_by_lane(lanes, exam.bank, exam.rows) if lanes else {}
    return {
        "exam": {
            "id": exam.id,
            "rows": len(exam.rows),
            **candidate_terms(exam.candidates),
            "documents": len(np.unique(exam.clusters)),
        },
        "lanes": {lane: {"rows": len(rows), "documents": len(np.unique(exam.clusters[rows]))} for lane, rows in places.items()},
        "kinds": [kind.to_json(kinds, places) for kind in kinds.values()],
        "notes": few_documents(exam.clusters),
    }


def _evaluated(kind: str, runs: Sequence[Run], exam: Exam) -> Kind:
    ranks = tuple(evaluation_results(run, [exam])[0].ranks for run in runs)
    model = load_model(runs[0])
    whole = active = sum(parameter.numel() for parameter in model.parameters())
    use = None
    if isinstance(model, ExpertGRU):
        each = sum(parameter.numel() for parameter in model.experts.blocks[0].parameters())
        active -= (model.lanes.count - model.gate.top) * each
        if model.lanes.count > 1:
            use = expert_use(model, exam.bank, exam.rows, runs[0].settings.passages.context).to_json()
    return Kind(kind, tuple(runs), ranks, whole, active, use)


def _settings(recipe: str, rows: int, seeds: int, sets: Sequence[str], kinds: Sequence[str]) -> TrainSettings:
    if seeds < 1:
        raise SettingsError(f"seeds={seeds}: at least 1")
    decided = {"seed", "model", "patience", "seconds", "experts", "lanes"}
    if taken := next((name for name in (s.partition("=")[0] for s in sets) if name in decided), None):
        raise SettingsError(f"{taken} is decided by the experiment; it cannot be set")
    base = override(settings_of(recipe, rows).replaced(model="experts"), sets).replaced(patience=NO_EARLY_STOP, seconds=None)
    for kind in kinds:
        settings_of_kind(base, kind)
    return base
