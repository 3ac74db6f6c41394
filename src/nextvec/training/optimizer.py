"""The optimiser of a run and its learning rate schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nextvec.models import Recurrent
from nextvec.runs.groups import OptimizerSettings

FLOOR = 0.02  # the last learning rate, as a share of the peak


def make_optimizer(
    model: Recurrent[Any], log_temperature: nn.Parameter, learn_temperature: bool, settings: OptimizerSettings
) -> torch.optim.AdamW:
    """AdamW in two groups.

    Matrices learn at ``lr`` with weight decay. Vectors, scalars and what the model trains like vectors learn
    ``vector_lr_multiplier`` times as fast without weight decay, because they are few and all content shares them.
    """
    named = dict(model.named_parameters())
    vectors = [p for name, p in named.items() if p.ndim < 2 or name.startswith(model.vector_parameters)]
    matrices = [p for p in named.values() if not any(p is q for q in vectors)]
    temperature = [log_temperature] if learn_temperature else []
    groups = [
        {"params": matrices, "factor": 1.0, "weight_decay": settings.weight_decay},
        {"params": [*vectors, *temperature], "factor": settings.vector_lr_multiplier, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every parameter that the optimiser updates, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def rate_factor(settings: OptimizerSettings, update: int, seconds: float) -> float:
    """The learning rate of an update as a factor of the peak: a linear warm-up, then a cosine to ``FLOOR``.

    Args:
        seconds: of training so far; the cosine follows it where ``settings.seconds`` limits the time.
    """
    if update < settings.warmup:
        return (update + 1) / settings.warmup
    done = (update - settings.warmup) / max(1, settings.updates - settings.warmup)
    if settings.seconds:
        done = max(done, seconds / settings.seconds)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
