"""Calibrations: fitted on the valid documents of a run, or of a bank that is predicted without training."""

import hashlib
import json
from pathlib import Path
from typing import Any

from nextvec import settings as frozen
from nextvec.bank import Bank
from nextvec.bank.layout import keep, read_json
from nextvec.bank.moments import moments
from nextvec.confidence import Calibration, fit
from nextvec.errors import DataError, ExamError, SettingsError
from nextvec.evaluation.answers import answers
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.models import Recurrent
from nextvec.models.space import Space
from nextvec.progress import Progress, silent
from nextvec.runs import Source
from nextvec.runs.shipped import POWER, SHIPPED_FILE, shipped_model, shipped_settings
from nextvec.windows import Split, split

ROWS = 2000  # valid rows at most
KEPT = "calibration.json"
UNCALIBRATED = (
    "there is no calibration for this model with these candidates; a run gets one at the end of its training, for its own bank "
    "and its own space"
)


def calibrate(model: Recurrent[Any], bank: Bank, parts: Split, progress: Progress = silent) -> Calibration:
    """The calibration of a model for whole contexts and all candidates of a bank, fitted on the valid documents.

    Args:
        model: in evaluation mode, on the processor, made without the valid documents.

    Raises:
        ExamError: too few rows of the valid documents can be scored.
    """
    valid = Exam.over(bank, parts.valid, "valid", None, ROWS)
    found = answers(valid, model, predict_rows(model, bank, valid.rows, None, progress), None, progress)
    return fit(found.scores, found.places, found.documents)


def calibration_of(source: Source, bank: Bank, refit: bool = False, progress: Progress = silent) -> Calibration | None:
    """The calibration of the answers of ``source`` with the rows of ``bank`` as candidates; None if there is none.

    A calibration holds for the candidates and the space that it was fitted with. So
    a run has none with another bank or with a space that was fitted again, and
    none if its training ended before there were calibrations.

    Raises:
        RunError: the calibration of the run is damaged.
    """
    if isinstance(source, Bank):
        return _of_bank(source, progress)
    return source.calibration() if bank.fingerprint == source.origin.bank and not refit else None


def _of_bank(bank: Bank, progress: Progress) -> Calibration | None:
    """The calibration of the weights of the package in the space of the training documents of a bank, kept beside its rows.

    None for a bank that cannot be split, or whose valid documents are too short.
    """
    kept = bank.path / KEPT if bank.path is not None else None
    facts = {"bank": bank.fingerprint, "weights": hashlib.sha256(SHIPPED_FILE.read_bytes()).hexdigest(), "power": POWER}
    found = _read(kept, facts) if kept is not None else None
    if found is not None:
        return found
    shares = shipped_settings().split
    try:
        parts = split(bank, shares.valid, shares.test)
        fitted = moments(bank, parts.train, progress)
        model = shipped_model(Space.fitted(fitted.mean, fitted.covariance, POWER, fitted.rows))
        found = calibrate(model, bank, parts, progress)
    except (DataError, ExamError):
        return None
    if kept is not None:
        keep(kept, json.dumps({**facts, "calibration": frozen.to_json(found)}, indent=1) + "\n")
    return found


def _read(kept: Path, facts: dict[str, Any]) -> Calibration | None:
    """The calibration that was kept for these weights and this content; None if it is missing or damaged."""
    try:
        content = read_json(kept)
        return frozen.from_json(Calibration, content.pop("calibration")) if content | facts == content else None
    except (OSError, DataError, SettingsError, KeyError, TypeError, AttributeError):
        return None
