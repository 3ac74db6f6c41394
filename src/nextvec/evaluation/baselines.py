"""The untrained predictors that every report compares a trained model with."""

# Axes: R scored rows, M documents, N outputs, Q queries, C candidates, D width, W width of an output, E width of a candidate.

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.moments import Moments
from nextvec.evaluation.exam import BLOCK, Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.models import Recurrent
from nextvec.models.baselines import (
    LAGS_SHARE,
    Beside,
    Constant,
    CopyLast,
    ExponentialMean,
    MeanAndLags,
    MeanOfAll,
    PooledLags,
    Successor,
)
from nextvec.models.space import POWERS, InSpace, Space
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks, paired_lift
from nextvec.windows import rows_of

DECAYS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
COPY_LAST, MEAN_OF_ALL, MEAN_VECTOR, SUCCESSOR = "copy last", "mean of all", "mean vector", "successor of nearest"
IN_SPACE, POOLED, WITH_POOLED = ", power ", "pooled lags", " with pooled lags "  # parts of names
RAW_MEANS = tuple(f"exponential mean {decay:g}" for decay in DECAYS[1:])
MEANS = ("centred last", *RAW_MEANS)
POOLED_DECAYS = (0.5, 0.7, 0.8, 0.9)
POOLED_POWERS = (0.25, 0.5, 0.75)
JOINED_MEANS, JOINED_LAGS = (0.6, 0.8, 0.9), (0.5, 0.7)  # decays of means with pooled lags
USUAL_POWER = 0.5  # of a space where nothing speaks for another
LOOKUP_ROWS = 20_000


@dataclass(frozen=True, eq=False)
class Together:
    """Baselines that share a pass over the bank and the map of the candidates.

    Attributes:
        names: of the baselines.
        model: whose output holds what each of them predicts.
        scores: of outputs [N, W] and mapped candidates [C, E], the scores [N, C] of each baseline.
        block: outputs that are scored at once.
    """

    names: tuple[str, ...]
    model: Recurrent[Any]
    scores: Callable[[Tensor, Tensor], Iterable[Tensor]]
    block: int = BLOCK

    def predict(self, exam: Exam, context: int | None) -> Float[Tensor, "R W"]:
        """The outputs for the scored rows; exams of the same rows with other pools share them."""
        return predict_rows(self.model, exam.bank, exam.rows, context)

    def ranks(self, exam: Exam, predicted_RW: Float[Tensor, "R W"]) -> dict[str, Ranks]:
        """The ranks of each baseline, by name."""
        found = exam.rank_each(predicted_RW, self.model, self.scores, len(self.names), self.block)
        return dict(zip(self.names, found, strict=True))


def kind_of(name: str) -> str:
    """The kind of a baseline: those that differ only in their decay are of one kind; pooled lags of all powers, too."""
    named, comma, power = name.partition(IN_SPACE)
    if named in MEANS:
        return f"exponential means{comma}{power}"
    if WITH_POOLED in named:
        return f"exponential means{WITH_POOLED.rstrip()}"
    return POOLED if named.startswith(POOLED) else name


def is_raw(name: str) -> bool:
    """Whether a baseline compares the rows themselves, in no fitted space."""
    return IN_SPACE not in name


def baselines(
    moments: Moments, train: tuple[Bank, Int64[np.ndarray, " M"]] | None = None
) -> Iterator[tuple[str, Recurrent[Any]]]:
    """Every untrained predictor, by name.

    Args:
        moments: of the training rows; they centre the rows and span the spaces.
        train: the training documents, for the lookup of the nearest row.
    """
    centre, nothing = _centres(moments)
    yield COPY_LAST, CopyLast(len(centre))
    for decay in DECAYS:
        yield _mean(decay), ExponentialMean(centre, decay)
    yield MEAN_OF_ALL, MeanOfAll(centre)
    yield MEAN_VECTOR, Constant(centre)
    for power in POWERS:
        space = Space.fitted(moments.mean, moments.covariance, power, moments.rows)
        for decay in DECAYS:
            yield _in_space(_mean(decay), power), InSpace(space, ExponentialMean(nothing, decay))
    for power in POOLED_POWERS:
        space = Space.fitted(moments.mean, moments.covariance, power, moments.rows)
        for decay in POOLED_DECAYS:
            yield _in_space(_pooled(decay), power), InSpace(space, PooledLags(len(centre), decay))
        for mean, lags in product(JOINED_MEANS, JOINED_LAGS):
            yield _in_space(_joined(mean, lags), power), InSpace(space, MeanAndLags(len(centre), mean, lags))
    if train is not None:
        yield SUCCESSOR, _successor(*train)


