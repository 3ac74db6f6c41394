"""Alarms: each is raised by the fault it is named after, and not without it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nextvec.errors import RunError
from nextvec.runs import Run, TrainSettings
from nextvec.training import Alarmed, begin, train
from nextvec.training.alarms import collapse, explosion, few_updates, small_exam
from tests.conftest import walk_bank

SMALL = TrainSettings.of(context=20, batch=3, updates=12, evaluate_every=4, hidden=8, slots=16, working=8, pool=30, patience=50)


def noise(count: int = 300, dim: int = 24) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(count, dim)


def test_the_truth_itself_is_varied() -> None:
    found = collapse(noise(), noise())
    assert found.effective_rank == pytest.approx(1.0)
    assert found.alarm is None


def test_a_constant_prediction_is_a_collapse() -> None:
    found = collapse(torch.ones(300, 24) + 1e-4 * noise(), noise())
    assert found.mean_cosine == pytest.approx(1.0, abs=1e-3)
    assert found.hubness == 1.0
    assert found.alarm is not None
    assert found.alarm.startswith("collapse: ")


def test_predictions_on_a_line_are_a_collapse_although_they_differ() -> None:
    found = collapse(noise(300, 1) * torch.ones(1, 24), noise())
    assert found.mean_cosine < 0.5
    assert found.effective_rank < 0.1
    assert found.alarm is not None


def test_mean_cosine_is_that_of_all_pairs() -> None:
    rows = torch.nn.functional.normalize(noise(7, 4), dim=-1)
    pairs = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert collapse(rows, rows).mean_cosine == pytest.approx(np.mean(pairs), abs=1e-5)


def test_an_exploding_gradient_is_told_from_a_large_one() -> None:
    earlier = [1.0] * 20
    assert explosion(19.0, earlier) is None
    assert explosion(1e6, earlier[:5]) is None  # too early to know
    assert (explosion(21.0, earlier) or "").startswith("gradient explosion: ")


def test_too_little_is_named() -> None:
    assert small_exam(1000, 5) is None
    assert (small_exam(115, 115) or "").startswith("eval set too small: ")
    assert (small_exam(1000, 2) or "").startswith("eval set too small: ")
    assert few_updates(50) is None
    assert (few_updates(3) or "").startswith("too few updates: ")


def test_a_run_keeps_its_alarms_once_each_and_a_resumed_one_the_same(tmp_path: Path) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    events = list(train(run, bank))
    raised = [event.alarm for event in events if isinstance(event, Alarmed)]
    assert raised == run.alarms()
    names = [alarm.split(":")[0] for alarm in raised]
    assert names == ["eval set too small", "too few updates"]


def test_a_gradient_that_is_not_finite_ends_training_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = walk_bank(documents=20)
    run = begin(tmp_path / "run", "test", SMALL, bank)
    events = train(run, bank)
    for event in events:
        if getattr(event, "update", 0) == 5:
            break
    # What a bad kernel or an overflowing product leaves behind.
    monkeypatch.setattr("nextvec.training.gradient.info_nce", lambda scores, *rest: scores.sum() * torch.tensor(float("nan")))
    with pytest.raises(RunError, match="the gradient is not finite; lower lr"):
        list(events)
    again = Run.open(tmp_path / "run")
    assert any(alarm.startswith("not finite: the gradient of update 5") for alarm in again.alarms())
    assert again.finished is None
    monkeypatch.undo()
    list(train(again, bank))  # and goes on from the last checkpoint
    assert again.finished
