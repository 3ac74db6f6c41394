"""Sweeps: judged on valid by one exam, refused before they cost anything, and killed without losing a run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvec.bank import Bank
from nextvec.cli import experiments
from nextvec.cli.main import main
from nextvec.errors import DataError, RunError, SettingsError
from nextvec.evaluation import Exam
from nextvec.evaluation.results import evaluation_results, held_out_exam
from nextvec.experiments.executor import Executor, LocalProcesses
from nextvec.experiments.runs import train_all
from nextvec.experiments.search import Span, _distribution, parse_over, search
from nextvec.experiments.sweep import SweepSettings, sweep
from nextvec.runs import Run, TrainSettings
from nextvec.training import begin
from tests.conftest import walk_bank
from tests.here import Here
from tests.test_training import on_disk
from tests.waiting import PATIENCE, until

SETS = [
    "context=20",
    "batch=3",
    "updates=8",
    "evaluate_every=4",
    "hidden=8",
    "slots=16",
    "working=8",
    "pool=30",
    "negatives=30",
]
FLAGS = [part for s in SETS for part in ("--set", s)]
OF_THE_CLOCK = {"seconds"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    on_disk(walk_bank(documents=24), folder / "bank")
    return folder


@pytest.fixture
def bank(place: Path) -> Bank:
    return Bank.open(place / "bank")


@pytest.fixture
def here() -> Here:
    return Here()


def figures(found: Any) -> Any:
    """All of a record but what the clock says."""
    if isinstance(found, dict):
        return {name: figures(value) for name, value in found.items() if name not in OF_THE_CLOCK}
    return [figures(value) for value in found] if isinstance(found, list) else found


def test_a_grid_is_judged_on_valid_by_one_exam_and_sorted(bank: Bank, tmp_path: Path, here: Here) -> None:
    found = sweep("memory", bank, tmp_path / "s", {"lr": ["1e-4", "0.03"], "hidden": [8, 4]}, seeds=2, sets=SETS, executor=here)
    record = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert record == json.loads(json.dumps(found.to_json()))
    assert len(here.trained) == record["runs"] == record["finished"] == 8
    assert (tmp_path / "s" / "memory-lr=0.0001,hidden=4" / "seed-1" / "best.safetensors").exists()
    parts = begin(here.trained[0], "memory", Run.open(here.trained[0]).settings, bank).split(bank)
    exam = Exam.over(bank, parts.valid, "valid", 30, 2000)
    assert (record["exam"]["id"], record["exam"]["part"], record["exam"]["rows"]) == (exam.id, "valid", len(exam.rows))
    means = [point["hit@5"]["value"] for point in record["points"]]
    assert means == sorted(means, reverse=True)
    for point in record["points"]:
        of_seeds = [s["hit@5"] for s in point["seeds"]]
        assert point["hit@5"]["value"] == pytest.approx(np.mean(of_seeds), abs=1e-12)
        assert (point["lowest_seed"], point["highest_seed"]) == (min(of_seeds), max(of_seeds))
        assert point["over_best"]["value"] == pytest.approx(point["hit@5"]["value"] - means[0], abs=1e-12)
        assert point["over_best"]["n"] == point["hit@5"]["n"] == len(exam.rows)
        assert point["hit@5"]["low"] <= point["hit@5"]["value"] <= point["hit@5"]["high"]
        for seed in point["seeds"]:
            run = Run.open(tmp_path / "s" / seed["run"])
            assert (run.settings.seed, run.settings.optimizer.lr) == (seed["seed"], point["values"]["lr"])
            (result,) = evaluation_results(run, [held_out_exam(run, bank, "valid", 30)])
            assert result.ranks.hits(5).mean() == seed["hit@5"]
    best = record["points"][0]["over_best"]
    assert (best["value"], best["low"], best["high"]) == (0, 0, 0)


def test_the_same_call_trains_nothing_twice_and_a_longer_list_only_what_is_new(bank: Bank, tmp_path: Path, here: Here) -> None:
    first = sweep("memory", bank, tmp_path / "s", {"lr": [1e-3]}, seeds=1, sets=SETS, executor=here)
    again = sweep("memory", bank, tmp_path / "s", {"lr": [1e-3]}, seeds=1, sets=SETS, executor=here)
    assert first.to_json() == again.to_json()
    sweep("memory", bank, tmp_path / "s", {"lr": [1e-3, 1e-2]}, seeds=1, sets=SETS, executor=here)
    assert [path.parent.name for path in here.trained] == ["memory-lr=0.001", "memory-lr=0.01"]


def test_a_run_that_fails_is_on_record_and_the_others_go_on(bank: Bank, tmp_path: Path, here: Here) -> None:
    def ask(executor: Executor) -> Any:
        found = sweep("memory", bank, tmp_path / "s", {"lr": [1e-3, 1e-2]}, seeds=1, sets=SETS, executor=executor)
        return json.loads(json.dumps(found.to_json()))

    (task,) = SweepSettings.of("memory", bank, tmp_path / "s", SETS, 1, 2000).tasks({"lr": 1e-3})
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.lock").touch()
    held = begin(tmp_path / "s" / "memory-lr=0.001" / "seed-0", "memory", task.settings, bank)
    with held.training():
        found = ask(LocalProcesses())
        with pytest.raises(RunError, match=r"seed-0: .* is being trained by another process"):
            train_all([task], bank, LocalProcesses())
    assert (found["runs"], found["finished"], found["failed"], found["best"]) == (2, 1, 1, "lr=0.01")
    lost = found["points"][1]
    assert (lost["values"], "hit@5" in lost) == ({"lr": 1e-3}, False)
    assert "is being trained by another process" in lost["seeds"][0]["failed"]
    assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == found
    mended = ask(here)
    assert (mended["finished"], mended["failed"]) == (2, 0)


def test_two_sweeps_of_one_folder_do_not_meet(bank: Bank, tmp_path: Path, here: Here) -> None:
    settings = SweepSettings.of("memory", bank, tmp_path / "s", SETS, 1, 2000)
    with settings.held(), pytest.raises(RunError, match="being swept by another process"):
        sweep("memory", bank, tmp_path / "s", {"lr": [1e-3]}, seeds=1, sets=SETS, executor=here)
    assert here.trained == []


def test_a_bank_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="write the bank to disk"):
        sweep("memory", walk_bank(documents=24), tmp_path / "s", {"lr": [1e-3]}, sets=SETS)
    assert not (tmp_path / "s").exists()


BAD = {
    "misspelt setting": (["--over", "alhpa=0.01,0.03"], "did you mean 'alpha'?"),
    "misspelt later": (["--over", "lr=1e-3", "--over", "hiden=8"], "did you mean 'hidden'?"),
    "out of bounds": (["--over", "dropout=0.1,2"], "dropout=2.0: must be between 0 and 0.95; the nearest right one is 0.95"),
    "not a number": (["--over", "lr=1e-3,fast"], "lr=fast: must be of type float"),
    "no values": (["--over", "lr="], "want NAME=VALUE"),
    "no name": (["--over", "0.1,0.2"], "want NAME=VALUE"),
    "twice a value": (["--over", "lr=0.001,1e-3"], "lr=0.001 is listed twice"),
    "twice a name": (["--over", "lr=1e-3", "--over", "lr=1e-2"], "lr is given twice"),
    "seeds as values": (["--over", "seed=1,2"], "seed cannot be swept: it is --seeds"),
    "another exam": (["--over", "test=0.1,0.3"], "test cannot be swept"),
    "a pool too large": (["--over", "lr=1e-3", "--set", "pool=99999"], "distinct rows"),
    "range without trials": (["--over", "lr=1e-4..1e-2"], "search with --trials N"),
    "range upside down": (["--over", "lr=1e-2..1e-4", "--trials", "2"], "did you mean 0.0001..0.01?"),
    "range out of bounds": (["--over", "lr=1e-4..100", "--trials", "2"], "the nearest right one is 10"),
    "range of words": (["--over", "model=gru..memory_gru", "--trials", "2"], "list them: --over model=V"),
    "range of a misspelt": (["--over", "lrr=1e-4..1", "--trials", "2"], "did you mean 'lr'?"),
    "corner that cannot be": (["--over", "hard_low=0.1..0.95", "--trials", "2"], "must be below hard_high"),
    "unknown recipe": (["--over", "lr=1e-3"], "there is no recipe"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_before_anything_is_made(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, message = BAD[name]
    recipe = "defualt" if name == "unknown recipe" else "memory"
    assert main(["sweep", recipe, "--bank", str(place / "bank"), "--out", str(tmp_path / "s"), *FLAGS, *flags]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").touch()
    assert main(["sweep", "memory", "--bank", str(place / "bank"), "--out", str(tmp_path), *FLAGS, "--over", "lr=1e-3"]) == 2
    assert "is not a sweep" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def dies_out(group: int) -> bool:
    """Whether the last process of a group ends soon."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.integration