def together(moments: Moments, train: tuple[Bank, Int64[np.ndarray, " M"]] | None = None) -> Iterator[Together]:
    """The same predictors as :func:`baselines`: those that differ only in their decay together.

    Args:
        moments, train: as in :func:`baselines`.
    """
    centre, _ = _centres(moments)
    yield _alone(COPY_LAST, CopyLast(len(centre)))
    yield means_in_space(moments, None)
    yield _alone(MEAN_OF_ALL, MeanOfAll(centre))
    yield _alone(MEAN_VECTOR, Constant(centre))
    for power in POWERS:
        yield means_in_space(moments, power)
    for power in POOLED_POWERS:
        yield lags_in_space(moments, power)
    if train is not None:
        yield _alone(SUCCESSOR, _successor(*train))


def baseline_ranks(
    exam: Exam, groups: Sequence[Together], context: int | None, progress: Progress = silent
) -> dict[str, Ranks]:
    """The ranks of every baseline on one exam."""
    found: dict[str, Ranks] = {}
    for done, group in enumerate(groups):
        progress("baselines", done, len(groups))
        found |= group.ranks(exam, group.predict(exam, context))
    progress("baselines", len(groups), len(groups))
    return found


def strongest_decay(exam: Exam, moments: Moments) -> float:
    """The decay whose exponential mean of the raw rows has the highest Hit@5: where training starts."""
    means = [float(ranks.hits(5).mean()) for ranks in _ranks(exam, means_in_space(moments, None))]
    return DECAYS[means.index(max(means))]


def strongest_start(held: Sequence[tuple[Exam, Moments]], powers: Sequence[float]) -> tuple[float, float]:
    """The power and the decay of the exponential mean that training starts from.

    It is the strongest decay of power 0.5, unless another power is better by more
    than chance explains: the 95 % interval of the difference, paired by row, lies
    above 0. With few rows the differences between powers are chance, and 0.5 was
    best or near the best on every bank that was measured.

    Args:
        held: exams, each with the moments of rows that it does not score.
        powers: of the spaces that are tried.
    """
    best = {power: _strongest(held, power) for power in powers}
    usual = min(powers, key=lambda power: abs(power - USUAL_POWER))
    better = [power for power in powers if power != usual and paired_lift(best[power][1], best[usual][1], 5).low > 0]
    chosen = max(better or [usual], key=lambda power: best[power][1].hits(5).mean())
    return chosen, best[chosen][0]


def _strongest(held: Sequence[tuple[Exam, Moments]], power: float) -> tuple[float, Ranks]:
    """The decay with the highest Hit@5 over all rows of the exams, and its ranks on them."""
    ranked = [_ranks(exam, means_in_space(moments, power)) for exam, moments in held]
    joined = {decay: Ranks.joined([ranks[n] for ranks in ranked]) for n, decay in enumerate(DECAYS)}
    decay = max(joined, key=lambda decay: joined[decay].hits(5).mean())
    return decay, joined[decay]


def _ranks(exam: Exam, group: Together) -> list[Ranks]:
    return list(group.ranks(exam, group.predict(exam, None)).values())


def _alone(name: str, model: Recurrent[Any]) -> Together:
    return Together((name,), model, lambda y_NW, mapped_CE: [model.scores(y_NW, mapped_CE)])


