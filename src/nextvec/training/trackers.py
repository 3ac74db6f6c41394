"""Trackers: objects that receive the events of a training run."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from nextvec.runs.run import Run
from nextvec.training.events import Event


@runtime_checkable
class Tracker(Protocol):
    """Receives every event of a run, in order, in the process that trains it.

    A tracker that an experiment passes to its runs is copied to other processes, so it must be picklable. An exception
    that it raises ends the training; the run can be resumed.
    """

    def on(self, run: Run, event: Event) -> None:
        """Called once for each event."""
        ...


def track(events: Iterable[Event], run: Run, trackers: Sequence[Tracker]) -> Iterator[Event]:
    """The same events, each handed to every tracker first."""
    for event in events:
        for tracker in trackers:
            tracker.on(run, event)
        yield event
