"""The table of phases: each recipe on the one exam, and the predecessor's climb with its pool and without."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.evaluation import Exam
from nextvec.evaluation.report import HITS
from nextvec.experiments.answers import average, average_lift, kept_at
from nextvec.ranks import Ranks, Rate, candidate_terms
from nextvec.runs import Run

Pool = int | None  # candidates per scored row; None for the whole bank

ORDER = ("broken", "phase1", "phase2", "phase2b", "phase2c", "phase3", "phase3_5", "phase4")
PLANNED = ("phase4",)  # by the predecessor, which never built it
FORMS = ("ours", "published")
RECIPES = (
    *ORDER,
    *(f"{phase}-published" for phase in ORDER if phase not in PLANNED),
    *(f"phase1-published-no-{fix}" for fix in "ABCD"),
)
POOLS: tuple[Pool, ...] = (58, 115, 230, 1000, 1148, None)
FIXED_POOL = 1000

# What the predecessor reported: Hit@5, and among how many of its own validation targets. Phase 2C was never run.
REPORTED: Mapping[str, tuple[float, int]] = {
    "broken": (0.3699, 1149),
    "phase1": (0.5932, 1148),
    "phase2": (0.6652, 230),
    "phase2b": (0.6652, 230),
    "phase3": (0.7565, 115),
    "phase3_5": (0.6207, 58),
}
SOURCE = "reported in the public repository TrentCarter/lnsp-phase-4, training_history.json; among its own validation targets"
SHRINKING = (("phase1", 100, 1148), ("phase2", 500, 230), ("phase3", 1000, 115), ("phase3_5", 2000, 58))


@dataclass(frozen=True)
class Phase:
    """One recipe: its seeds as one answer, beside the phase before it and everything that learns nothing.

    Attributes:
        recipe: its name.
        runs: one per seed.
        answers: by pool, the ranks of every seed.
        baselines: by pool, the ranks of every baseline with this recipe's context.
        full_context: share of scored rows that have the whole context before them.
        pool: that of the headline figures.
        before: what it is measured against: the phase before of the same form,
            and for an ablation what it was taken from.
        use: whom the first seed's predictions heard, of its experts; None where there are none.
        places: which of the scored rows lie in each lane; empty where none were given.
    """

    recipe: str
    runs: tuple[Run, ...]
    answers: Mapping[Pool, tuple[Ranks, ...]]
    baselines: Mapping[Pool, Mapping[str, Ranks]]
    full_context: float
    pool: Pool
    before: "Phase | None" = None
    use: dict[str, Any] | None = None
    places: Mapping[str, Int64[np.ndarray, " kept"]] = field(default_factory=dict)

    @property
    def best_baseline(self) -> str:
        """The one with the highest Hit@5 on this very exam with this context."""
        beside = self.baselines[self.pool]
        return max(beside, key=lambda name: beside[name].hits(5).mean())

    def change(self, k: int = 5) -> Rate | None:
        """Hit@k above the phase before."""
        return average_lift(self.answers[self.pool], self.before.answers[self.pool], k) if self.before else None

    def lift(self, k: int = 5) -> Rate:
        """Hit@k above the best baseline's."""
        return average_lift(self.answers[self.pool], [self.baselines[self.pool][self.best_baseline]], k)

    @property
    def verdict(self) -> str:
        """What the interval of the lift allows to say."""
        lift = self.lift()
        return "above the best baseline" if lift.low > 0 else "below it" if lift.high < 0 else "not shown"

    def _in_lane(self, rows: Int64[np.ndarray, " kept"]) -> dict[str, Any]:
        own = [ranks.only(rows) for ranks in self.answers[self.pool]]
        rival = self.baselines[self.pool][self.best_baseline].only(rows)
        documents = len(np.unique(rival.clusters))
        lift = average_lift(own, [rival], 5).to_json()
        return {"rows": len(rows), "documents": documents, "hit@5": average(own, 5).to_json(), "lift": lift}

    def alarms(self) -> list[str]:
        """Of every seed, named where there are several."""
        return [
            f"seed {run.settings.seed}: {alarm}" if len(self.runs) > 1 else alarm for run in self.runs for alarm in run.alarms()
        ]

    def to_json(self) -> dict[str, Any]:
        phase, form, without = parts_of(self.recipe)
        own = self.answers[self.pool]
        rival = self.baselines[self.pool][self.best_baseline]
        change = self.change()
        return {
            "recipe": self.recipe,
            "phase": phase,
            "form": form,
            "without": without,
            "context": self.runs[0].settings.passages.context,
            "full_context": self.full_context,
            "seeds": [run.settings.seed for run in self.runs],
            **{f"hit@{k}": _over_seeds(own, k) for k in HITS},
            "change": {"from": self.before.recipe, **change.to_json()} if self.before and change else None,
            "baseline": {"name": self.best_baseline, "hit@5": rival.hit(5).to_json()},
            "lift": self.lift().to_json(),
            "chance": own[0].chance(5),
            "by_pool": {pool_name(pool): average(ranks, 5).to_json() for pool, ranks in self.answers.items()},
            "kept_at": [kept_at(run) for run in self.runs],
            "updates": [run.history()[-1]["update"] for run in self.runs],
            "seconds": [round(run.seconds(), 1) for run in self.runs],
            "experts": self.use,
            "lanes": {lane: self._in_lane(rows) for lane, rows in self.places.items()},
            "alarms": self.alarms(),
            "verdict": self.verdict,
            "reported": reported(self.recipe),
        }


