"""Trackers: any number of objects receive the events of a training."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nextvec.bank import Bank
from nextvec.experiments.sweep import sweep
from nextvec.runs import Run, TrainSettings
from nextvec.training import Evaluated, Event, Finished, Stepped, Tracker, begin, train
from tests.conftest import walk_bank
from tests.test_training import on_disk

SMALL = TrainSettings.of(context=20, batch=3, updates=4, evaluate_every=2, hidden=8, slots=16, working=8, pool=30)


SETS = [f"{name}={value}" for name, value in SMALL.flat().items() if name in ("context", "batch", "updates", "pool", "hidden")]


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


def test_a_tracker_of_a_sweep_receives_the_events_of_all_its_runs(tmp_path: Path) -> None:
    on_disk(walk_bank(documents=20), tmp_path / "bank")
    seen = Collected()
    values = {"lr": ["1e-3"]}
    sweep("memory", Bank.open(tmp_path / "bank"), tmp_path / "sweep", values, seeds=2, sets=SETS, trackers=[seen])
    for seed in ("seed-0", "seed-1"):
        events = [event for name, event in seen.events if name == seed]
        run = Run.open(tmp_path / "sweep" / "memory-lr=0.001" / seed)
        valid = [event.record["valid"] for event in events if isinstance(event, Evaluated)]
        assert valid == [record["valid"] for record in run.history()]
        assert [event.update for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]
        assert isinstance(events[-1], Finished)
