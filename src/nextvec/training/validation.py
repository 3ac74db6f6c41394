"""The valid exam: what the model scores on it, and whether that is an improvement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.report import HITS
from nextvec.models import Recurrent
from nextvec.models.queries import device_of
from nextvec.ranks import Ranks, paired_lift
from nextvec.runs.groups import ValidationSettings
from nextvec.training.alarms import Collapse, collapse


@dataclass(frozen=True)
class Validation:
    """One evaluation of the valid exam.

    Attributes:
        figures: Hit@1/5/10, the interval of Hit@5 (``low``, ``high``) and the mean cosine to the truth.
        variety: how varied the predictions are.
    """

    ranks: Ranks
    figures: dict[str, float]
    variety: Collapse

    @property
    def alarms(self) -> list[str]:
        return [self.variety.alarm] if self.variety.alarm else []

    def to_json(self) -> dict[str, Any]:
        v = self.variety
        return {
            "valid": self.figures,
            "collapse": {"effective_rank": v.effective_rank, "mean_cosine": v.mean_cosine, "hubness": v.hubness},
        }


def validate(model: Recurrent[Any], exam: Exam, weights: dict[str, Tensor] | None = None) -> Validation:
    """Evaluate a model on the valid exam; with ``weights`` as if it had these, and it keeps its own."""
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()} if weights is not None else None
    if weights is not None:
        model.load_state_dict(weights)
    predicted = predict_rows(model, exam.bank, exam.rows, None)
    if own is not None:
        model.load_state_dict(own)
    ranks = exam.rank(predicted, model)
    with torch.inference_mode():
        truths = model.candidates(exam.truths().to(device_of(model))).cpu()
        directions = model.queries(predicted).mean()
    variety, hit5 = collapse(directions, truths), ranks.hit(5)
    figures = {f"hit@{k}": float(ranks.hits(k).mean()) for k in HITS}
    figures |= {"low": hit5.low, "high": hit5.high, "cosine": float((directions * truths).sum(1).mean())}
    return Validation(ranks, figures, variety)


def is_best(settings: ValidationSettings, found: Validation, records: Sequence[dict[str, Any]]) -> bool:
    """Whether no earlier validation was as good, so that the weights are kept."""
    judged = "cosine" if settings.stop_on == "cosine" else "hit@5"
    return all(record["valid"][judged] < found.figures[judged] for record in records)


def is_progress(settings: ValidationSettings, found: Validation, best: bool, reference: Ranks | None) -> bool:
    """Whether the validation is an improvement, so that patience starts anew.

    With ``stop_on=interval`` it must be better than the last improvement by more than chance explains: the 95 % interval
    of the difference, paired by row, lies above 0. Weights are kept for any gain, because the higher estimate is the
    better one.
    """
    if settings.stop_on != "interval" or reference is None:
        return best
    return paired_lift(found.ranks, reference, 5).low > 0


def patience_spent(settings: ValidationSettings, records: Sequence[dict[str, Any]]) -> bool:
    """Whether ``patience`` validations have passed since the last improvement."""
    progress = max(n for n, record in enumerate(records) if record["progress"])
    return len(records) - 1 - progress >= settings.patience