@dataclass(frozen=True)
class Step:
    """One phase of the predecessor's climb, on our exam: with the pool it was scored in, and with one that stays.

    Attributes:
        phase, context, pool: the predecessor's.
        untrained: Hit@5 of one untrained predictor; ``shrinking``: in this
            phase's pool, with the first phase's context, so that nothing but
            the pool changes; ``fixed``: in one pool, with this phase's context.
        runs: of every form, Hit@5 of the run trained for this phase, with its own context.
    """

    phase: str
    context: int
    pool: int
    untrained: tuple[Rate, Rate]
    runs: Mapping[str, tuple[Rate, Rate]]

    def to_json(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "context": self.context,
            "pool": self.pool,
            "untrained": _two(self.untrained),
            "runs": {form: _two(rates) for form, rates in self.runs.items()},
            "reported": reported(self.phase),
        }


@dataclass(frozen=True)
class Phases:
    """The table, the illusion, and what was left out.

    Attributes:
        exams: the one exam, by pool: the same rows, nested candidates.
        pool: of the headline figures and of the illusion's fixed line.
        table: one entry per recipe that has a finished run.
        untrained: name of the predictor that the illusion is shown with.
        illusion: the predecessor's climb, step by step.
        waiting: runs that were asked for and have not finished.
    """

    bank: Bank
    exams: Mapping[Pool, Exam]
    pool: Pool
    table: tuple[Phase, ...]
    untrained: str
    illusion: tuple[Step, ...]
    waiting: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        exam = self.exams[self.pool]
        return {
            "bank": {
                "rows": len(self.bank),
                "documents": self.bank.num_documents,
                "encoder": self.bank.manifest.encoder,
                "fingerprint": self.bank.fingerprint,
            },
            "exam": {
                "part": exam.part,
                "rows": len(exam.rows),
                "documents": len(np.unique(exam.clusters)),
                "pool": pool_name(self.pool),
                "candidates": candidate_terms(exam.candidates)["candidates"],
                "by_pool": {pool_name(pool): candidate_terms(sat.candidates)["candidates"] for pool, sat in self.exams.items()},
                "ids": {pool_name(pool): sat.id for pool, sat in self.exams.items()},
            },
            "phases": [phase.to_json() for phase in self.table],
            "illusion": {"untrained": self.untrained, "steps": [step.to_json() for step in self.illusion]},
            "source": SOURCE,
            "waiting": list(self.waiting),
            "notes": list(self.notes),
        }


def parts_of(recipe: str) -> tuple[str, str, str | None]:
    """Phase, form and the fix that is off, from a recipe's name."""
    found = re.fullmatch(r"(.+?)(-published)?(?:-no-([A-D]))?", recipe)
    assert found
    return found[1], FORMS[1] if found[2] else FORMS[0], found[3]


def reported(recipe: str) -> dict[str, float | int] | None:
    """What the predecessor reported for a phase, and among how many candidates."""
    phase, _, without = parts_of(recipe)
    if without or phase not in REPORTED:
        return None
    hit5, candidates = REPORTED[phase]
    return {"hit@5": hit5, "candidates": candidates}


def pool_name(pool: Pool) -> str:
    return "all" if pool is None else str(pool)


def _over_seeds(seeds: Sequence[Ranks], k: int) -> dict[str, float | int]:
    each = [float(ranks.hits(k).mean()) for ranks in seeds]
    return {**average(seeds, k).to_json(), "lowest": min(each), "highest": max(each)}


def _two(rates: tuple[Rate, Rate]) -> dict[str, Any]:
    shrinking, fixed = rates
    return {"shrinking": shrinking.to_json(), "fixed": fixed.to_json()}
