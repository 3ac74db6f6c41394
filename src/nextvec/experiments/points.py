"""The result of a sweep: every point with its seeds, best first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.evaluation.report import HITS
from nextvec.evaluation.results import EvaluationResult
from nextvec.experiments.seeds import average, average_lift
from nextvec.ranks import Ranks, Rate, candidate_terms
from nextvec.runs import Run


@dataclass(frozen=True)
class Trial:
    """One run of a point: its result on the exam, or why it failed; neither before it has ended."""

    run: Run
    result: EvaluationResult | None = None
    failed: str | None = None

    def to_json(self, folder: Path) -> dict[str, Any]:
        history = self.run.history()
        return {
            "seed": self.run.settings.seed,
            "run": str(self.run.path.relative_to(folder)),
            "hit@5": float(self.result.ranks.hits(5).mean()) if self.result else None,
            "updates": history[-1]["update"] if history else 0,
            "seconds": self.run.seconds(),
            "finished": self.run.finished,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class Point:
    """One value for every swept setting, and a run for every seed.

    Attributes:
        values: by setting.
        trials: one per seed.
    """

    values: Mapping[str, Any]
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """``lr=0.001,hidden=64``: its name, also on disk."""
        return ",".join(assignments(self.values))

    @property
    def ranks(self) -> list[Ranks]:
        """The ranks of the runs that finished."""
        return [trial.result.ranks for trial in self.trials if trial.result]

    @property
    def whole(self) -> bool:
        """Whether every seed has finished."""
        return len(self.ranks) == len(self.trials)

    def with_trial(self, ended: Trial) -> "Point":
        """This point with the end of one of its runs; unchanged where the run is not one of its runs."""
        return replace(self, trials=tuple(ended if t.run.path == ended.run.path else t for t in self.trials))

    def hit(self, k: int) -> Rate:
        """Hit@k; the hits of every row are averaged over seeds first, because more seeds are not more rows."""
        return average(self.ranks, k)

    def lift(self, other: "Point", k: int = 5) -> Rate:
        """Hit@k minus that of another point, each averaged over its seeds, paired by row."""
        return average_lift(self.ranks, other.ranks, k)

    def to_json(self, folder: Path, best: "Point | None") -> dict[str, Any]:
        hits = [float(ranks.hits(5).mean()) for ranks in self.ranks]
        found: dict[str, Any] = {"values": dict(self.values), "seeds": [trial.to_json(folder) for trial in self.trials]}
        if hits:
            lift = self.lift(best) if best else None
            found |= {f"hit@{k}": self.hit(k).to_json() for k in HITS}
            found |= {"lowest_seed": min(hits), "highest_seed": max(hits), "over_best": lift.to_json() if lift else None}
        return found


@dataclass(frozen=True)
class Sweep:
    """Every point of a sweep, best first.

    Attributes:
        folder: of the runs; recipe, bank: what they were trained with and on.
        points: by falling mean Hit@5 over seeds; points that lack a seed come last.
    """

    folder: Path
    recipe: str
    bank: str
    points: tuple[Point, ...]

    @staticmethod
    def of(folder: Path, recipe: str, bank: Bank, points: Iterable[Point]) -> "Sweep":
        def order(point: Point) -> tuple[bool, float]:
            return not point.whole, -point.hit(5).value if point.ranks else 0.0

        return Sweep(folder, recipe, bank.fingerprint, tuple(sorted(points, key=order)))

    @property
    def best(self) -> Point | None:
        """The first point, if all its seeds have finished."""
        return self.points[0] if self.points and self.points[0].whole else None

    @property
    def failed(self) -> list[Trial]:
        return [trial for point in self.points for trial in point.trials if trial.failed]

    def to_json(self) -> dict[str, Any]:
        trials = [trial for point in self.points for trial in point.trials]
        result = next((trial.result for trial in trials if trial.result), None)
        return {
            "recipe": self.recipe,
            "bank": self.bank,
            "exam": {
                "id": result.exam if result else None,
                "part": "valid",
                "rows": len(result.ranks) if result else None,
                "documents": len(np.unique(result.ranks.clusters)) if result else None,
                **(candidate_terms(result.ranks.candidates) if result else {"pool": None, "candidates": None}),
                "chance@5": result.ranks.chance(5) if result else None,
            },
            "runs": len(trials),
            "finished": sum(trial.result is not None for trial in trials),
            "failed": len(self.failed),
            "best": self.best.name if self.best else None,
            "points": [point.to_json(self.folder, self.best) for point in self.points],
        }


def assignments(values: Mapping[str, object]) -> list[str]:
    """``name=value`` of each, as ``--set`` takes them."""
    return [f"{name}={_word(value)}" for name, value in values.items()]


def _word(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
