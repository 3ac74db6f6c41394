"""Comparison of two runs on one exam: which is better, by how much, and how long each took to train."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import ExamError, SettingsError
from nextvec.evaluation.by_lane import lane_figures, places_by_lane
from nextvec.evaluation.report import HITS
from nextvec.evaluation.results import OWN_CONTEXT, EvaluationResult, evaluation_results, held_out_exam
from nextvec.lanes import Lanes
from nextvec.progress import Progress, silent
from nextvec.ranks import Rate, candidate_terms, paired_lift
from nextvec.runs import Run

NO_ROWS = np.array([], np.int64)
Verdict = Literal["better", "worse", "cannot be told apart"]


@dataclass(frozen=True)
class TimeToReach:
    """How long two runs trained until one of their validations reached a Hit@5: the best one of the second run.

    Attributes:
        hit5: that Hit@5; None where the two runs were validated on different exams.
        a_seconds, b_seconds: until the first validation that was as good; None where none was.
    """

    hit5: float | None
    a_seconds: float | None
    b_seconds: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast the first run was; only comparable for runs of one machine."""
        return self.b_seconds / self.a_seconds if self.a_seconds and self.b_seconds else None

    def to_json(self) -> dict[str, float | None]:
        return {"hit@5": self.hit5, "a_seconds": self.a_seconds, "b_seconds": self.b_seconds, "ratio": self.ratio}


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same exam: the figures of each, and the lift of the first over the second.

    Attributes:
        a, b: the runs.
        part: of the split, whose documents were scored.
        result_a, result_b: their ranks, and the context that each read.
        time: to reach the best validation of the second run.
        lanes: the scored rows of each lane; empty without lanes.
        experts: by lane, the runs whose predictions replace those of the first.
    """

    a: Run
    b: Run
    part: str
    result_a: EvaluationResult
    result_b: EvaluationResult
    time: TimeToReach
    lanes: Mapping[str, Int64[np.ndarray, " kept"]] = field(default_factory=dict)
    experts: Mapping[str, Run] = field(default_factory=dict)

    def lift(self, k: int = 5) -> Rate:
        """Hit@k of the first run minus that of the second, paired by row, resampled by document."""
        return paired_lift(self.result_a.ranks, self.result_b.ranks, k)

    def verdict(self, k: int = 5) -> Verdict:
        """Whether the interval of the lift shows the first run to be better or worse."""
        lift = self.lift(k)
        return "better" if lift.low > 0 else "worse" if lift.high < 0 else "cannot be told apart"

    def to_json(self) -> dict[str, Any]:
        ranks = self.result_a.ranks
        return {
            "exam": {
                "id": self.result_a.exam,
                "part": self.part,
                "rows": len(ranks),
                "documents": len(np.unique(ranks.clusters)),
                **candidate_terms(ranks.candidates),
                "bank": self.a.origin.bank,
                "chance": {f"hit@{k}": ranks.chance(k) for k in HITS},
            },
            "a": _figures(self.a, self.result_a),
            "b": _figures(self.b, self.result_b),
            "lift": {f"hit@{k}": {**self.lift(k).to_json(), "verdict": self.verdict(k)} for k in HITS},
            "verdict": self.verdict(),
            "time_to_reach": self.time.to_json(),
            "lanes": lane_figures(self.lanes, self.result_a.ranks, self.result_b.ranks, HITS),
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
    """Evaluate two runs on the same exam, over the bank that both were trained on.

    Args:
        context: vectors read at most before each scored row; None for all its
            document has; by default what each run was trained with.
        pool: candidates per scored row; None for the whole bank.
        rows: scored rows at most.
        lanes: of that bank, for the lift of each lane.
        experts: by lane, runs whose predictions replace those of the first, as a server routes by lane.

    Raises:
        SettingsError: an expert of an unknown lane.
        ExamError: they were trained on different banks or hold out different documents.
        RunError: an untrained run.
    """
    check_comparable(a, b, bank, part)
    exam = held_out_exam(a, bank, part, pool, rows)

    def result(run: Run) -> EvaluationResult:
        return evaluation_results(run, [exam], context, progress)[0]

    result_a, result_b = result(a), result(b)
    places = places_by_lane(lanes, bank, exam.rows) if lanes else {}
    for lane, run in (experts or {}).items():
        if lanes is None or lane not in lanes.names:
            known = ", ".join(lanes.names) if lanes else "none without lanes"
            raise SettingsError(f"an expert is named for lane {lane!r}; known: {known}")
        _refuse_known_documents(run, b, bank)
        ranks = result_a.ranks.replaced(places.get(lane, NO_ROWS), result(run).ranks)
        result_a = replace(result_a, ranks=ranks)
    return Comparison(a, b, part, result_a, result_b, time_to_reach(a, b), places, experts or {})


def time_to_reach(a: Run, b: Run) -> TimeToReach:
    """How long ``a`` and ``b`` trained until they reached the best valid Hit@5 of ``b``."""
    best = b.best_hit5
    if best is None or not _same_validation(a, b):
        return TimeToReach(None, None, None)
    return TimeToReach(best, _seconds_until(a, best), _seconds_until(b, best))


def _same_validation(a: Run, b: Run) -> bool:
    def exam_of(run: Run) -> tuple[Any, ...]:
        return run.origin.bank, set(run.origin.parts["valid"]), run.settings.validation.pool

    return exam_of(a) == exam_of(b)


def _seconds_until(run: Run, hit5: float) -> float | None:
    clock = dict(run.timing().clock)
    return next((clock.get(validation["update"]) for validation in run.history() if validation["valid"]["hit@5"] >= hit5), None)


def _refuse_known_documents(expert: Run, b: Run, bank: Bank) -> None:
    if expert.origin.bank != bank.fingerprint or set(expert.origin.parts["train"]) & set(b.origin.parts["test"]):
        raise ExamError(
            f"{expert.path} was trained on another bank, or on test documents of {b.path}; train it beside that run"
        )


def check_comparable(a: Run, b: Run, bank: Bank, part: Literal["valid", "test"]) -> None:
    """
    Raises:
        ExamError: two runs were trained on different banks, hold out different documents of ``part``, or one was trained
            on test documents of the other.
    """
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


def _figures(run: Run, result: EvaluationResult) -> dict[str, Any]:
    hits = {f"hit@{k}": result.ranks.hit(k).to_json() for k in HITS}
    return {"run": str(run.path), "recipe": run.recipe, "context": result.context, **hits, "mrr": result.ranks.mrr().to_json()}
