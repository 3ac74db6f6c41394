"""The table of phases: every recipe on one exam, and the predecessor's rise with its shrinking pool and with a fixed one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.evaluation import Exam
from nextvec.evaluation.report import HITS
from nextvec.experiments.seeds import average, average_lift, kept_at
from nextvec.ranks import Ranks, Rate, candidate_terms
from nextvec.reproduction.reported import SOURCE, Pool, parts_of, reported
from nextvec.runs import Run


@dataclass(frozen=True)
class Phase:
    """One recipe: the ranks of its seeds, the phase before it, and the baselines.

    Attributes:
        recipe: its name.
        runs: one per seed.
        ranks: by pool, of every seed.
        baselines: by pool, the ranks of every baseline with this recipe's context.
        full_context: share of scored rows that have the whole context before them.
        pool: that of the headline figures.
        before: the reference of the change: the phase before, of the same form;
            for an ablation, the recipe without the ablation.
        use: the experts that were active in the predictions of the first seed; None for a model without experts.
        places: the scored rows of each lane; empty without lanes.
    """

    recipe: str
    runs: tuple[Run, ...]
    ranks: Mapping[Pool, tuple[Ranks, ...]]
    baselines: Mapping[Pool, Mapping[str, Ranks]]
    full_context: float
    pool: Pool
    before: "Phase | None" = None
    use: dict[str, Any] | None = None
    places: Mapping[str, Int64[np.ndarray, " kept"]] = field(default_factory=dict)

    @property
    def best_baseline(self) -> str:
        """The baseline with the highest Hit@5 on this exam with this context."""
        ranked = self.baselines[self.pool]
        return max(ranked, key=lambda name: ranked[name].hits(5).mean())

    def change(self, k: int = 5) -> Rate | None:
        """Hit@k minus that of the phase before."""
        return average_lift(self.ranks[self.pool], self.before.ranks[self.pool], k) if self.before else None

    def lift(self, k: int = 5) -> Rate:
        """Hit@k minus that of the best baseline."""
        return average_lift(self.ranks[self.pool], [self.baselines[self.pool][self.best_baseline]], k)

    @property
    def verdict(self) -> str:
        """Whether the interval of the lift shows the phase to be above or below the best baseline."""
        lift = self.lift()
        return "above the best baseline" if lift.low > 0 else "below it" if lift.high < 0 else "not shown"

    def _in_lane(self, rows: Int64[np.ndarray, " kept"]) -> dict[str, Any]:
        own = [ranks.only(rows) for ranks in self.ranks[self.pool]]
        baseline = self.baselines[self.pool][self.best_baseline].only(rows)
        documents = len(np.unique(baseline.clusters))
        lift = average_lift(own, [baseline], 5).to_json()
        return {"rows": len(rows), "documents": documents, "hit@5": average(own, 5).to_json(), "lift": lift}

    def alarms(self) -> list[str]:
        """The alarms of every seed; they name the seed where there are several."""
        return [
            f"seed {run.settings.seed}: {alarm}" if len(self.runs) > 1 else alarm for run in self.runs for alarm in run.alarms()
        ]

    def to_json(self) -> dict[str, Any]:
        phase, form, without = parts_of(self.recipe)
        own = self.ranks[self.pool]
        baseline = self.baselines[self.pool][self.best_baseline]
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
            "baseline": {"name": self.best_baseline, "hit@5": baseline.hit(5).to_json()},
            "lift": self.lift().to_json(),
            "chance": own[0].chance(5),
            "by_pool": {pool_name(pool): average(seeds, 5).to_json() for pool, seeds in self.ranks.items()},
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
    """One phase of the predecessor's rise, on our exam: in the pool of the phase, and in one fixed pool.

    Attributes:
        phase, context, pool: of the predecessor.
        untrained: Hit@5 of one untrained predictor, first in this phase's pool
            with the first phase's context, so that only the pool changes
            (``shrinking``), then in the fixed pool with this phase's context (``fixed``).
        runs: for every form, both Hit@5 of the run of this phase, with its own context.
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
    """The table of phases, and the effect of the shrinking pool.

    Attributes:
        exams: by pool, of the same rows; each pool holds the smaller ones.
        pool: of the headline figures, and the fixed one.
        table: one entry per recipe that has a finished run.
        untrained: name of the untrained predictor in ``steps``.
        steps: the predecessor's rise, phase by phase; empty where the exam lacks its pools.
        waiting: planned runs that have not finished.
    """

    bank: Bank
    exams: Mapping[Pool, Exam]
    pool: Pool
    table: tuple[Phase, ...]
    untrained: str
    steps: tuple[Step, ...]
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
                "by_pool": {
                    pool_name(pool): candidate_terms(each.candidates)["candidates"] for pool, each in self.exams.items()
                },
                "ids": {pool_name(pool): each.id for pool, each in self.exams.items()},
            },
            "phases": [phase.to_json() for phase in self.table],
            "illusion": {"untrained": self.untrained, "steps": [step.to_json() for step in self.steps]},
            "source": SOURCE,
            "waiting": list(self.waiting),
            "notes": list(self.notes),
        }


def pool_name(pool: Pool) -> str:
    return "all" if pool is None else str(pool)


def _over_seeds(seeds: Sequence[Ranks], k: int) -> dict[str, float | int]:
    each = [float(ranks.hits(k).mean()) for ranks in seeds]
    return {**average(seeds, k).to_json(), "lowest": min(each), "highest": max(each)}


def _two(rates: tuple[Rate, Rate]) -> dict[str, Any]:
    shrinking, fixed = rates
    return {"shrinking": shrinking.to_json(), "fixed": fixed.to_json()}
