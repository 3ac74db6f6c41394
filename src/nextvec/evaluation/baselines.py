"""The predictors that learn nothing: what a trained model has to exceed in every report."""

# Axes: R scored rows, M documents, D width.

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from nextvec.bank import Bank
from nextvec.bank.moments import Moments
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.models import Recurrent
from nextvec.models.baselines import Constant, CopyLast, ExponentialMean, MeanOfAll, PooledLags, Successor
from nextvec.models.space import POWERS, InSpace, Space
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks
from nextvec.windows import rows_of

DECAYS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RAW_MEANS = tuple(f"exponential mean {decay:g}" for decay in DECAYS[1:])
POOLED_DECAYS = (0.5, 0.7, 0.8, 0.9)
POOLED_POWER = 0.5
LOOKUP_ROWS = 20_000


def baselines(
    moments: Moments, train: tuple[Bank, Int64[np.ndarray, " M"]] | None = None
) -> Iterator[tuple[str, Recurrent[Any]]]:
    """Every predictor that learns nothing, by name.

    Args:
        moments: of the training rows; they centre the rows and span the spaces.
        train: the training documents, for the lookup of the nearest row.
    """
    centre = torch.from_numpy(moments.mean.astype(np.float32))
    yield "copy last", CopyLast(len(centre))
    for decay in DECAYS:
        yield _mean(decay), ExponentialMean(centre, decay)
    yield "mean of all", MeanOfAll(centre)
    yield "mean vector", Constant(centre)
    nothing = torch.zeros_like(centre)  # rows of a space are centred already
    for power in POWERS:
        space = Space.fitted(moments.mean, moments.covariance, power)
        for decay in DECAYS:
            yield f"{_mean(decay)}, power {power:g}", InSpace(space, ExponentialMean(nothing, decay))
    space = Space.fitted(moments.mean, moments.covariance, POOLED_POWER)
    for decay in POOLED_DECAYS:
        yield f"pooled lags {decay:g}, power {POOLED_POWER:g}", InSpace(space, PooledLags(len(centre), decay))
    if train is not None:
        bank, documents = train
        rows = rows_of(bank, documents, skip=1)
        rows = rows[:: -(-len(rows) // LOOKUP_ROWS)]  # every second, third, … where there are more
        before, after = (torch.from_numpy(bank.rows[r].astype(np.float32)) for r in (rows - 1, rows))
        yield "successor of nearest", Successor(before, after)


def baseline_ranks(
    exam: Exam, predictors: Mapping[str, Recurrent[Any]], context: int | None, progress: Progress = silent
) -> dict[str, Ranks]:
    """The ranks of every baseline on one exam."""
    found: dict[str, Ranks] = {}
    for done, (name, predictor) in enumerate(predictors.items()):
        progress("baselines", done, len(predictors))
        found[name] = exam.rank(predict_rows(predictor, exam.bank, exam.rows, context), predictor)
    progress("baselines", len(predictors), len(predictors))
    return found


def strongest_decay(exam: Exam, moments: Moments) -> float:
    """The decay whose exponential mean of the raw rows has the highest Hit@5: where training starts."""
    centre = torch.from_numpy(moments.mean.astype(np.float32))
    found = {decay: _hits(exam, ExponentialMean(centre, decay)).mean() for decay in DECAYS}
    return max(found, key=lambda decay: found[decay])


def strongest_start(held: Sequence[tuple[Exam, Moments]], powers: Sequence[float]) -> tuple[float, float]:
    """The power and the decay of the exponential mean with the highest Hit@5 over all rows of some exams.

    Args:
        held: exams, each with the moments of rows that it does not score.
        powers: of the spaces that are tried.
    """
    found: dict[tuple[float, float], list[np.ndarray]] = {(power, decay): [] for power in powers for decay in DECAYS}
    for exam, moments in held:
        for power in powers:
            space = Space.fitted(moments.mean, moments.covariance, power)
            for decay in DECAYS:
                mean = InSpace(space, ExponentialMean(torch.zeros(exam.bank.dim), decay))
                found[power, decay].append(_hits(exam, mean))
    return max(found, key=lambda start: np.concatenate(found[start]).mean())


def _hits(exam: Exam, predictor: Recurrent[Any]) -> Float64[np.ndarray, " R"]:
    return exam.rank(predict_rows(predictor, exam.bank, exam.rows, None), predictor).hits(5)


def _mean(decay: float) -> str:
    return "centred last" if decay == 0 else f"exponential mean {decay:g}"