def test_a_killed_sweep_keeps_what_was_finished_and_goes_on(
    place: Path,
    tmp_path: Path,
    command: list[str],
    quiet_environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(out: Path) -> list[str]:
        over = ["--over", "lr=1e-3,1e-2", "--seeds", "2"]
        return ["sweep", "memory", "--bank", str(place / "bank"), "--out", str(out), *FLAGS, *over, "--json"]

    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, *ask(folder)], env=quiet_environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until(lambda: (folder / "sweep.json").exists() or process.poll() is not None, pause=0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert dies_out(process.pid), "a process trains on, and would hold its run against the next sweep"
    early = json.loads((folder / "sweep.json").read_text())
    finished = [folder / s["run"] for point in early["points"] for s in point["seeds"] if s["finished"]]
    assert 1 <= len(finished) < 4, "killed too late to mean anything"
    before = {f: (f.stat().st_mtime_ns, f.read_bytes()) for run in finished for f in run.rglob("*") if f.is_file()}
    assert main(ask(folder)) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert {f: (f.stat().st_mtime_ns, f.read_bytes()) for f in before} == before
    monkeypatch.setattr(experiments, "LocalProcesses", lambda jobs: Here())
    assert main(ask(tmp_path / "whole")) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["finished"] == 4
    assert figures(resumed) == figures(whole)


# Search


def test_ranges_and_lists_are_told_apart() -> None:
    assert parse_over(["lr=1e-4..1e-2", "hidden=8,16", "slots=0"]) == {
        "lr": Span("1e-4", "1e-2"),
        "hidden": ["8", "16"],
        "slots": ["0"],
    }


def test_a_killed_search_goes_on_as_if_it_had_not_been(bank: Bank, tmp_path: Path, here: Here) -> None:
    over = {"lr": Span(1e-4, 1e-1), "hidden": Span(4, 8), "model": ["memory_gru", "gru"]}

    def ask(folder: Path, trials: int) -> Any:
        return search("memory", bank, folder, over, trials, seeds=1, sets=SETS, executor=here).to_json()

    whole = ask(tmp_path / "whole", 3)
    assert len(whole["points"]) == 3
    for point in whole["points"]:
        values = point["values"]
        assert 1e-4 <= values["lr"] <= 1e-1
        assert values["hidden"] in range(4, 9)
        assert values["model"] in ("memory_gru", "gru")
    assert len({point["values"]["lr"] for point in whole["points"]}) == 3
    ask(tmp_path / "killed", 1)
    here.dies_before = len(here.trained) + 1
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "killed", 3)
    here.dies_before = -1
    assert figures(ask(tmp_path / "killed", 3)) == figures(whole)
    made = len(here.trained)
    assert figures(ask(tmp_path / "killed", 3)) == figures(whole)
    assert len(here.trained) == made, "nothing is trained twice"


