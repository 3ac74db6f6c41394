"""What the folder of a served model says: its settings, and the evaluation results of its present weights."""

import hashlib
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from nextvec.errors import NextvecError
from nextvec.evaluation.ranks_file import read_ranks
from nextvec.evaluation.results import EVALUATIONS, MODEL
from nextvec.experiments.seeds import kept_at
from nextvec.ranks import candidate_terms
from nextvec.runs import Run
from nextvec.runs.run import BEST
from nextvec.runs.shipped import SHIPPED, shipped_settings
from nextvec.runs.sources import is_bank
from nextvec.wire.overview import ExamResult, Interval, RunState

MOST_RESULTS = 6  # of one run


class RunStates:
    """Reads runs, and remembers each evaluation result that it has read."""

    def __init__(self) -> None:
        self._results: dict[Path, ExamResult] = {}
        self._weights = lru_cache(16)(_digest)

    def read(self, name: str, folder: Path) -> RunState:
        """
        Args:
            name: under which the run is served.
            folder: of the run, or of the bank that is served without training. A fault of it is reported in ``trouble``.
        """
        try:
            if is_bank(folder):
                settings = shipped_settings()
                return RunState(name, recipe=SHIPPED, model=settings.model, context=settings.passages.context)
            run = Run.open(folder)
            history, results = run.history(), self._of(run)
        except (NextvecError, OSError):
            return RunState(name, "its folder cannot be read any more")
        best = next((evaluated["valid"] for evaluated in reversed(history) if evaluated["best"]), None)
        return RunState(
            name=name,
            recipe=run.recipe,
            model=run.settings.model,
            context=run.settings.passages.context,
            updates=history[-1]["update"] if history else None,
            kept=kept_at(run) if best else None,
            valid=None if best is None else Interval(best["hit@5"], best["low"], best["high"]),
            exams=results,
        )

    def _of(self, run: Run) -> list[ExamResult]:
        """Results of the present weights, the largest pool first."""
        folder = run.path / EVALUATIONS
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        if not files:
            return []
        held = (run.path / BEST).stat()
        weights = self._weights(run.path / BEST, held.st_mtime_ns, held.st_size)
        present = [file for file in files if file.stem.endswith(f"-{weights}")][:MOST_RESULTS]
        for file in present:
            if file not in self._results:
                self._results[file] = exam_result(file)
        return sorted((self._results[file] for file in present), key=lambda result: -result.candidates.most)


def _digest(file: Path, _written: int, _size: int) -> str:
    """The digest of weights in the name of an evaluation's file. The cache reads weights again only after a change."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def exam_result(file: Path) -> ExamResult:
    """Hit@5 of one evaluation with its interval, and the terms of the exam.

    Args:
        file: of ranks, as :func:`nextvec.evaluation.results.evaluation_results` writes them.

    Raises:
        RunError: the file is damaged.
    """
    exam, context, _ = file.stem.rsplit("-", 2)
    ranks = read_ranks(file)[MODEL]
    found = {
        "exam": exam,
        "context": None if context == "all" else int(context),
        **candidate_terms(ranks.candidates),
        "rows": len(ranks),
        "documents": len(np.unique(ranks.clusters)),
        "hit@5": ranks.hit(5).to_json(),
        "chance": ranks.chance(5),
    }
    return msgspec.convert(found, ExamResult)
