"""The tracker that writes the history and the timing of a run."""

from typing import Any

from nextvec.runs.records import Timing
from nextvec.runs.run import Run
from nextvec.training.events import Alarmed, Evaluated, Event, Finished


class Recorder:
    """Keeps the record of every validation and writes the run's files anew after each event that changes them.

    Attributes:
        records: of the validations so far, the last one last.
        times: (update, seconds, wall seconds) of the validations so far.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.times: list[tuple[int, float, float]] = []
        self._other_alarms: list[str] = []

    def resume(self, run: Run, update: int) -> None:
        """Read what the run has recorded until this update."""
        self.records = [record for record in run.history() if record["update"] <= update]
        self.times = [time for time in run.timing().validations if time[0] <= update]

    def on(self, run: Run, event: Event) -> None:
        """Record an event."""
        match event:
            case Evaluated():
                self.records.append(event.record)
                self.times.append((event.update, round(event.seconds, 3), round(event.wall, 3)))
                self._write(run, None)
                run.record_timing(Timing(tuple(self.times)))
            case Alarmed():
                self._add(event)
                self._write(run, None)
            case Finished():
                self._write(run, event.reason)
            case _:
                pass

    def _add(self, event: Alarmed) -> None:
        """An alarm at the update of the last validation belongs to its record; another one stands beside the records."""
        record = self.records[-1]
        alarms = record["alarms"] if record["update"] == event.update else self._other_alarms
        if event.alarm not in alarms:
            alarms.append(event.alarm)

    def _write(self, run: Run, finished: str | None) -> None:
        run.record(self.records, finished, [alarm for r in self.records for alarm in r["alarms"]] + self._other_alarms)
