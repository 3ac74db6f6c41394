"""The calibration of the weights of the package on a bank, fitted on the bank's own documents."""

# Axes: M documents.

import numpy as np
from jaxtyping import Int64

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.confidence import USUAL, Calibration, fit
from nextvec.errors import ExamError
from nextvec.evaluation.answers import Answers, answers
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.models.space import Space
from nextvec.progress import Progress, silent
from nextvec.runs.shipped import POWER, shipped_model

ROWS = 1000


def bank_calibration(bank: Bank, progress: Progress = silent) -> Calibration:
    """The calibration of the weights of the package in the space of all rows of a bank.

    A document is a sequence, so it needs no labels. Each half of the documents is
    read in a space that was fitted to the other half, because a space finds more
    of the rows that it was fitted to. A bank that is too small for that gets the
    usual calibration.
    """
    documents = np.arange(bank.num_documents)
    parts = [_answers(bank, documents[n::2], documents[1 - n :: 2], progress) for n in (0, 1)]
    found = [part for part in parts if part is not None]
    if not found:
        return USUAL
    known = Answers.joined(found)
    return fit(known.scores, known.places, known.documents)


def _answers(
    bank: Bank, inside: Int64[np.ndarray, " M"], others: Int64[np.ndarray, " _"], progress: Progress
) -> Answers | None:
    """The answers to rows of some documents in the space of the others; None if there are too few."""
    if not len(others):
        return None
    try:
        exam = Exam.over(bank, inside, "half", None, ROWS // 2)
    except ExamError:
        return None
    of = moments(bank, others)
    model = shipped_model(Space.fitted(of.mean, of.covariance, POWER))
    return answers(exam, model, predict_rows(model, bank, exam.rows, None, progress), None, progress)
