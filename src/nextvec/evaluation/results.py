"""Evaluation results: the ranks of one run on one exam, kept in the run's folder."""

# Axes: R scored rows.

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import ExamError, RunError
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.ranks_file import kept_ranks, read_ranks
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks
from nextvec.runs.loading import check_encoder, load_model
from nextvec.runs.run import BEST, Run
from nextvec.windows import Part

OWN_CONTEXT = 0  # the context that a run was trained with
EVALUATIONS = "evaluations"
MODEL = "model"


@dataclass(frozen=True)
class EvaluationResult:
    """The ranks of one run on one exam.

    Attributes:
        exam, pool: the exam's id and its candidates per row; None for the whole bank.
        context: vectors that the run read at most before each scored row; None for all.
        ranks: of the scored rows.
        rows: [R] scored rows of the bank.
    """

    exam: str
    pool: int | None
    context: int | None
    ranks: Ranks
    rows: Int64[np.ndarray, " R"]


def held_out_exam(run: Run, bank: Bank, part: Part = "test", pool: int | None = 1000, max_rows: int = 2000) -> Exam:
    """The exam over a part of the bank that the run was trained on.

    Raises:
        RunError: the run was trained on another bank.
        ExamError: too few rows to score, or a pool that a scored row cannot fill.
    """
    return Exam.over(bank, run.split(bank).part(part), part, pool, max_rows)


def evaluation_results(
    run: Run, exams: Sequence[Exam], context: int | None = OWN_CONTEXT, progress: Progress = silent
) -> list[EvaluationResult]:
    """The results of a run on exams that score the same rows; the rows are predicted once.

    Results are kept in the run's folder and read from there the next time.

    Args:
        exams: of the same rows, with different pools (:meth:`~nextvec.evaluation.exam.Exam.among`).
        context: vectors read at most before each scored row; None for all its
            document has; by default what the run was trained with.

    Raises:
        RunError: an untrained run, a bank of another encoder, or an exam over documents that the run was trained on.
        ExamError: the exams score different rows.
    """
    _check_exams(run, exams)
    read = run.settings.passages.context if context == OWN_CONTEXT else context
    files = [_file(run, exam, read) for exam in exams]
    if not all(file.exists() for file in files):
        model = load_model(run)
        predicted = predict_rows(model, exams[0].bank, exams[0].rows, read, progress)
        for exam, file in zip(exams, files, strict=True):
            kept_ranks(file, lambda exam=exam: {MODEL: exam.rank(predicted, model)})
    found = [read_ranks(file)[MODEL] for file in files]
    return [EvaluationResult(exam.id, exam.pool, read, ranks, exam.rows) for exam, ranks in zip(exams, found, strict=True)]


def _check_exams(run: Run, exams: Sequence[Exam]) -> None:
    bank, rows = exams[0].bank, exams[0].rows
    check_encoder(run, bank)
    if any(exam.bank is not bank or not np.array_equal(exam.rows, rows) for exam in exams):
        raise ExamError("these exams score different rows; make them with Exam.among, from one exam")
    documents = np.unique(exams[0].clusters)
    if bank.fingerprint == run.origin.bank:
        known = np.intersect1d(documents, run.split(bank).train)
    else:
        known = np.setdiff1d(documents, run.unseen(bank))
    if len(known):
        raise RunError(f"{run.path} was trained on {len(known)} of the documents that the exam scores")


def _file(run: Run, exam: Exam, context: int | None) -> Path:
    """Named by everything that the result depends on, so that it is never out of date: exam, context, weights."""
    weights = run.path / BEST
    if not weights.is_file():
        raise RunError(f"{run.path} has no {BEST}; has it been trained?")
    hashed = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    return run.path / EVALUATIONS / f"{exam.id}-{context or 'all'}-{hashed}.safetensors"
