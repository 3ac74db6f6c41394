"""The results of the context experiment: the effect of each treatment, and the verdicts that their intervals allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextvec.evaluation import Exam
from nextvec.ranks import Rate, candidate_terms

SHUFFLED, FOREIGN, REMOVED = "far part shuffled", "far part of another document", "far part left out"


@dataclass(frozen=True)
class Effect:
    """The effect of one treatment of the context.

    Attributes:
        name: of the treatment.
        hit5: averaged over seeds, row by row.
        seeds: Hit@5 of every seed.
        change: against its reference, paired by row.
        full: both figures over only the rows that have the longest context before
            them; None where all rows have it, or too few.
    """

    name: str
    hit5: Rate
    seeds: tuple[float, ...]
    change: Rate
    full: tuple[Rate, Rate] | None

    def to_json(self) -> dict[str, Any]:
        full = {"hit@5": self.full[0].to_json(), "change": self.full[1].to_json()} if self.full else None
        each = {"lowest": min(self.seeds), "highest": max(self.seeds)}
        return {"name": self.name, "hit@5": {**self.hit5.to_json(), **each}, "change": self.change.to_json(), "full": full}


@dataclass(frozen=True)
class Trained:
    """Runs of one context: their training, their figures, and the best baseline with that context.

    Attributes:
        context, batch: of the runs; targets: scored rows of an update, on average.
        updates, kept_at, seconds: of every seed; ``kept_at`` is 0 where the untrained model was kept.
        full_context: share of scored rows that have this context before them.
        effect: Hit@5, and its change against the shortest context.
        baseline: name of the best baseline with this context, its Hit@5, and the lift over it.
    """

    context: int
    batch: int
    targets: float
    updates: tuple[int, ...]
    kept_at: tuple[int, ...]
    seconds: tuple[float, ...]
    full_context: float
    effect: Effect
    baseline: tuple[str, Rate, Rate]

    def to_json(self) -> dict[str, Any]:
        name, hit5, lift = self.baseline
        return {
            **self.effect.to_json(),
            "context": self.context,
            "batch": self.batch,
            "targets_per_update": round(self.targets, 1),
            "updates": list(self.updates),
            "kept_at": list(self.kept_at),
            "seconds": [round(seconds, 1) for seconds in self.seconds],
            "full_context": self.full_context,
            "baseline": {"name": name, "hit@5": hit5.to_json()},
            "lift": lift.to_json(),
        }


@dataclass(frozen=True)
class ContextExperiment:
    """The results of all treatments.

    Attributes:
        exam: the one exam; history: rows that each scored row has before it, at least.
        trained: one per trained context, shortest first.
        truncated: the longest-context model with fewer vectors to read, against its full context.
        disturbed: the same model with its far context shuffled, replaced or left out, against the intact context.
        near: vectors that stay intact; far_share: share of scored rows that have any before those.
        full_rows: scored rows that have the longest context before them.
    """

    recipe: str
    seeds: int
    exam: Exam
    history: int
    trained: tuple[Trained, ...]
    truncated: tuple[Effect, ...]
    disturbed: tuple[Effect, ...]
    near: int
    far_share: float
    full_rows: int
    verdicts: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        exam = self.exam
        return {
            "recipe": self.recipe,
            "seeds": self.seeds,
            "bank": {
                "rows": len(exam.bank),
                "documents": exam.bank.num_documents,
                "encoder": exam.bank.manifest.encoder,
                "fingerprint": exam.bank.fingerprint,
            },
            "exam": {
                "id": exam.id,
                "part": exam.part,
                "rows": len(exam.rows),
                "documents": len(np.unique(exam.clusters)),
                **candidate_terms(exam.candidates),
                "history": self.history,
            },
            "longest": self.trained[-1].context,
            "full": {"rows": self.full_rows, "share": self.full_rows / len(exam.rows)},
            "trained": [trained.to_json() for trained in self.trained],
            "truncated": [effect.to_json() for effect in self.truncated],
            "disturbed": {"near": self.near, "far_share": self.far_share, "effects": [e.to_json() for e in self.disturbed]},
            "verdicts": list(self.verdicts),
            "notes": list(self.notes),
        }


def verdicts(trained: Sequence[Trained], disturbed: Sequence[Effect], near: int) -> tuple[str, ...]:
    shortest = trained[0].effect.name
    trained_verdicts = [f"context {t.effect.name} {_worth(t.effect.change, shortest)}" for t in trained[1:]]
    effects = {effect.name: effect.change for effect in disturbed}
    return (*trained_verdicts, _reading(effects, near))


def _worth(change: Rate, shortest: str) -> str:
    points = f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"
    if change.low > 0:
        return f"gains {points} points of Hit@5 over {shortest}"
    if change.high < 0:
        return f"loses {points} points of Hit@5 against {shortest}"
    return f"is not shown to differ from {shortest}: {points} points of Hit@5"


def _reading(changes: Mapping[str, Rate], near: int) -> str:
    """The verdict on the far context: its order matters, or only its content, or neither is shown."""
    far = f"the context beyond the last {near:,} vectors"
    order, other = changes[SHUFFLED], changes.get(FOREIGN, changes[REMOVED])
    if order.high < 0:
        return f"{far} has an effect, and so has its order"
    if other.high < 0:
        return f"{far} has an effect, but its order is not shown to have one"
    return f"{far} is not shown to have an effect"
