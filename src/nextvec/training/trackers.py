"""Trackers: objects that receive the events of a training run."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from nextvec.runs.run import Run
from nextvec.training.events import Event


@runtime_checkable
class Tracker(Protocol):
    """Receives every event of a run, in order.

    The trackers of an experiment receive the events of all its runs in the process of the experiment, whichever process
    trains. An exception that a tracker raises ends the training; the run can be resumed.
    """

    def on(self, run: Run, event: Event) -> None:
        """Called once for each event."""
        ...


def track(events: Iterable[Event], run: Run, trackers: Sequence[Tracker]) -> Iterator[Event]:
    """The same events, each handed to every tracker first."""
    for event in events:
        tell(trackers, run, event)
        yield event


def tell(trackers: Sequence[Tracker], run: Run, event: Event) -> None:
    """Hand one event to every tracker."""
    for tracker in trackers:
        tracker.on(run, event)
