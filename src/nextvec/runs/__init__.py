"""Runs: the directory of a training, its settings, and the model that the settings describe."""

from nextvec.runs.loading import LoadedModel, check_encoder, load, load_model
from nextvec.runs.run import Run
from nextvec.runs.settings import TrainSettings
from nextvec.runs.sources import Source, bank_of, open_source

__all__ = ["LoadedModel", "Run", "Source", "TrainSettings", "bank_of", "check_encoder", "load", "load_model", "open_source"]
