"""Runs: the directory of a training, its settings, and the model that the settings describe."""

from nextvec.runs.loading import check_encoder, load_model
from nextvec.runs.run import Run
from nextvec.runs.settings import TrainSettings

__all__ = ["Run", "TrainSettings", "check_encoder", "load_model"]
