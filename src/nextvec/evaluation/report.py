"""The report of an exam: the model, every baseline, chance, and the paired lifts over the best baselines."""

# Axes: R scored rows, M documents, W width of an output.

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.moments import Moments
from nextvec.confidence import Calibration, Reliability
from nextvec.errors import ExamError
from nextvec.evaluation.answers import answers
from nextvec.evaluation.baselines import baseline_ranks, is_raw, kind_of, together
from nextvec.evaluation.by_lane import ExpertUse, expert_use, lane_figures, places_by_lane
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.lanes import Lanes
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks, Rate, candidate_terms, candidates_in_words, paired_lift

HITS = (1, 5, 10)
TRAINING_ROWS, ALL_ROWS = "training rows", "all rows"


@dataclass(frozen=True)
class FittedTo:
    """The rows that the space of the model, and the centre and the spaces of the baselines, are fitted to.

    Attributes:
        of: ``training rows`` or ``all rows`` of a bank.
        bank: its fingerprint.
        rows: how many they are.
    """

    of: str
    bank: str
    rows: int


@dataclass(frozen=True)
class Report:
    """The ranks of a model and of every baseline on one exam.

    Attributes:
        exam, part: id of the exam, and the documents that it scores.
        bank, encoder: fingerprint and encoder of the bank.
        context: vectors read at most; None for all.
        full_context: share of scored rows whose document had that many before them.
        ranks: of the model.
        baselines: ranks of every baseline, on the same rows and candidates.
        fitted_to: the rows that the spaces are fitted to.
        notes: facts that a reader needs beside the numbers.
        lanes: the scored rows of each lane; empty without lanes.
        use: the active experts of a model with experts; None for other models.
        calibration: of the model; None if it has none.
        reliability: of its answers from the whole bank for each k of :data:`HITS`; empty without a calibration.
    """

    exam: str
    part: str
    bank: str
    encoder: str
    model: str
    context: int | None
    full_context: float
    documents: int
    ranks: Ranks
    baselines: Mapping[str, Ranks]
    fitted_to: FittedTo
    notes: tuple[str, ...] = ()
    lanes: Mapping[str, Int64[np.ndarray, " kept"]] = field(default_factory=dict)
    use: ExpertUse | None = None
    calibration: Calibration | None = None
    reliability: tuple[Reliability, ...] = ()

    @property
    def best_baseline(self) -> str:
        """The baseline with the highest Hit@5 on this exam: chosen after the fact, in favour of the baselines."""
        return max(self.baselines, key=lambda name: self.baselines[name].hits(5).mean())

    @property
    def best_raw_baseline(self) -> str:
        """The baseline with the highest Hit@5 among those that compare the rows themselves, in no fitted space."""
        return max(filter(is_raw, self.baselines), key=lambda name: self.baselines[name].hits(5).mean())

    def lift(self, k: int = 5, over: str | None = None) -> Rate:
        """Hit@k minus that of a baseline (by default the best one), paired by row, resampled by document."""
        return paired_lift(self.ranks, self.baselines[over or self.best_baseline], k)

    def to_json(self) -> dict[str, Any]:
        """The frozen format that scripts rely on."""
        exam = {
            "id": self.exam,
            "rows": len(self.ranks),
            **candidate_terms(self.ranks.candidates),
            "context": self.context,
            "full_context": self.full_context,
            "part": self.part,
            "documents": self.documents,
            "bank": self.bank,
            "encoder": self.encoder,
        }
        return {
            "exam": exam,
            "model": {"name": self.model, **figures(self.ranks)},
            "baselines": {name: figures(ranks) for name, ranks in self.baselines.items()},
            "lift": self._lifts(self.best_baseline),
            "lift_over_raw": self._lifts(self.best_raw_baseline),
            "chance": {f"hit@{k}": self.ranks.chance(k) for k in HITS},
            "fitted_to": asdict(self.fitted_to),
            "notes": list(self.notes),
            "lanes": lane_figures(self.lanes, self.ranks, self.baselines[self.best_baseline], HITS),
            "experts": self.use.to_json(self.lanes) if self.use else None,
            "confidence": self._confidence(),
        }

    def _confidence(self) -> dict[str, Any] | None:
        if self.calibration is None:
            return None
        return {"calibration": asdict(self.calibration), "answers": [each.to_json() for each in self.reliability]}

    def _lifts(self, over: str) -> dict[str, Any]:
        return {"over": over, **{f"hit@{k}": self.lift(k, over).to_json() for k in HITS}}

    def __str__(self) -> str:
        context = "all" if self.context is None else f"{self.context:,}"
        among = candidates_in_words(candidate_terms(self.ranks.candidates))
        return (
            f"hit@5 {self.ranks.hit(5)} among {among}; chance {self.ranks.chance(5):.2%}; "
            f"{self.best_baseline} {self.baselines[self.best_baseline].hit(5).value:.1%}; "
            f"lift {points(self.lift())}; context {context}; exam {self.exam}"
        )


