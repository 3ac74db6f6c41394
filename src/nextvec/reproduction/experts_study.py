"""Are experts worth anything? The same model with and without them, at equal and at equal active parameters, on one exam."""

# Axes: R scored rows.

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.errors import SettingsError, did_you_mean
from nextvec.evaluation import Exam
from nextvec.evaluation.by_lane import Json, expert_use, places_by_lane
from nextvec.evaluation.runs import sittings
from nextvec.experiments.answers import average, average_lift, few_documents, kept_at
from nextvec.experiments.context import NEVER
from nextvec.experiments.runs import Plan, train_all
from nextvec.lanes import Lanes
from nextvec.models import ExpertGRU
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks, candidate_terms
from nextvec.recipes import recipe as settings_of
from nextvec.runs import Run, TrainSettings, load_model
from nextvec.settings import override
from nextvec.windows import split

WHOLE, ACTIVE, TOTAL = "one", "active", "total"
KINDS: Mapping[str, str] = {
    WHOLE: "one model, no experts",
    ACTIVE: "one expert for all: equal active parameters",
    TOTAL: "one expert as large as all: equal parameters",
    "descriptions": "experts, lanes by description",
    "clusters": "experts, lanes by k-means",
    "random": "experts, random lanes",
    "adapters": "narrow experts beside a shared block, top-2, gate on lane and state",
    "constants": "four narrow experts of documents beside a shared block, each with a constant of its own",
    "stages": "top-2, gate on lane and state, experts first, then the gate",
}


@dataclass(frozen=True, eq=False)
class Kind:
    """One way to have experts, or none: its runs, one per seed, and their answers to the exam.

    Attributes:
        parameters, active: of the whole model, and of what one position computes.
        use: of the first seed's experts; None where there are none.
    """

    name: str
    runs: tuple[Run, ...]
    ranks: tuple[Ranks, ...]
    parameters: int
    active: int
    use: Json | None

    def to_json(self, others: "Mapping[str, Kind]", places: Mapping[str, Int64[np.ndarray, " kept"]]) -> Json:
        def lift(other: "Kind", rows: Int64[np.ndarray, " kept"] | None = None) -> Json:
            a, b = ((kind.ranks if rows is None else [r.only(rows) for r in kind.ranks]) for kind in (self, other))
            return average_lift(a, b, 5).to_json()

        beside = {name: other for name, other in others.items() if name in (WHOLE, ACTIVE, TOTAL) and other is not self}
        return {
            "kind": self.name,
            "what": KINDS[self.name],
            "parameters": self.parameters,
            "active": self.active,
            "seeds": [float(ranks.hits(5).mean()) for ranks in self.ranks],
            **{f"hit@{k}": average(self.ranks, k).to_json() for k in (1, 5, 10)},
            "lift": {name: lift(other) for name, other in beside.items()},
            "lanes": {
                lane: {"hit@5": average([r.only(rows) for r in self.ranks], 5).to_json()}
                | {"lift": {name: lift(other, rows) for name, other in beside.items()}}
                for lane, rows in places.items()
            },
            "experts": self.use,
            "kept_at": [kept_at(run) for run in self.runs],
            "seconds": [round(run.seconds(), 1) for run in self.runs],
        }


