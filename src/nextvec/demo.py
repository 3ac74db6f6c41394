"""The demo: makes a bank of the documentation inside Python, predicts it without training, trains a model, and reports both."""

# Axes: T chunks, D width.

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank, census
from nextvec.bank.layout import read_json, write_atomically
from nextvec.bank.moments import Moments
from nextvec.errors import DataError
from nextvec.evaluation import Exam, Report, examine, predict_rows
from nextvec.evaluation.baselines import baselines
from nextvec.evaluation.report import figures
from nextvec.inference import Engine
from nextvec.ingestion import Document, documentation, ingest
from nextvec.models.space import Space
from nextvec.pages.demo_page import write_demo_page
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks, Rate, paired_lift
from nextvec.recipes import recipe
from nextvec.runs import Run, load_model
from nextvec.runs.shipped import POWER, shipped_model
from nextvec.training import Tracker, begin, train

CHARACTERS_PER_CHUNK = 236
CONTEXTS = (1, 10, 100, 500)
SHOWN_CONTEXT, SHOWN_GUESSES, EXAMPLES = 3, 5, 5
DEFAULT_SIZE = 9_000


@dataclass(frozen=True)
class CurvePoint:
    """One context length on the exam of the report: the same rows, the same candidates."""

    context: int
    hit5: Rate
    lift: Rate
    baseline_hit5: Rate

    def to_json(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "hit@5": self.hit5.to_json(),
            "lift_over_context_1": self.lift.to_json(),
            "baseline_hit@5": self.baseline_hit5.to_json(),
        }


@dataclass(frozen=True)
class Guess:
    """A predicted chunk, and whether it is the true one."""

    text: str
    document: str
    score: float
    true: bool


@dataclass(frozen=True)
class Example:
    """One scored row: the chunks read last, the predicted ones, the true one and its rank."""

    document: str
    read: tuple[str, ...]
    guesses: tuple[Guess, ...]
    truth: str
    rank: int
    candidates: int


@dataclass(frozen=True)
class Demo:
    """The results of the demo.

    Attributes:
        report: of the trained model.
        shipped: ranks of the weights of the package on the exam of the report, before training.
        curve: the exam at several context lengths.
        seconds: of each step.
    """

    report: Report
    shipped: Ranks
    curve: tuple[CurvePoint, ...]
    examples: tuple[Example, ...]
    run: Run
    bank: Bank
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        counted = census(self.bank)
        tokens = self.bank.tokens
        return {
            **self.report.to_json(),
            "shipped": {**figures(self.shipped), "lift": paired_lift(self.report.ranks, self.shipped, 5).to_json()},
            "curve": [point.to_json() for point in self.curve],
            "examples": [_example_json(example) for example in self.examples],
            "bank": {
                "rows": len(self.bank),
                "documents": self.bank.num_documents,
                "documents_of_500_rows": int((self.bank.lengths >= 500).sum()),
                "tokens_per_chunk": float(np.mean(tokens)) if tokens is not None else None,
                "exact_duplicates": counted.exact_duplicates,
                "near_duplicates": counted.near_duplicates,
                "encoder": self.bank.manifest.encoder,
            },
            "training": {"history": self.run.history(), "finished": self.run.finished},
            "seconds": self.seconds,
        }


def demo(
    out: str | Path,
    size: int = DEFAULT_SIZE,
    progress: Progress = silent,
    trackers: Sequence[Tracker] = (),
    tell: Callable[[Ranks], None] | None = None,
) -> Demo:
    """Make a bank of the documentation inside Python, train a model, and write ``out/report.json`` and ``out/report.html``.

    Before the training, the weights of the package take the exam of the report.

    The bank and the run of an earlier call in ``out`` are used again, so a call after a kill continues the work.

    Args:
        size: approximate number of chunks to encode.
        trackers: receive the events of the training.
        tell: receives the ranks of the weights of the package before the training begins.

    Raises:
        DataError: a size too small to hold an exam, or ``out`` made with another size.
    """
    folder, clock = Path(out), _Clock()
    bank = _bank(folder, size, progress)
    clock.lap("ingest")
    run = begin(folder / "run", "default", recipe("default", len(bank)), bank)
    moments, parts = run.moments(), run.split(bank)
    exam = Exam.over(bank, parts.test, "test")
    shipped = _shipped(exam, moments, progress)
    if tell is not None:
        tell(shipped)
    clock.lap("before training")
    for _ in train(run, bank, trackers):
        pass
    clock.lap("train")
    model, train_part = load_model(run), (bank, parts.train)
    report = examine(exam, model, run.name, moments, CONTEXTS[-1], train_part, progress=progress, calibration=run.calibration())
    clock.lap("evaluate")
    curve = _curve(exam, model, report, dict(baselines(moments, train_part)), progress)
    examples = _examples(exam, model, report.ranks)
    clock.lap("curve and examples")
    found = Demo(report, shipped, curve, examples, run, bank, clock.laps)
    write_atomically(folder / "report.json", json.dumps(found.to_json(), indent=1) + "\n")
    write_demo_page(folder / "report.html", found.to_json())
    return found


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 1)
        self._last = now


