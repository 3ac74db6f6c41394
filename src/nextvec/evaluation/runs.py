"""Evaluation of a trained run on a bank: the one it was trained on, or another of the same encoder."""

# Axes: M documents.

from typing import Literal

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.report import Report, examine
from nextvec.evaluation.results import OWN_CONTEXT
from nextvec.lanes import Lanes
from nextvec.progress import Progress, silent
from nextvec.runs.loading import check_encoder, load_model
from nextvec.runs.run import Run
from nextvec.windows import Part, missed_shares

UNCALIBRATED = "the run has no calibration, so its answers have no probabilities; a run that is trained now gets one"


def evaluate(
    run: Run,
    bank: Bank,
    part: Part | Literal["all"] = "test",
    context: int | None = OWN_CONTEXT,
    pool: int | None = 1000,
    max_rows: int = 2000,
    progress: Progress = silent,
    lanes: Lanes | None = None,
) -> Report:
    """Evaluate a run and every baseline on one exam.

    Args:
        part: a held-out part of the bank that it was trained on, or ``all``: every
            document of any bank except those that the run was trained on.
        context: vectors read at most before each scored row; None for all its
            document has; by default what the run was trained with.
        pool: candidates per scored row; None for the whole bank.
        max_rows: scored rows at most.
        lanes: of that bank, for the figures of each lane.

    Raises:
        RunError: an untrained run, a bank of another encoder, or a part of a bank that it was not trained on.
        ExamError: too few rows to score.
    """
    check_encoder(run, bank)
    documents, notes = _documents(run, bank, part)
    return report_on(run, Exam.over(bank, documents, part, pool, max_rows), context, notes, progress, lanes)


def report_on(
    run: Run,
    exam: Exam,
    context: int | None = OWN_CONTEXT,
    notes: tuple[str, ...] = (),
    progress: Progress = silent,
    lanes: Lanes | None = None,
) -> Report:
    """The report of a run on an exam over documents that it was not trained on; arguments as :func:`evaluate`'s."""
    model = load_model(run)
    bank = exam.bank
    train = (bank, run.split(bank).train) if bank.fingerprint == run.origin.bank else None
    read = run.settings.passages.context if context == OWN_CONTEXT else context
    calibration = run.calibration()
    if calibration is None:
        notes += (UNCALIBRATED,)
    return examine(exam, model, run.name, run.moments(), read, train, notes, progress, lanes, calibration)


def _documents(run: Run, bank: Bank, part: Part | Literal["all"]) -> tuple[Int64[np.ndarray, " M"], tuple[str, ...]]:
    """The documents to score, and what a reader of the report must know about them."""
    if part != "all":
        parts = run.split(bank)
        missed = missed_shares(bank, parts, run.settings.split.valid, run.settings.split.test)
        # The expert of one lane has fewer valid documents on purpose.
        by_plan = run.settings.source.lane_filter and part == "valid"
        return parts.part(part), (missed[part],) if part in missed and not by_plan else ()
    unseen = run.unseen(bank)
    left_out = bank.num_documents - len(unseen)
    if not len(unseen):
        raise RunError(f"{run.path} was trained on every document of this bank; no document is left to evaluate it on")
    notes = (f"{left_out} documents that the run was trained on are left out",) if left_out else ()
    if bank.fingerprint != run.origin.bank:
        notes += (
            f"bank {bank.fingerprint[:12]}{f' at {bank.path}' if bank.path else ''} is examined; "
            f"the run was trained on bank {run.origin.bank[:12]}",
        )
    if run.origin.encoder == "unknown" and bank.fingerprint != run.origin.bank:
        notes += ("the encoders of both banks are unknown; the vectors can only be compared if the encoder is the same",)
    return unseen, notes