def experts_experiment(
    folder: str | Path,
    bank: Bank,
    lanes: Lanes | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    seeds: int = 3,
    recipe: str = "default",
    sets: Sequence[str] = (),
    jobs: int = 1,
    rows: int = 2000,
    pool: int | None = 1000,
    progress: Progress = silent,
) -> Json:
    """Train one run per kind and seed, all with equal updates, and let them sit one exam.

    ``folder/experts.json`` is written at the end. Killed at any moment, the same call goes on.

    Args:
        lanes: of the bank, to tell the figures lane by lane.
        kinds: of :data:`KINDS`.
        sets: ``name=value`` settings that every run is changed by.
        jobs: runs trained at a time.
        rows: scored rows at most; pool: candidates each, None for the whole bank.

    Raises:
        SettingsError: an unknown kind, recipe or setting, or one that the experiment decides.
        DataError: lanes by description of a bank whose encoder is unknown or not installed.
        ExamError: too little to score, or a pool that a scored row cannot fill.
        RunError: the folder holds runs with other settings or of another bank.
    """
    folder, base = Path(folder), _settings(recipe, len(bank), seeds, sets, kinds)
    exam = Exam.over(bank, split(bank, base.valid, base.test).test, "test", pool, rows)
    plans = [
        Plan(folder / kind / f"seed-{seed}", recipe, replace(changed(base, kind), seed=seed))
        for kind in kinds
        for seed in range(seeds)
    ]
    runs = train_all(plans, bank, jobs, progress)
    found: dict[str, Kind] = {}
    for n, kind in enumerate(kinds):
        progress("examining", n, len(kinds))
        found[kind] = _examined(kind, runs[n * seeds : (n + 1) * seeds], exam, pool, rows)
    progress("examining", len(kinds), len(kinds))
    places = places_by_lane(lanes, bank, exam.rows) if lanes else {}
    content: dict[str, Any] = {
        "recipe": recipe,
        "sets": list(sets),
        "exam": {
            "id": exam.id,
            "rows": len(exam.rows),
            **candidate_terms(exam.candidates),
            "documents": len(np.unique(exam.clusters)),
        },
        "lanes": {
            lane: {"rows": len(places[lane]), "documents": len(np.unique(exam.clusters[places[lane]]))} for lane in places
        },
        "kinds": [kind.to_json(found, places) for kind in found.values()],
        "notes": few_documents(exam.clusters),
    }
    write_atomically(folder / "experts.json", json.dumps(content, indent=1) + "\n")
    return content


def changed(base: TrainSettings, kind: str) -> TrainSettings:
    """The settings of a kind, from those that all share.

    Raises:
        SettingsError: no such kind.
    """
    if kind == WHOLE:
        return replace(base, model="memory_gru")
    s = replace(base, model="experts")
    match kind:
        case "active":
            return replace(s, experts=1)
        case "total":
            return replace(s, experts=1, expert_width=s.experts * s.expert_width)
        case "descriptions" | "clusters" | "random":
            return replace(s, lanes=kind)
        case "adapters":
            return replace(s, expert_width=max(1, s.expert_width // 8), common_width=s.expert_width, gate_on="both", top=2)
        case "constants":
            narrow = replace(s, expert_width=max(1, s.expert_width // 8), common_width=s.expert_width)
            return replace(narrow, experts=4, constants=True, route_per="document")
        case "stages":
            return replace(s, gate_on="both", top=2, router=0.25, balance=0.01)
        case _:
            raise SettingsError(f"there is no kind {kind!r}; {did_you_mean(kind, KINDS)}")


def _examined(kind: str, runs: Sequence[Run], exam: Exam, pool: int | None, rows: int) -> Kind:
    sat = [sittings(run, exam.bank, "test", pools=(pool,), max_rows=rows)[0].ranks for run in runs]
    model, _ = load_model(runs[0])
    whole = active = sum(parameter.numel() for parameter in model.parameters())
    use = None
    if isinstance(model, ExpertGRU):
        each = sum(parameter.numel() for parameter in model.experts.blocks[0].parameters())
        active -= (model.lanes.count - model.gate.top) * each
        if model.lanes.count > 1:
            use = expert_use(model, exam.bank, exam.rows, runs[0].settings.context).to_json()
    return Kind(kind, tuple(runs), tuple(sat), whole, active, use)


def _settings(recipe: str, rows: int, seeds: int, sets: Sequence[str], kinds: Sequence[str]) -> TrainSettings:
    if seeds < 1:
        raise SettingsError(f"seeds={seeds}: at least 1")
    decided = {"seed", "model", "patience", "seconds", "experts", "lanes"}
    if taken := next((name for name in (s.partition("=")[0] for s in sets) if name in decided), None):
        raise SettingsError(f"{taken} is decided by the experiment; it cannot be set")
    base = replace(override(settings_of(recipe, rows), sets), patience=NEVER, seconds=None)
    for kind in kinds:
        changed(base, kind)
    return base