def _bank(folder: Path, size: int, progress: Progress) -> Bank:
    if size < 1_500:
        raise DataError(f"--size {size}: the demo needs at least 1,500 chunks to hold an exam among 1,000 candidates")
    note, path = folder / "size.json", folder / "bank"
    if note.exists() and read_json(note)["size"] != size:
        raise DataError(f"{folder} was made with another size; use another --out, or delete it")
    if path.exists():
        return Bank.open(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps({"size": size}))
    documents: list[Document] = documentation(size * CHARACTERS_PER_CHUNK, progress)
    return ingest(documents, path, progress=progress)


def _shipped(exam: Exam, moments: Moments, progress: Progress) -> Ranks:
    """The ranks of the weights of the package in the space of the training documents."""
    model = shipped_model(Space.fitted(moments.mean, moments.covariance, POWER, moments.rows))
    return exam.rank(predict_rows(model, exam.bank, exam.rows, CONTEXTS[-1], progress), model)


def _curve(exam: Exam, model: Any, report: Report, rivals: dict[str, Any], progress: Progress) -> tuple[CurvePoint, ...]:
    """Hit@5 on the same exam at several context lengths, for the model and for the best baseline."""
    best = report.best_baseline
    rival = rivals[best]
    first: Ranks | None = None
    points: list[CurvePoint] = []
    for context in CONTEXTS:
        if context == CONTEXTS[-1]:
            ranks, beside = report.ranks, report.baselines[best]
        else:
            ranks = exam.rank(predict_rows(model, exam.bank, exam.rows, context, progress), model)
            beside = exam.rank(predict_rows(rival, exam.bank, exam.rows, context), rival)
        first = first or ranks
        points.append(CurvePoint(context, ranks.hit(5), paired_lift(ranks, first, 5), beside.hit(5)))
    return tuple(points)


def _examples(exam: Exam, model: Any, ranks: Ranks) -> tuple[Example, ...]:
    """Five scored rows at even steps through the exam, so that they are not selected by their result."""
    places = np.linspace(0, len(exam.rows) - 1, EXAMPLES + 2).astype(int)[1:-1]
    return tuple(_example(exam, model, ranks, int(place)) for place in places)


def _example(exam: Exam, model: Any, ranks: Ranks, place: int) -> Example:
    bank, row = exam.bank, int(exam.rows[place])
    m = int(exam.clusters[place])
    first = max(int(bank.offsets[m]), row - CONTEXTS[-1])
    context = bank.rows[first:row].astype(np.float32)
    session = Engine(model, bank).session()
    session.push_many(context)
    expected = session.predict(SHOWN_GUESSES)
    guesses = tuple(Guess(e.text or "", e.document, e.score, e.text == bank.text(row)) for e in expected)
    read = tuple(bank.text(r) or "" for r in range(max(first, row - SHOWN_CONTEXT), row))
    rank = int(ranks.above[place]) + 1
    return Example(bank.documents[m][1], read, guesses, bank.text(row) or "", rank, int(ranks.candidates[place]))


def _example_json(example: Example) -> dict[str, Any]:
    return {
        "document": example.document,
        "read": list(example.read),
        "expected": [{"text": g.text, "document": g.document, "score": g.score, "true": g.true} for g in example.guesses],
        "truth": example.truth,
        "rank": example.rank,
        "candidates": example.candidates,
    }


__all__ = ["DEFAULT_SIZE", "Demo", "demo"]
