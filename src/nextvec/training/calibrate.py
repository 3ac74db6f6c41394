"""The calibration of a trained run, fitted on documents that it was not trained on, or that its space was not fitted on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nextvec.confidence import Calibration, fit
from nextvec.evaluation.answers import Answers, answers
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.models import Recurrent
from nextvec.runs.loading import load_model
from nextvec.runs.run import Run
from nextvec.training.folds import Fold

ROWS = 1000  # of all folds together


def calibrate(run: Run, valid: Exam, folds: Sequence[Fold]) -> Calibration:
    """The calibration of a run's best weights, for whole contexts and all candidates of its bank."""
    found = known_answers(load_model(run), valid, folds)
    return fit(found.scores, found.places, found.documents)


def known_answers(model: Recurrent[Any], valid: Exam, folds: Sequence[Fold]) -> Answers:
    """The answers that a calibration is fitted to: to the rows of the valid exam, and to rows of the training documents.

    The training documents have a part if the model has a space and fewer weights
    than training rows. Every fold is read in its own space, which was fitted
    without it, and so few weights know little of the documents that they were
    trained on (docs/confidence.md). The valid documents are often too few.

    Args:
        model: in evaluation mode, on the processor.
    """
    parts = [_answers(valid, model)]
    weights = sum(parameter.numel() for parameter in model.parameters())
    if weights > sum(len(fold.rows) for fold in folds):
        return parts[0]
    for fold in folds:
        if fold.space is not None:
            documents = np.unique(valid.bank.document_of(fold.rows))
            with fold.reading(model):
                parts.append(_answers(Exam.over(valid.bank, documents, "train", None, ROWS // len(folds)), model))
    return Answers.joined(parts)


def _answers(exam: Exam, model: Recurrent[Any]) -> Answers:
    return answers(exam, model, predict_rows(model, exam.bank, exam.rows, None), None)
