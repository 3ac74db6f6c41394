"""Training: a generator of events over a run directory that survives being killed."""

from nextvec.training.evaluate import evaluate
from nextvec.training.run import Run
from nextvec.training.settings import TrainSettings
from nextvec.training.trainer import Evaluated, Event, Finished, Stepped, begin, load_model, train

__all__ = ["Evaluated", "Event", "Finished", "Run", "Stepped", "TrainSettings", "begin", "evaluate", "load_model", "train"]
