"""A trained run sits an exam on a bank, its own or one it never saw."""

# Axes: M documents.

from typing import Literal

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.errors import RunError
from nextvec.evaluation import Exam, Report, examine
from nextvec.progress import Progress, silent
from nextvec.training.run import Run
from nextvec.training.trainer import load_model
from nextvec.windows import Part

OWN_CONTEXT = 0


def evaluate(
    run: Run,
    bank: Bank,
    part: Part | Literal["all"] = "test",
    context: int | None = OWN_CONTEXT,
    pool: int | None = 1000,
    max_rows: int = 2000,
    progress: Progress = silent,
) -> Report:
    """Exam a run beside every baseline.

    Args:
        part: a held-out part of the bank it was trained on, or ``all``: every
            document of any bank except those the run was trained on.
        context: vectors read at most before each scored row; None for all its
            document has; by default what the run was trained with.
        pool: candidates per scored row; None for the whole bank.
        max_rows: scored rows at most.

    Raises:
        RunError: an untrained run, a bank of another encoder, or a part of a bank that it does not know.
        ExamError: too little to score.
    """
    check_encoder(run, bank)
    model, centre = load_model(run)
    documents, notes = _examined(run, bank, part)
    train = (bank, run.split(bank).train) if bank.fingerprint == run.origin.bank else None
    exam = Exam.over(bank, documents, part, pool, max_rows)
    read = run.settings.context if context == OWN_CONTEXT else context
    return examine(exam, model, run.name, centre, read, train, notes, progress)


def check_encoder(run: Run, bank: Bank) -> None:
    """
    Raises:
        RunError: the bank's vectors come from another encoder than the run's.
    """
    if bank.manifest.encoder_fingerprint != run.origin.encoder or bank.dim != run.origin.dim:
        raise RunError(
            f"the bank's vectors come from {bank.manifest.encoder_fingerprint} ({bank.dim} wide), "
            f"the run was trained on {run.origin.encoder} ({run.origin.dim} wide); they cannot be compared"
        )


def _examined(run: Run, bank: Bank, part: Part | Literal["all"]) -> tuple[Int64[np.ndarray, " M"], tuple[str, ...]]:
    if part != "all":
        return run.split(bank).part(part), ()
    unseen = run.unseen(bank)
    left_out = bank.num_documents - len(unseen)
    if not len(unseen):
        raise RunError(f"{run.path} was trained on every document of this bank; there is nothing it has not seen")
    notes = (f"{left_out} documents that the run was trained on are left out",) if left_out else ()
    if run.origin.encoder == "unknown" and bank.fingerprint != run.origin.bank:
        notes += ("neither bank says which encoder made its vectors; they can only be compared if it was the same",)
    return unseen, notes
