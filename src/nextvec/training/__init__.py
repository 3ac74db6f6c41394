"""Training: a generator of events over a run directory that survives being killed."""

from nextvec.training.begin import begin, load_model
from nextvec.training.evaluate import Sitting, evaluate, sittings
from nextvec.training.run import Run
from nextvec.training.settings import TrainSettings
from nextvec.training.trainer import Alarmed, Evaluated, Event, Finished, Stepped, train

__all__ = [
    "Alarmed",
    "Evaluated",
    "Event",
    "Finished",
    "Run",
    "Sitting",
    "Stepped",
    "TrainSettings",
    "begin",
    "evaluate",
    "load_model",
    "sittings",
    "train",
]
