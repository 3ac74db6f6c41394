"""Metrics: the figures of one run that a gate can bound."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nextvec.bank import Bank
from nextvec.evaluation import Exam, Report
from nextvec.evaluation.report import HITS
from nextvec.evaluation.results import OWN_CONTEXT, EvaluationResult, evaluation_results, held_out_exam
from nextvec.evaluation.runs import report_on
from nextvec.experiments.comparison import check_comparable
from nextvec.inference import Engine
from nextvec.inference.latency import AnswerLatency, answers
from nextvec.progress import Progress
from nextvec.ranks import Rate, paired_lift
from nextvec.runs import Run

Figure = Rate | float


@dataclass(frozen=True)
class Terms:
    """The exam of the gates: part of the split, vectors read, candidates per row, scored rows at most."""

    part: Literal["valid", "test"] = "test"
    context: int | None = OWN_CONTEXT
    pool: int | None = 1000
    rows: int = 2000


class Measured:
    """The figures of one run; each is measured on first use and then kept."""

    def __init__(self, run: Run, bank: Bank, terms: Terms, progress: Progress) -> None:
        self.run, self.bank, self.terms, self.progress = run, bank, terms, progress

    @cached_property
    def exam(self) -> Exam:
        return held_out_exam(self.run, self.bank, self.terms.part, self.terms.pool, self.terms.rows)

    @cached_property
    def result(self) -> EvaluationResult:
        return evaluation_results(self.run, [self.exam], self.terms.context, self.progress)[0]

    @cached_property
    def report(self) -> Report:
        return report_on(self.run, self.exam, self.terms.context, progress=self.progress)

    @cached_property
    def latency(self) -> AnswerLatency:
        context = self.result.context or int(self.bank.lengths.max())
        return answers(Engine.open(self.run, self.bank), (context,), self.bank.rows[:context], progress=self.progress)[0]

    def gain(self, over: str, k: int) -> Rate:
        """Hit@k minus that of another run, which must hold out the same documents.

        Raises:
            ExamError: it does not.
        """
        other = Run.open(over)
        check_comparable(self.run, other, self.bank, self.terms.part)
        theirs = evaluation_results(other, [self.exam], self.terms.context, self.progress)[0]
        return paired_lift(self.result.ranks, theirs.ranks, k)


@dataclass(frozen=True)
class Metric:
    """How a figure is measured, given a measured run and the path of the run that a gain is over; and its bounds."""

    measure: Callable[[Measured, str], Figure]
    least: float = 0.0
    most: float = math.inf


def _hit(k: int) -> Metric:
    return Metric(lambda m, _: m.result.ranks.hit(k), most=1.0)


def _lift(k: int) -> Metric:
    return Metric(lambda m, _: m.report.lift(k), -1.0, 1.0)


def _gain(k: int) -> Metric:
    return Metric(lambda m, over: m.gain(over, k), -1.0, 1.0)


def _updates(run: Run) -> float:
    history = run.history()
    return float(history[-1]["update"]) if history else 0.0


METRICS: Mapping[str, Metric] = {
    **{f"hit@{k}": _hit(k) for k in HITS},
    "mrr": Metric(lambda m, _: m.result.ranks.mrr(), most=1.0),
    **{f"lift:hit@{k}": _lift(k) for k in HITS},
    **{f"gain:hit@{k}": _gain(k) for k in HITS},
    "alarms": Metric(lambda m, _: float(len(m.run.alarms()))),
    "best_hit5": Metric(lambda m, _: m.run.best_hit5 or 0.0, most=1.0),
    "updates": Metric(lambda m, _: _updates(m.run)),
    "step_p95_ms": Metric(lambda m, _: m.latency.step.p95),
    "search_p95_ms": Metric(lambda m, _: m.latency.both.p95),
}
"""Figures that a gate can bound: of the exam; paired over the best baseline (``lift``) or over another run (``gain``); of
the training; and milliseconds of one step on one thread as served, alone or with exact search of the bank."""


def figure_text(figure: Figure, metric: str) -> str:
    """The figure with its interval: shares in per cent, lifts in points."""
    if not isinstance(figure, Rate):
        return threshold_text(figure, metric)
    form = "+.2f" if _in_points(metric) else ".2f"
    return f"{threshold_text(figure.value, metric)} ({100 * figure.low:{form}} to {100 * figure.high:{form}}), n {figure.n:,}"


def threshold_text(value: float, metric: str) -> str:
    """A threshold in the unit of its metric."""
    if _in_points(metric):
        return f"{100 * value:+.2f} points"
    return f"{value:.2%}" if METRICS[metric].most == 1 else f"{value:,.4g}"


def _in_points(metric: str) -> bool:
    return METRICS[metric].least < 0
