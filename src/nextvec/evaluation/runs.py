"""Evaluation of a trained run, or of the weights of the package, on a bank."""

# Axes: M documents.

from typing import Literal

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.confidence import Calibration
from nextvec.errors import RunError
from nextvec.evaluation.calibration import UNCALIBRATED, calibration_of
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.report import ALL_ROWS, TRAINING_ROWS, FittedTo, Report, examine
from nextvec.evaluation.results import OWN_CONTEXT
from nextvec.lanes import Lanes
from nextvec.models.space import Space
from nextvec.progress import Progress, silent
from nextvec.runs import Run, Source, bank_of, check_encoder, load
from nextvec.runs.shipped import CONTEXT, POWER, SHIPPED, shipped_model, shipped_settings
from nextvec.windows import Part, missed_shares, split

FITTED_ON_VALID = "probabilities are judged on the test documents alone, because the valid documents fitted the calibration"


def evaluate(
    source: Source,
    bank: Bank | None = None,
    part: Part | Literal["all"] = "test",
    context: int | None = OWN_CONTEXT,
    pool: int | None = 1000,
    max_rows: int = 2000,
    progress: Progress = silent,
    lanes: Lanes | None = None,
    refit: bool = False,
) -> Report:
    """Evaluate a run, or the weights of the package, and every baseline on one exam.

    Args:
        source: a run, or a bank for the weights of the package. Their space and those of the baselines are fitted to the
            training documents of its split; with ``part="all"`` to all rows, also those that are scored.
        bank: that is examined; the bank of ``source`` when None.
        part: a held-out part of the bank that the run was trained on, or ``all``: every
            document of any bank except those that the run was trained on.
        context: vectors read at most before each scored row; None for all its
            document has; by default what the weights were trained with.
        pool: candidates per scored row; None for the whole bank.
        max_rows: scored rows at most.
        lanes: of that bank, for the figures of each lane.
        refit: whether the spaces are fitted to all rows of ``bank``, as a server with ``--refit`` does.

    Raises:
        RunError: an untrained run, a bank of another encoder, or a part of a bank that it was not trained on.
        SettingsError: ``refit`` of a run that reads raw rows, or another bank for a bank.
        DataError: a bank that cannot be split.
        ExamError: too few rows to score.
    """
    held = bank_of(source) if bank is None else bank
    if isinstance(source, Bank):
        return _evaluate_shipped(source, part, context, pool, max_rows, progress, lanes, refit)
    check_encoder(source, held)
    documents, notes = _documents(source, held, part)
    return report_on(source, Exam.over(held, documents, part, pool, max_rows), context, notes, progress, lanes, refit)


def report_on(
    run: Run,
    exam: Exam,
    context: int | None = OWN_CONTEXT,
    notes: tuple[str, ...] = (),
    progress: Progress = silent,
    lanes: Lanes | None = None,
    refit: bool = False,
) -> Report:
    """The report of a run on an exam over documents that it was not trained on; arguments as :func:`evaluate`'s."""
    bank = exam.bank
    loaded = load(run, bank, refit, progress)
    found = moments(bank, progress=progress) if refit else run.moments()
    fitted_to = (
        FittedTo(ALL_ROWS, bank.fingerprint, found.rows) if refit else FittedTo(TRAINING_ROWS, run.origin.bank, found.rows)
    )
    train = (bank, run.split(bank).train) if bank.fingerprint == run.origin.bank else None
    read = run.settings.passages.context if context == OWN_CONTEXT else context
    calibration, why = _judged(run, bank, exam.part, refit)
    return examine(exam, loaded.model, run.name, found, read, train, notes + why, progress, lanes, fitted_to, calibration)


def _evaluate_shipped(
    bank: Bank,
    part: Part | Literal["all"],
    context: int | None,
    pool: int | None,
    max_rows: int,
    progress: Progress,
    lanes: Lanes | None,
    refit: bool,
) -> Report:
    """:func:`evaluate` for the weights of the package, on the split that a training with default settings makes."""
    train: tuple[Bank, Int64[np.ndarray, " M"]] | None = None
    documents, notes = np.arange(bank.num_documents), ()
    if part != "all":
        shares = shipped_settings().split
        parts = split(bank, shares.valid, shares.test)
        missed = missed_shares(bank, parts, shares.valid, shares.test)
        documents, train, notes = parts.part(part), (bank, parts.train), (missed[part],) if part in missed else ()
    if train is None or refit:
        found, of = moments(bank, progress=progress), ALL_ROWS
    else:
        found, of = moments(*train, progress), TRAINING_ROWS
    model = shipped_model(Space.fitted(found.mean, found.covariance, POWER, found.rows))
    exam = Exam.over(bank, documents, part, pool, max_rows)
    read = CONTEXT if context == OWN_CONTEXT else context
    fitted_to = FittedTo(of, bank.fingerprint, found.rows)
    calibration, why = _judged(bank, bank, part, refit, progress)
    return examine(exam, model, SHIPPED, found, read, train, notes + why, progress, lanes, fitted_to, calibration)


def _judged(
    source: Source, bank: Bank, part: str, refit: bool, progress: Progress = silent
) -> tuple[Calibration | None, tuple[str, ...]]:
    """The calibration whose reliability an exam can judge; None, and the reason for the reader, where it cannot."""
    if part != "test":
        return None, (FITTED_ON_VALID,)
    found = calibration_of(source, bank, refit, progress)
    return found, () if found is not None else (f"no probabilities: {UNCALIBRATED}",)


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