def best_of_kinds(hits: Mapping[str, float]) -> list[str]:
    """The best baseline of each kind, the best first: what a table shows of the many baselines of a report.

    Baselines that differ only in their decay are of one kind, for example (:func:`~nextvec.evaluation.baselines.kind_of`).

    Args:
        hits: Hit@5 of every baseline, by name.
    """
    best: dict[str, str] = {}
    for name in hits:
        kind = kind_of(name)
        if kind not in best or hits[name] > hits[best[kind]]:
            best[kind] = name
    return sorted(best.values(), key=lambda name: -hits[name])


def shown_baselines(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the best baseline of each kind, of a report as JSON, the best first."""
    figures = report["baselines"]
    return {name: figures[name] for name in best_of_kinds({n: f["hit@5"]["value"] for n, f in figures.items()})}


def points(lift: Rate) -> str:
    """A lift in percentage points with its interval."""
    return f"{100 * lift.value:+.1f} [{100 * lift.low:+.1f}, {100 * lift.high:+.1f}]"


def figures(ranks: Ranks) -> dict[str, Any]:
    """Hit@1, Hit@5, Hit@10 and the mean reciprocal rank with their intervals, as JSON."""
    return {**{f"hit@{k}": ranks.hit(k).to_json() for k in HITS}, "mrr": ranks.mrr().to_json()}


def examine(
    exam: Exam,
    model: Recurrent[Any],
    name: str,
    moments: Moments,
    context: int | None,
    train: tuple[Bank, Int64[np.ndarray, " M"]] | None = None,
    notes: tuple[str, ...] = (),
    progress: Progress = silent,
    lanes: Lanes | None = None,
    fitted_to: FittedTo | None = None,
    calibration: Calibration | None = None,
) -> Report:
    """Evaluate the model and every baseline on one exam.

    Args:
        moments: of the rows that the space of the model is fitted to, for the baselines.
        train: the training documents; without them the lookup is left out.
        lanes: of the exam's bank, for the figures of each lane.
        fitted_to: whose moments they are; None for the training rows of the exam's bank.
        calibration: of the model, fitted on other documents than the exam's, for the reliability of its answers.

    Raises:
        ExamError: the model is not as wide as the bank.
    """
    if model.dim != exam.bank.dim:
        raise ExamError(f"the model reads vectors {model.dim} wide; the bank's are {exam.bank.dim} wide")
    predicted = predict_rows(model, exam.bank, exam.rows, context, progress)
    own = exam.rank(predicted, model)
    of_baselines = baseline_ranks(exam, list(together(moments, train)), context, progress)
    past = exam.rows - exam.bank.offsets[exam.clusters]
    full = float((past >= context).mean()) if context else 1.0
    documents = len(np.unique(exam.clusters))
    return Report(
        exam.id,
        exam.part,
        exam.bank.fingerprint,
        exam.bank.manifest.encoder,
        name,
        context,
        full,
        documents,
        own,
        of_baselines,
        fitted_to or FittedTo(TRAINING_ROWS, exam.bank.fingerprint, moments.rows),
        (*notes, *_left_out(exam)),
        places_by_lane(lanes, exam.bank, exam.rows) if lanes else {},
        expert_use(model, exam.bank, exam.rows, context) if model.num_experts else None,
        calibration,
        _reliability(exam, model, predicted, context, calibration, progress),
    )


def _reliability(
    exam: Exam,
    model: Recurrent[Any],
    predicted_RW: Float[Tensor, "R W"],
    context: int | None,
    calibration: Calibration | None,
    progress: Progress,
) -> tuple[Reliability, ...]:
    if calibration is None:
        return ()
    found = answers(exam, model, predicted_RW, context, progress)
    return tuple(found.reliability(calibration, k) for k in HITS)


def _left_out(exam: Exam) -> tuple[str, ...]:
    if not exam.repeats:
        return ()
    return (
        f"{exam.repeats:,} rows that repeat their own document are not scored: predictions leave out what their context holds",
    )
