"""Two runs, one exam: which is better, by how much, and how long each needed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import ExamError, SettingsError
from nextvec.evaluation.by_lane import lane_figures, places_by_lane
from nextvec.evaluation.report import HITS
from nextvec.evaluation.runs import OWN_CONTEXT, Sitting, sittings
from nextvec.lanes import Lanes
from nextvec.progress import Progress, silent
from nextvec.ranks import Rate, candidate_terms, paired_lift
from nextvec.runs import Run

NOWHERE = np.array([], np.int64)
Verdict = Literal["better", "worse", "cannot be told apart"]


@dataclass(frozen=True)
class Race:
    """How long two runs trained until their looks at the valid exam reached one Hit@5: the second run's best.

    Attributes:
        hit5: that best; None where the two looked at different valid exams.
        a_seconds, b_seconds: until the first look that was as good; None where none was.
    """

    hit5: float | None
    a_seconds: float | None
    b_seconds: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast the first was there; seconds of one machine only."""
        return self.b_seconds / self.a_seconds if self.a_seconds and self.b_seconds else None

    def to_json(self) -> dict[str, float | None]:
        return {"hit@5": self.hit5, "a_seconds": self.a_seconds, "b_seconds": self.b_seconds, "ratio": self.ratio}


@dataclass(frozen=True)
class Comparison:
    """Two runs that sat the same exam: each one's figures, and the first's lift over the second.

    Attributes:
        a, b: the runs.
        part: whose documents were examined.
        sat_a, sat_b: their ranks, and the context each read.
        race: time to reach the second run's best.
        lanes: which of the scored rows lie in each lane; empty where none were given.
        experts: by lane, the runs that answered in the first's place.
    """

    a: Run
    b: Run
    part: str
    sat_a: Sitting
    sat_b: Sitting
    race: Race
    lanes: Mapping[str, Int64[np.ndarray, " kept"]] = field(default_factory=dict)
    experts: Mapping[str, Run] = field(default_factory=dict)

    def lift(self, k: int = 5) -> Rate:
        """Hit@k of the first above the second's, paired by row, resampled by document."""
        return paired_lift(self.sat_a.ranks, self.sat_b.ranks, k)

    def verdict(self, k: int = 5) -> Verdict:
        """What the interval of the lift allows to say of the first run."""
        lift = self.lift(k)
        return "better" if lift.low > 0 else "worse" if lift.high < 0 else "cannot be told apart"

    def to_json(self) -> dict[str, Any]:
        ranks = self.sat_a.ranks
        return {
            "exam": {
                "id": self.sat_a.exam,
                "part": self.part,
                "rows": len(ranks),
                "documents": len(np.unique(ranks.clusters)),
                **candidate_terms(ranks.candidates),
                "bank": self.a.origin.bank,
                "chance": {f"hit@{k}": ranks.chance(k) for k in HITS},
            },
            "a": _figures(self.a, self.sat_a),
            "b": _figures(self.b, self.sat_b),
            "lift": {f"hit@{k}": {**self.lift(k).to_json(), "verdict": self.verdict(k)} for k in HITS},
            "verdict": self.verdict(),
            "time_to_reach": self.race.to_json(),
            "lanes": lane_figures(self.lanes, self.sat_a.ranks, self.sat_b.ranks, HITS),
            "experts": {lane: str(run.path) for lane, run in self.experts.items()},
        }


def compare(
    a: Run,
    b: Run,
    bank: Bank,
    part: Literal["valid", "test"] = "test",
    context: int | None = OWN_CONTEXT,
    pool: int | None = 1000,
    rows: int = 2000,
    progress: Progress = silent,
    lanes: Lanes | None = None,
    experts: Mapping[str, Run] | None = None,
) -> Comparison:
    """Let two runs sit the same exam, on the bank that both were trained on.

    Args:
        context: vectors read at most before each scored row; None for all its
            document has; by default what each run was trained with.
        pool: candidates per scored row; None for the whole bank.
        rows: scored rows at most.
        lanes: of that bank, to tell the lift lane by lane.
        experts: by lane, runs that answer it in the first's place, as a server routes by lane.

    Raises:
        SettingsError: an expert of a lane that is none.
        ExamError: they were trained on different banks or hold out different documents.
        RunError: an untrained run.
    """
    _refuse_other_documents(a, b, bank, part)
    sat_a, sat_b = (sittings(run, bank, part, context, (pool,), rows, progress)[0] for run in (a, b))
    places = places_by_lane(lanes, bank, sat_a.rows) if lanes else {}
    for lane, run in (experts or {}).items():
        if lanes is None or lane not in lanes.names:
            known = ", ".join(lanes.names) if lanes else "none without lanes"
            raise SettingsError(f"an expert answers lane {lane!r}; known: {known}")
        _refuse_known_documents(run, b, bank)
        sat = sittings(run, bank, part, context, (pool,), rows, progress)[0]
        sat_a = replace(sat_a, ranks=sat_a.ranks.replaced(places.get(lane, NOWHERE), sat.ranks))
    return Comparison(a, b, part, sat_a, sat_b, race(a, b), places, experts or {})


def race(a: Run, b: Run) -> Race:
    """How long ``a`` and ``b`` trained until they reached the best valid Hit@5 of ``b``."""
    best = b.best_hit5
    if best is None or not _same_looks(a, b):
        return Race(None, None, None)
    return Race(best, _seconds_until(a, best), _seconds_until(b, best))


def _same_looks(a: Run, b: Run) -> bool:
    def looked_at(run: Run) -> tuple[Any, ...]:
        return run.origin.bank, set(run.origin.parts["valid"]), run.settings.validation.pool

    return looked_at(a) == looked_at(b)


def _seconds_until(run: Run, hit5: float) -> float | None:
    clock = dict(run.timing().clock)
    return next((clock.get(look["update"]) for look in run.history() if look["valid"]["hit@5"] >= hit5), None)


def _refuse_known_documents(expert: Run, b: Run, bank: Bank) -> None:
    if expert.origin.bank != bank.fingerprint or set(expert.origin.parts["train"]) & set(b.origin.parts["test"]):
        raise ExamError(
            f"{expert.path} was trained on another bank, or on test documents of {b.path}; train it beside that run"
        )


def _refuse_other_documents(a: Run, b: Run, bank: Bank, part: Literal["valid", "test"]) -> None:
    for run in (a, b):
        if run.origin.bank != bank.fingerprint:
            raise ExamError(
                f"{run.path} was trained on another bank than {bank.path or 'this one'}; "
                "runs are compared on the bank that both were trained on"
            )
    for one, other in ((a, b), (b, a)):
        known = set(one.origin.parts["train"]) & set(other.origin.parts["test"])
        if known:
            raise ExamError(
                f"{one.path} was trained on {len(known)} test documents of {other.path}; "
                "train both with the same valid and test"
            )
    held = [set(run.origin.parts[part]) for run in (a, b)]
    if held[0] != held[1]:
        raise ExamError(
            f"{a.path} and {b.path} hold out different {part} documents ({len(held[0])} and {len(held[1])}); "
            "train both with the same valid and test"
        )


def _figures(run: Run, sat: Sitting) -> dict[str, Any]:
    hits = {f"hit@{k}": sat.ranks.hit(k).to_json() for k in HITS}
    return {"run": str(run.path), "recipe": run.recipe, "context": sat.context, **hits, "mrr": sat.ranks.mrr().to_json()}
