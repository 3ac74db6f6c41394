"""A trained run sits an exam on a bank, its own or one it never saw."""

# Axes: M documents, R scored rows.

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64
from safetensors.numpy import load, save

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.errors import RunError
from nextvec.evaluation import Exam, Report, examine, predict_rows
from nextvec.lanes import Lanes
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks
from nextvec.runs.loading import check_encoder, load_model
from nextvec.runs.run import BEST, Run
from nextvec.windows import Part, missed_shares

OWN_CONTEXT = 0
SITTINGS = "sittings"


@dataclass(frozen=True)
class Sitting:
    """A run's answer to one exam: what any comparison needs, and nothing that has to be computed again.

    Attributes:
        rows: [R] that were scored.
    """

    exam: str
    pool: int | None
    context: int | None
    ranks: Ranks
    rows: Int64[np.ndarray, " R"]


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
    """Exam a run beside every baseline.

    Args:
        part: a held-out part of the bank it was trained on, or ``all``: every
            document of any bank except those the run was trained on.
        context: vectors read at most before each scored row; None for all its
            document has; by default what the run was trained with.
        pool: candidates per scored row; None for the whole bank.
        max_rows: scored rows at most.
        lanes: of that bank, to tell the figures lane by lane.

    Raises:
        RunError: an untrained run, a bank of another encoder, or a part of a bank that it does not know.
        ExamError: too little to score.
    """
    check_encoder(run, bank)
    model, centre = load_model(run)
    documents, notes = _examined(run, bank, part)
    train = (bank, run.split(bank).train) if bank.fingerprint == run.origin.bank else None
    exam = Exam.over(bank, documents, part, pool, max_rows)
    read = run.settings.passages.context if context == OWN_CONTEXT else context
    return examine(exam, model, run.name, centre, read, train, notes, progress, lanes)


def sittings(
    run: Run,
    bank: Bank,
    part: Part | Literal["all"] = "test",
    context: int | None = OWN_CONTEXT,
    pools: Sequence[int | None] = (1000,),
    max_rows: int = 2000,
    progress: Progress = silent,
) -> list[Sitting]:
    """The same scored rows, predicted once, ranked among each of several pools. Kept in the run for the next time.

    Args: as :func:`evaluate`'s, but several pools.

    Raises: as :func:`evaluate`.
    """
    check_encoder(run, bank)
    documents, _ = _examined(run, bank, part)
    whole = Exam.over(bank, documents, part, None, max_rows)
    exams = [whole.among(pool) for pool in pools]
    read = run.settings.passages.context if context == OWN_CONTEXT else context
    files = [_sitting_file(run, exam, read) for exam in exams]
    if not all(file.exists() for file in files):
        model, _ = load_model(run)
        predicted = predict_rows(model, bank, exams[0].rows, read, progress)
        for exam, file in zip(exams, files, strict=True):
            ranks = exam.rank(predicted)
            file.parent.mkdir(exist_ok=True)
            held = {"above": ranks.above, "tied": ranks.tied, "candidates": ranks.candidates, "clusters": ranks.clusters}
            write_atomically(file, save(held))
    found = [Ranks(**load(file.read_bytes())) for file in files]
    return [Sitting(exam.id, exam.pool, read, ranks, exam.rows) for exam, ranks in zip(exams, found, strict=True)]


def _sitting_file(run: Run, exam: Exam, context: int | None) -> Path:
    """Named by all it depends on, so that it is never out of date: weights, exam, context."""
    weights = run.path / BEST
    if not weights.is_file():
        raise RunError(f"{run.path} has no {BEST}; has it been trained?")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    return run.path / SITTINGS / f"{exam.id}-{context or 'all'}-{digest}.safetensors"


def _examined(run: Run, bank: Bank, part: Part | Literal["all"]) -> tuple[Int64[np.ndarray, " M"], tuple[str, ...]]:
    if part != "all":
        parts = run.split(bank)
        missed = missed_shares(bank, parts, run.settings.split.valid, run.settings.split.test)
        # An expert of one lane has fewer valid documents on purpose.
        by_plan = run.settings.source.lane_filter and part == "valid"
        return parts.part(part), (missed[part],) if part in missed and not by_plan else ()
    unseen = run.unseen(bank)
    left_out = bank.num_documents - len(unseen)
    if not len(unseen):
        raise RunError(f"{run.path} was trained on every document of this bank; there is nothing it has not seen")
    notes = (f"{left_out} documents that the run was trained on are left out",) if left_out else ()
    if bank.fingerprint != run.origin.bank:
        notes += (
            f"bank {bank.fingerprint[:12]}{f' at {bank.path}' if bank.path else ''} is examined; "
            f"the run was trained on bank {run.origin.bank[:12]}",
        )
    if run.origin.encoder == "unknown" and bank.fingerprint != run.origin.bank:
        notes += ("neither bank says which encoder made its vectors; they can only be compared if it was the same",)
    return unseen, notes