def test_without_optuna_the_mend_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    flags = ["--over", "lr=1e-4..1e-2", "--trials", "2"]
    assert main(["sweep", "memory", "--bank", str(place / "bank"), "--out", str(tmp_path / "s"), *FLAGS, *flags]) == 2
    assert 'pip install -e ".[sweep]"' in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_span_of_a_decade_is_searched_by_factors() -> None:
    for low, high, log in ((1e-4, 1e-3, True), (2e-4, 1e-3, False), (0.0, 1.0, False), (8, 80, True)):
        found = _distribution("x", True, [low, high])
        assert (found.low, found.high, found.log) == (low, high, log)
        assert type(found).__name__ == ("IntDistribution" if isinstance(low, int) else "FloatDistribution")


def test_settings_that_only_fit_together_can_be_searched(bank: Bank, tmp_path: Path, here: Here) -> None:
    over = {"hard_low": [0.92], "hard_high": Span(0.95, 0.99)}  # 0.92 alone is above the recipe's hard_high
    (point,) = search("memory", bank, tmp_path / "s", over, 1, seeds=1, sets=SETS, executor=here).points
    assert 0.95 <= point.values["hard_high"] <= 0.99


def test_settings_of_a_point_are_those_of_the_recipe_but_for_its_values(bank: Bank, tmp_path: Path) -> None:
    tasks = SweepSettings.of("memory", bank, tmp_path, [*SETS, "seed=7"], 2, 2000).tasks({"lr": 0.5, "pool": 30})
    base = TrainSettings.of(
        context=20, batch=3, updates=8, evaluate_every=4, hidden=8, slots=16, working=8, pool=30, negatives=30
    )
    changed = {name for name, value in base.flat().items() if tasks[0].settings.flat()[name] != value}
    assert changed == {"lr", "seed"}
    assert [task.settings.seed for task in tasks] == [7, 8]
    with pytest.raises(SettingsError, match="pool cannot be swept"):
        SweepSettings.of("memory", bank, tmp_path, SETS, 1, 2000).parsed({"pool": 20})
