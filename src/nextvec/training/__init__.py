"""Training: a generator of events over a run directory, which can be resumed after a kill."""

from nextvec.training.begin import begin
from nextvec.training.events import Alarmed, Evaluated, Event, Finished, Stepped
from nextvec.training.trackers import Tracker
from nextvec.training.trainer import train

__all__ = ["Alarmed", "Evaluated", "Event", "Finished", "Stepped", "Tracker", "begin", "train"]
