"""Training: a generator of events over a run directory that survives being killed."""

from nextvec.training.begin import begin
from nextvec.training.trainer import Alarmed, Evaluated, Event, Finished, Stepped, train

__all__ = ["Alarmed", "Evaluated", "Event", "Finished", "Stepped", "begin", "train"]
