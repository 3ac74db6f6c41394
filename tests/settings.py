"""Settings of tests that run several models."""

from typing import Any

from nextvec.runs import TrainSettings
from nextvec.runs.settings import reads


def fitting(model: str, **values: Any) -> TrainSettings:
    """The settings of a model, with those of the values that it reads."""
    return TrainSettings.of(model, **{name: value for name, value in values.items() if reads(model, name)})
