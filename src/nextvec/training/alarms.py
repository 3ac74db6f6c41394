"""Alarms: named conditions that make the figures of a training doubtful."""

# Axes: N predictions, D width.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

NOT_FINITE, EXPLOSION, COLLAPSE = "not finite", "gradient explosion", "collapse"
FEW_UPDATES, SMALL_EXAM = "too few updates", "eval set too small"

TIMES_THE_MEDIAN = 20.0
REMEMBERED = 200  # gradient norms
LEAST_RANK, MOST_ALIKE, MOST_HUB = 0.1, 0.9, 0.5
LEAST_UPDATES = 50
LEAST_ROWS, LEAST_DOCUMENTS = 500, 3
NEIGHBOURS = 10


@dataclass(frozen=True)
class Collapse:
    """How varied the predictions are, compared with the truths.

    Attributes:
        effective_rank: of the predictions over that of the truths, both centred
            (exponential of the entropy of the singular values; Roy and Vetterli 2007).
        mean_cosine: between two predictions.
        hubness: share of predictions that have the most frequent truth among
            their ten nearest truths (Radovanovic et al. 2010).
    """

    effective_rank: float
    mean_cosine: float
    hubness: float

    @property
    def alarm(self) -> str | None:
        """The alarm, if the predictions hardly depend on the input; else None."""
        if self.effective_rank >= LEAST_RANK and self.mean_cosine <= MOST_ALIKE and self.hubness <= MOST_HUB:
            return None
        return (
            f"{COLLAPSE}: effective rank {self.effective_rank:.2f} of the truths', "
            f"mean cosine {self.mean_cosine:.2f}, one candidate near {self.hubness:.0%} of the predictions"
        )


def collapse(predicted_ND: Float[Tensor, "N D"], truth_ND: Float[Tensor, "N D"]) -> Collapse:
    """The variety of the predictions of one exam."""
    predicted, truth = normalize(predicted_ND.float(), dim=-1), normalize(truth_ND.float(), dim=-1)
    count = len(predicted)
    alike = float((predicted.sum(0).square().sum() - count) / max(1, count * (count - 1)))
    nearest = (predicted @ truth.T).topk(min(NEIGHBOURS, count), dim=1).indices
    hub = float(torch.bincount(nearest.flatten(), minlength=count).max()) / count
    return Collapse(_effective_rank(predicted) / max(1.0, _effective_rank(truth)), alike, hub)


def explosion(norm: float, earlier: Sequence[float]) -> str | None:
    """The alarm, if a gradient norm is far above the earlier ones; else None."""
    if len(earlier) < 10 or norm <= TIMES_THE_MEDIAN * float(np.median(earlier)):
        return None
    return f"{EXPLOSION}: norm {norm:.3g}, {norm / float(np.median(earlier)):.0f} times the median of the last {len(earlier)}"


def small_exam(rows: int, documents: int) -> str | None:
    """The alarm, if the valid exam is too small for decisions; else None."""
    if rows >= LEAST_ROWS and documents >= LEAST_DOCUMENTS:
        return None
    return f"{SMALL_EXAM}: {rows} rows of {documents} documents; want {LEAST_ROWS} of {LEAST_DOCUMENTS}"


def few_updates(update: int) -> str | None:
    """The alarm, if training ended after too few updates to learn much; else None."""
    return None if update >= LEAST_UPDATES else f"{FEW_UPDATES}: {update}; want {LEAST_UPDATES}"


def _effective_rank(rows_ND: Float[Tensor, "N D"]) -> float:
    values = torch.linalg.svdvals(rows_ND - rows_ND.mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))