def means_in_space(moments: Moments, power: float | None) -> Together:
    """The exponential means with all decays, of the raw rows or in the space of a power."""
    centre, nothing = _centres(moments)
    if power is None:
        return Together(tuple(map(_mean, DECAYS)), ExponentialMean(centre, *DECAYS), _mean_scores)
    space = Space.fitted(moments.mean, moments.covariance, power, moments.rows)
    names = tuple(_in_space(_mean(decay), power) for decay in DECAYS)
    return Together(names, InSpace(space, ExponentialMean(nothing, *DECAYS)), _mean_scores)


def _mean_scores(y_NW: Float[Tensor, "N W"], mapped_CE: Float[Tensor, "C E"]) -> Iterator[Float[Tensor, "N C"]]:
    for mean_NE in y_NW.chunk(len(DECAYS), dim=1):
        yield mean_NE @ mapped_CE.T


def lags_in_space(moments: Moments, power: float) -> Together:
    """The pooled lags with all decays in the space of a power, alone and with exponential means."""
    _, nothing = _centres(moments)
    lags = PooledLags(len(nothing), *POOLED_DECAYS)
    names = (*map(_pooled, POOLED_DECAYS), *(_joined(mean, decay) for mean, decay in product(JOINED_MEANS, JOINED_LAGS)))
    space = Space.fitted(moments.mean, moments.covariance, power, moments.rows)
    model = InSpace(space, Beside(ExponentialMean(nothing, *JOINED_MEANS), lags))
    return Together(tuple(_in_space(name, power) for name in names), model, _LagScores(lags), BLOCK // lags.num_queries)


@dataclass(frozen=True)
class _LagScores:
    """The scores of pooled lags, alone and with means: the products with lags and means are the same for all decays."""

    lags: PooledLags

    def __call__(self, y_NW: Float[Tensor, "N W"], mapped_CE: Float[Tensor, "C E"]) -> Iterator[Float[Tensor, "N C"]]:
        count, dim = self.lags.num_queries, mapped_CE.shape[1]
        means, queries, log_weights = y_NW.split([len(JOINED_MEANS) * dim, count * dim, len(POOLED_DECAYS) * count], dim=1)
        products_NQC = self.lags.sharpness * (queries.reshape(-1, dim) @ mapped_CE.T).view(len(y_NW), count, -1)
        pooled = {
            decay: torch.logsumexp(products_NQC + log_weights_NQ[..., None], dim=1) / self.lags.sharpness
            for decay, log_weights_NQ in zip(POOLED_DECAYS, log_weights.split(count, dim=1), strict=True)
        }
        of_means = dict(zip(JOINED_MEANS, (mean_ND @ mapped_CE.T for mean_ND in means.split(dim, dim=1)), strict=True))
        yield from (scores_NC.clone() for scores_NC in pooled.values())
        for mean, decay in product(JOINED_MEANS, JOINED_LAGS):
            yield of_means[mean] + LAGS_SHARE * pooled[decay]


def _successor(bank: Bank, documents: Int64[np.ndarray, " M"]) -> Successor:
    rows = rows_of(bank, documents, skip=1)
    rows = rows[:: -(-len(rows) // LOOKUP_ROWS)]  # every second, third, … where there are more
    before, after = (torch.from_numpy(bank.rows[r].astype(np.float32)) for r in (rows - 1, rows))
    return Successor(before, after)


def _centres(moments: Moments) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """The centre of the raw rows, and that of the rows of a space, which are centred already."""
    centre = torch.from_numpy(moments.mean.astype(np.float32))
    return centre, torch.zeros_like(centre)


def _mean(decay: float) -> str:
    return MEANS[DECAYS.index(decay)]


def _in_space(name: str, power: float) -> str:
    return f"{name}{IN_SPACE}{power:g}"


def _pooled(decay: float) -> str:
    return f"{POOLED} {decay:g}"


def _joined(mean: float, lags: float) -> str:
    return f"{_mean(mean)}{WITH_POOLED}{lags:g}"
