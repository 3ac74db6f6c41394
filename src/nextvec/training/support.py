"""A check that this machine computes a model's update, made before a run writes anything."""

# Axes: D width.

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from nextvec.errors import SettingsError
from nextvec.models import Recurrent
from nextvec.runs.groups import Precision
from nextvec.runs.settings import TrainSettings

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBED = 3  # positions
# Tried in this order when the settings do not compute; the first that does is proposed.
ALTERNATIVES: tuple[dict[str, Any], ...] = (
    {"compile": False},
    {"precision": "bfloat16"},
    {"precision": "float32"},
    {"device": "cpu", "precision": "float32"},
)


@contextmanager
def reduced_precision(precision: Precision, device: str) -> Generator[None]:
    """Products inside are computed in ``precision`` on a device of this type."""
    with torch.autocast(device, PRECISIONS[precision], enabled=precision != "float32"):
        yield


def check_computes(model: Recurrent[Any], settings: TrainSettings, dim: int) -> None:
    """Compute one small forward and backward pass of the model as the settings would; the gradients are dropped again.

    A model, a precision and a device may each be supported and their combination not: oneDNN, for example, has
    operations for only some processors and says so only when they run.

    Args:
        model: of the settings' model class, on any device; it is on ``settings.compute.device`` afterwards.
        dim: width D of its vectors.

    Raises:
        SettingsError: this machine does not compute it; the message names the nearest settings that it computes.
    """
    failure = _failure(model, settings, dim)
    if failure is None:
        return
    c = settings.compute
    asked = {"model": settings.model, "precision": c.precision, "device": c.device, "compile": c.compile}
    named = _written({name: value for name, value in asked.items() if value is not False})
    raise SettingsError(f"{named}: this machine does not compute it ({failure}); {_advice(model, settings, dim)}")


def _advice(model: Recurrent[Any], settings: TrainSettings, dim: int) -> str:
    for changes in ALTERNATIVES:
        other, before = settings.replaced(**changes), settings.flat()
        if other != settings and _failure(model, other, dim) is None:
            return "choose " + _written({name: value for name, value in changes.items() if before[name] != value})
    return "choose another model"


def _written(settings: dict[str, Any]) -> str:
    """As ``--set`` takes them."""
    return " ".join(f"{name}={str(value).lower()}" for name, value in settings.items())


def _failure(model: Recurrent[Any], settings: TrainSettings, dim: int) -> str | None:
    """The first line of what torch raised, None if it computed."""
    c = settings.compute
    try:
        if c.compile:
            _compile()
        model.to(c.device)
        x_BTD = torch.eye(1, dim, device=c.device).expand(1, PROBED, dim)
        scaler = torch.amp.GradScaler(c.device, enabled=c.precision == "float16")
        with reduced_precision(c.precision, c.device):
            y_BTD = model(x_BTD)
        scaler.scale(y_BTD.float().sum()).backward()
    except RuntimeError as error:  # also of an operation that is not implemented, and of memory that does not suffice
        return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    finally:
        model.zero_grad()
    return None


@cache
def _compile() -> None:
    """Compile one small function: ``torch.compile`` needs a C++ compiler, or Triton on an accelerator.

    Raises:
        RuntimeError: it cannot.
    """
    torch.compile(torch.nn.functional.silu)(torch.zeros(2))
