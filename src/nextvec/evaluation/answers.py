"""The answers of a model to the scored rows of an exam: the first of all candidates of the bank, as an engine gives them."""

# Axes: R scored rows, W width of an output, F first scores.

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.candidate_map import CandidateMap, index_of, mean_candidate, search
from nextvec.confidence import FIRST, AnswerScores, Calibration, RankDistribution, Reliability
from nextvec.evaluation.exam import Exam
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent

QUERIES = 256  # of one search


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers for the scored rows of an exam.

    Attributes:
        scores: of the answers.
        places: of the next vector in each answer, from 0; ``FIRST`` where it is not among the first ten.
        documents: of each scored row.
    """

    scores: AnswerScores
    places: Int64[np.ndarray, " R"]
    documents: Int64[np.ndarray, " R"]

    def reliability(self, calibration: Calibration, k: int) -> Reliability:
        """The probabilities that the next vector is among the first ``k``, and whether it was."""
        probabilities = RankDistribution(self.scores, calibration).within(k)
        return Reliability(k, probabilities, self.places < k, self.documents)


@torch.inference_mode()
def answers(
    exam: Exam,
    model: Recurrent[Any],
    predicted_RW: Float[Tensor, "R W"],
    context: int | None,
    progress: Progress = silent,
) -> Answers:
    """The first ten of all candidates of the exam's bank for each scored row, whatever the pool of the exam.

    Vectors that the document of a row holds before it are left out, as an engine leaves out what its session has read.

    Args:
        predicted_RW: the outputs of the model for the scored rows.
        context: vectors read at most before each scored row; None for all.
    """
    bank, rows = exam.bank, exam.rows
    index = index_of(bank, CandidateMap.of(model))
    typical = model.scores(predicted_RW, mean_candidate(bank, model))[:, 0].numpy()
    classes, starts = bank.classes, bank.offsets[exam.clusters]
    scores, places = np.empty((len(rows), FIRST), np.float32), np.empty(len(rows), np.int64)
    together = max(1, QUERIES // model.num_queries)
    for first in range(0, len(rows), together):
        block = slice(first, first + together)
        held = [np.unique(classes[start:row]) for start, row in zip(starts[block], rows[block], strict=True)]
        found = search(model, index, predicted_RW[block].numpy(), FIRST, held)
        scores[block] = found.scores
        true = found.rows == classes[rows[block]][:, None]
        places[block] = np.where(true.any(1), true.argmax(1), FIRST)
        progress("answers", min(first + together, len(rows)), len(rows))
    past = rows - starts
    read = past if context is None else np.minimum(past, context)
    return Answers(AnswerScores(scores, typical, exam.admissible, read), places, exam.clusters)
