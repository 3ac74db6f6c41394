"""What a sweep found: every point with its seeds, and the best first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.evaluation.report import HITS
from nextvec.evaluation.runs import Sitting
from nextvec.experiments.answers import average, average_lift
from nextvec.ranks import Ranks, Rate, candidate_terms
from nextvec.runs import Run


@dataclass(frozen=True)
class Trial:
    """One run of a point: its ranks on the exam, or what it failed of; neither while it has not ended."""

    run: Run
    sitting: Sitting | None = None
    failed: str | None = None

    def to_json(self, folder: Path) -> dict[str, Any]:
        history = self.run.history()
        return {
            "seed": self.run.settings.seed,
            "run": str(self.run.path.relative_to(folder)),
            "hit@5": float(self.sitting.ranks.hits(5).mean()) if self.sitting else None,
            "updates": history[-1]["update"] if history else 0,
            "seconds": self.run.seconds(),
            "finished": self.run.finished,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class Point:
    """Some values of the settings that are swept, and a run for every seed.

    Attributes:
        values: by setting.
        trials: one a seed.
    """

    values: Mapping[str, Any]
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """``lr=0.001,hidden=64``: what it is called, also on disk."""
        return ",".join(assignments(self.values))

    @property
    def sat(self) -> list[Ranks]:
        """Of the runs that finished."""
        return [trial.sitting.ranks for trial in self.trials if trial.sitting]

    @property
    def whole(self) -> bool:
        """Whether every seed has finished."""
        return len(self.sat) == len(self.trials)

    def with_trial(self, ended: Trial) -> "Point":
        """This point, with what became of one of its runs, if it is one of its runs."""
        return replace(self, trials=tuple(ended if t.run.path == ended.run.path else t for t in self.trials))

    def hit(self, k: int) -> Rate:
        """Hit@k, with the hits of every row averaged over seeds first: more seeds are not more rows."""
        return average(self.sat, k)

    def lift(self, other: "Point", k: int = 5) -> Rate:
        """Hit@k above another point's, each averaged over its seeds, paired by row."""
        return average_lift(self.sat, other.sat, k)

    def to_json(self, folder: Path, best: "Point | None") -> dict[str, Any]:
        hits = [float(ranks.hits(5).mean()) for ranks in self.sat]
        found: dict[str, Any] = {"values": dict(self.values), "seeds": [trial.to_json(folder) for trial in self.trials]}
        if hits:
            lift = self.lift(best) if best else None
            found |= {f"hit@{k}": self.hit(k).to_json() for k in HITS}
            found |= {"lowest_seed": min(hits), "highest_seed": max(hits), "over_best": lift.to_json() if lift else None}
        return found


@dataclass(frozen=True)
class Sweep:
    """What was asked, and every point, best first.

    Attributes:
        folder: where the runs lie; recipe, bank: what they were trained by and on.
        points: by mean Hit@5 over seeds, falling; those that lack a seed come last.
    """

    folder: Path
    recipe: str
    bank: str
    points: tuple[Point, ...]

    @staticmethod
    def of(folder: Path, recipe: str, bank: Bank, points: Iterable[Point]) -> "Sweep":
        def order(point: Point) -> tuple[bool, float]:
            return not point.whole, -point.hit(5).value if point.sat else 0.0

        return Sweep(folder, recipe, bank.fingerprint, tuple(sorted(points, key=order)))

    @property
    def best(self) -> Point | None:
        """The first point of which every seed has finished."""
        return self.points[0] if self.points and self.points[0].whole else None

    @property
    def failed(self) -> list[Trial]:
        return [trial for point in self.points for trial in point.trials if trial.failed]

    def to_json(self) -> dict[str, Any]:
        trials = [trial for point in self.points for trial in point.trials]
        sat = next((trial.sitting for trial in trials if trial.sitting), None)
        return {
            "recipe": self.recipe,
            "bank": self.bank,
            "exam": {
                "id": sat.exam if sat else None,
                "part": "valid",
                "rows": len(sat.ranks) if sat else None,
                "documents": len(np.unique(sat.ranks.clusters)) if sat else None,
                **(candidate_terms(sat.ranks.candidates) if sat else {"pool": None, "candidates": None}),
                "chance@5": sat.ranks.chance(5) if sat else None,
            },
            "runs": len(trials),
            "finished": sum(trial.sitting is not None for trial in trials),
            "failed": len(self.failed),
            "best": self.best.name if self.best else None,
            "points": [point.to_json(self.folder, self.best) for point in self.points],
        }


def assignments(values: Mapping[str, object]) -> list[str]:
    """``name=value`` of each, as ``--set`` takes them."""
    return [f"{name}={_word(value)}" for name, value in values.items()]


def _word(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
