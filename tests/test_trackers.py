"""Trackers: any number of objects receive the events of a training."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nextvec.runs import Run, TrainSettings
from nextvec.training import Evaluated, Event, Finished, Stepped, Tracker, begin, train
from tests.conftest import walk_bank

SMALL = TrainSettings.of(context=20, batch=3, updates=4, evaluate_every=2, hidden=8, slots=16, working=8, pool=30)


@dataclass
class Collected:
    """Keeps what it receives; may refuse an event."""

    events: list[tuple[str, Event]] = field(default_factory=list)
    refuses: type[Event] | None = None

    def on(self, run: Run, event: Event) -> None:
        self.events.append((run.name, event))
        if self.refuses is not None and isinstance(event, self.refuses):
            raise ValueError("no")


def test_every_tracker_receives_every_event_in_order_before_the_caller(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    one, two = Collected(), Collected()
    assert isinstance(one, Tracker)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    yielded = []
    for event in train(run, bank, [one, two]):
        yielded.append(("run", event))
        assert one.events == two.events == yielded
    kinds = [type(event).__name__ for _, event in yielded if not hasattr(event, "alarm")]
    assert kinds == ["Evaluated", "Stepped", "Stepped", "Evaluated", "Stepped", "Stepped", "Evaluated", "Finished"]
    assert [event.record for _, event in one.events if isinstance(event, Evaluated)] == run.history()
    assert [event.update for _, event in one.events if isinstance(event, Stepped)] == [1, 2, 3, 4]


def test_a_finished_run_tells_its_trackers_so(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    list(train(run, bank))
    again = Collected()
    list(train(run, bank, [again]))
    assert again.events == [("run", Finished(4, "updates used up"))]


def test_a_tracker_that_fails_ends_the_training_and_the_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run, whole = (begin(tmp_path / name, "test", SMALL, bank) for name in ("run", "whole"))
    with pytest.raises(ValueError, match="no"):
        list(train(run, bank, [Collected(refuses=Stepped)]))
    list(train(run, bank))
    list(train(whole, bank))
    assert run.history() == whole.history()
