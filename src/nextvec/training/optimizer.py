"""The optimiser of a run and its learning rate schedule."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nextvec.models import Recurrent
from nextvec.runs.groups import OptimizerSettings

FLOOR = 0.02  # the last learning rate, as a share of the peak
BETAS = (0.9, 0.98)
EPS = 1e-8


class AdamW:
    """``torch.optim.AdamW`` by its functional form: the same numbers, without the compiler.

    The class of torch imports torch's compiler, which costs every process that trains two seconds.
    A ``torch.amp.GradScaler`` takes this one too.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """
        Args:
            groups: each with ``params``, ``weight_decay`` and, before the first step, ``lr``.
        """
        self.param_groups = list(groups)
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        for parameter in parameters_of(self):
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            states = [self._state_of(p) for p in params]
            adamw(
                params,
                [p.grad for p in params if p.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=EPS,
                maximize=False,
            )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self.state:
            zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return self.state[parameter]


def make_optimizer(
    model: Recurrent[Any], log_temperature: nn.Parameter, learn_temperature: bool, settings: OptimizerSettings
) -> AdamW:
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
    return AdamW(group for group in groups if group["params"])


def parameters_of(optimizer: AdamW) -> list[Tensor]:
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
