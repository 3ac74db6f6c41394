"""The surprise of every chunk of a sequence: -log2 of the probability that the model gave it."""

# Axes: T rows of the sequence, N predictions, W width of an output, U distinct vectors, E width of a candidate.

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.candidate_map import mean_candidate
from nextvec.confidence import FIRST, AnswerScores, Calibration, RankDistribution
from nextvec.evaluation.exam import mapped_items
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent

SEGMENT = 1024  # vectors that are read at once
QUERIES = 256  # that are compared with all candidates at once


@dataclass(frozen=True, eq=False)
class Surprise:
    """How improbable each row of a sequence was.

    Attributes:
        bits: -log2 p. NaN for the first row, which no context predicts, and for a row whose vector the sequence held before,
            which no answer names.
        ranks: of the row among all candidates, from 1; NaN as ``bits``.
    """

    bits: Float64[np.ndarray, " T"]
    ranks: Float64[np.ndarray, " T"]


@torch.inference_mode()
def surprise(
    model: Recurrent[Any], calibration: Calibration, bank: Bank, rows: Int64[np.ndarray, " T"], progress: Progress = silent
) -> Surprise:
    """The surprise of rows of a bank that are read one after another as one document.

    The candidates are all distinct vectors of the bank that the sequence does not
    hold before the row, as in an answer.

    Args:
        model: in evaluation mode, on the processor.
        rows: of one document, or of parts of several.
    """
    columns = bank.distinct.numbers[bank.sequences.items(rows)]
    scored = np.sort(np.unique(columns, return_index=True)[1])[1:]  # where each vector comes first, without the first row
    predicted = _outputs(model, bank.rows[rows])
    mapped, mean = mapped_items(bank, bank.distinct.firsts, model), mean_candidate(bank, model)
    first, ranks = np.empty((len(scored), FIRST), np.float32), np.empty(len(scored))
    typical, count = np.empty(len(scored), np.float32), np.empty(len(scored), np.int64)
    together = max(1, QUERIES // model.num_queries)
    for start in range(0, len(scored), together):
        block = scored[start : start + together]
        y_NW = predicted[block - 1]
        scores_NU = model.scores(y_NW, mapped)
        typical[start : start + together] = model.scores(y_NW, mean)[:, 0].numpy()
        for n, t in enumerate(block.tolist(), start):
            held = np.unique(columns[:t])
            first[n], ranks[n] = _place(scores_NU[n - start], int(columns[t]), held)
            count[n] = len(mapped) - len(held)
        progress("surprise", start + len(block), len(scored))
    distribution = RankDistribution(AnswerScores(first, typical, count, scored), calibration)
    found = Surprise(np.full(len(rows), np.nan), np.full(len(rows), np.nan))
    found.bits[scored], found.ranks[scored] = distribution.bits(ranks), ranks
    return found


def _outputs(model: Recurrent[Any], rows: np.ndarray) -> Float[Tensor, "T W"]:
    """The output after each row."""
    state, parts = model.start(1), []
    for segment in torch.from_numpy(rows.astype(np.float32)).split(SEGMENT):
        state, y_BTW = model.run(state, segment[None])
        parts.append(y_BTW[0])
    return torch.cat(parts)


def _place(
    scores_U: Float[Tensor, " U"], column: int, held: Int64[np.ndarray, " held"]
) -> tuple[Float[np.ndarray, " F"], float]:
    """The best scores without those of the held columns, and the rank of a column; of equal scores the mean rank."""
    own = scores_U[column].item()
    scores_U[torch.from_numpy(held)] = -torch.inf
    best = torch.full((FIRST,), -torch.inf)
    found = scores_U.topk(min(FIRST, len(scores_U))).values
    best[: len(found)] = found
    above, tied = int((scores_U > own).sum()), int((scores_U == own).sum()) - 1
    return best.numpy(), 1 + above + tied / 2
