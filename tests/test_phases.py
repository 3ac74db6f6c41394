"""The phases: one exam for all, the illusion by theory, and a table that survives being killed."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.errors import RunError, SettingsError
from nextvec.experiments.seeds import average, average_lift
from nextvec.lanes import by_chance
from nextvec.ranks import Ranks, clustered_rate, paired_lift
from nextvec.recipes import recipe
from nextvec.reproduction.phase_table import Phases
from nextvec.reproduction.phases import _tasks, phases
from nextvec.reproduction.phases_page import phase_title, write_phases_page
from nextvec.reproduction.reported import RECIPES, parts_of, reported
from nextvec.runs import Run
from tests.conftest import walk_bank
from tests.here import Here
from tests.test_training import on_disk
from tests.waiting import until

SETS = ["updates=4", "evaluate_every=2", "hidden=8", "layers=1", "slots=16", "working=8", "pool=30", "batch=2", "negatives=4"]
SETS += ["accumulate=1"]
ROWS = 80  # scored
NAMES = ("phase1", "phase3", "phase4", "phase1-published", "phase1-published-no-A")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with rows enough for the predecessor's largest pool, and its phases, trained once."""
    folder = tmp_path_factory.mktemp("phases")
    on_disk(walk_bank(documents=20, length=130), folder / "bank")
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> Phases:
    bank = Bank.open(place / "bank")
    return phases(place / "all", bank, NAMES, 2, SETS, executor=Here(), rows=ROWS, lanes=by_chance(bank, 3))


@pytest.fixture(scope="module")
def table(found: Phases) -> dict[str, Any]:
    return found.to_json()


def test_the_phase_with_experts_says_whom_it_heard(table: dict[str, Any], place: Path) -> None:
    by_name = {row["recipe"]: row for row in table["phases"]}
    use = by_name["phase4"]["experts"]
    assert use["experts"] == 16
    assert 0 <= use["entropy_share"] <= 1
    assert by_name["phase3"]["experts"] is None
    assert by_name["phase4"]["change"]["from"] == "phase3"
    assert f"{use['used']} of 16" in (place / "all" / "phases.html").read_text()


def test_lanes_of_a_phase_average_to_the_whole(table: dict[str, Any], place: Path) -> None:
    for row in table["phases"]:
        rows = sum(lane["rows"] for lane in row["lanes"].values())
        assert rows == table["exam"]["rows"]
        assert sum(lane["rows"] * lane["hit@5"]["value"] for lane in row["lanes"].values()) / rows == pytest.approx(
            row["hit@5"]["value"]
        )
    assert "Figures by lane" in (place / "all" / "phases.html").read_text()


def test_every_recipe_of_the_table_exists() -> None:
    for name in RECIPES:
        assert recipe(name, 10_000)


def test_a_recipe_says_its_phase_its_form_and_what_is_off() -> None:
    assert parts_of("phase3_5") == ("phase3_5", "ours", None)
    assert parts_of("phase2b-published") == ("phase2b", "published", None)
    assert parts_of("phase1-published-no-C") == ("phase1", "published", "C")
    assert phase_title({"phase": "phase3_5", "without": None}) == "Phase 3.5"
    assert phase_title({"phase": "broken"}) == "Broken"


def test_what_was_reported_stands_beside_a_phase_with_its_candidates() -> None:
    assert reported("phase3-published") == {"hit@5": 0.7565, "candidates": 115}
    assert reported("phase2c") is None
    assert reported("phase1-published-no-A") is None


def test_all_recipes_and_contexts_sit_one_exam(found: Phases) -> None:
    sat = {
        (run.path, file.name.split("-")[0])
        for p in found.table
        for run in p.runs
        for file in (run.path / "evaluations").iterdir()
    }
    assert {exam for _, exam in sat} == {exam.id for exam in found.exams.values()}
    assert len({run.settings.passages.context for p in found.table for run in p.runs}) == 2
    rows = [exam.rows.tolist() for exam in found.exams.values()]
    assert all(other == rows[0] for other in rows)


def test_the_table_holds_every_figure_with_its_terms(table: dict[str, Any]) -> None:
    assert [row["recipe"] for row in table["phases"]] == list(NAMES)
    for row in table["phases"]:
        assert row["seeds"] == [0, 1]
        assert row["chance"] == pytest.approx(5 / 1000)
        assert set(row["by_pool"]) == {"58", "115", "230", "1000", "1148", "all"}
        assert row["by_pool"]["1000"]["value"] == row["hit@5"]["value"]
        assert row["hit@5"]["lowest"] <= row["hit@5"]["value"] <= row["hit@5"]["highest"]
        assert row["hit@1"]["value"] <= row["hit@5"]["value"] <= row["hit@10"]["value"]
        assert (row["updates"], len(row["seconds"])) == ([4, 4], 2)
        assert all(update in (0, 2, 4) for update in row["kept_at"])
        low, high = row["lift"]["low"], row["lift"]["high"]
        assert row["verdict"] == ("above the best baseline" if low > 0 else "below it" if high < 0 else "not shown")
    assert table["waiting"] == []
    assert "TrentCarter/lnsp-phase-4" in table["source"]


def test_a_change_is_to_the_phase_before_of_the_same_form(table: dict[str, Any]) -> None:
    changes = {row["recipe"]: row["change"] and row["change"]["from"] for row in table["phases"]}
    assert changes == dict(zip(NAMES, [None, "phase1", "phase3", None, "phase1-published"], strict=True))


def test_the_baseline_beside_a_phase_is_the_best_on_that_exam(found: Phases) -> None:
    for phase in found.table:
        beside = phase.baselines[phase.pool]
        best = max(ranks.hits(5).mean() for ranks in beside.values())
        assert beside[phase.best_baseline].hits(5).mean() == best
        expected = average(phase.ranks[phase.pool], 5).value - best
        assert phase.lift().value == pytest.approx(expected)


def test_the_illusion_appears_where_only_the_pool_shrinks(found: Phases, table: dict[str, Any]) -> None:
    """By theory: pools are nested, so no row's rank can become worse; what climbs is the pool."""
    for phase in found.table:
        for beside in phase.baselines.values():
            assert list(beside) == list(phase.baselines[1000])
        for name in phase.baselines[1000]:
            small = [phase.baselines[pool][name].hits(5) for pool in (1148, 1000, 230, 115, 58)]
            assert all((fewer >= more).all() for more, fewer in pairwise(small))
    steps = table["illusion"]["steps"]
    assert [(step["pool"], step["context"]) for step in steps] == [(1148, 100), (230, 500), (115, 1000), (58, 2000)]
    climbing = [step["untrained"]["shrinking"]["value"] for step in steps]
    assert climbing == sorted(climbing)
    assert climbing[-1] > climbing[0] + 0.05
    fixed = [step["untrained"]["fixed"]["value"] for step in steps]
    assert max(fixed) - min(fixed) < 0.02
    assert steps[2]["runs"].keys() == {"ours"}


def ranks_of(seed: int, rows: int = 60, documents: int = 7) -> Ranks:
    rng = np.random.default_rng(seed)
    above = rng.integers(0, 20, rows)
    return Ranks(above, np.zeros(rows, np.int64), np.full(rows, 50), np.sort(rng.permutation(np.arange(rows) % documents)))


def test_the_change_of_a_recipe_with_itself_is_nothing() -> None:
    seeds = [ranks_of(0), ranks_of(1)]
    for own in (seeds[:1], seeds):
        lift = average_lift(own, own, 5)
        assert lift.value == pytest.approx(0, abs=1e-15)
        assert lift.n == 60
    alone = average_lift(seeds[:1], seeds[:1], 5)
    assert (alone.value, alone.low, alone.high) == (0.0, 0.0, 0.0)


def test_one_seed_averages_to_itself() -> None:
    a, b = ranks_of(0), ranks_of(1)
    assert average([a], 5) == clustered_rate(a.hits(5), a.clusters)
    assert average_lift([a], [b], 5) == paired_lift(a, b, 5)
    assert len(a.only(np.array([3, 5]))) == 2


@pytest.mark.parametrize("documents", [1, 7])
def test_seeds_that_agree_say_no_more_than_one(documents: int) -> None:
    """Three equal seeds are not three times the rows: the interval stays as wide."""
    a, b = ranks_of(0, documents=documents), ranks_of(1, documents=documents)
    one, three = paired_lift(a, b, 5), average_lift([a] * 3, [b], 5)
    assert (three.low, three.high, three.n) == (pytest.approx(one.low), pytest.approx(one.high), one.n)


def rates(value: Any) -> Iterator[dict[str, float]]:
    if isinstance(value, dict):
        if {"value", "low", "high"} <= value.keys():
            yield value
        for held in value.values():
            yield from rates(held)
    elif isinstance(value, list):
        for held in value:
            yield from rates(held)


def test_the_page_holds_every_figure_and_nothing_from_elsewhere(place: Path, table: dict[str, Any]) -> None:
    assert json.loads((place / "all" / "phases.json").read_text()) == json.loads(json.dumps(table))
    page = (place / "all" / "phases.html").read_text()
    assert "undefined" not in page.lower()
    for outside in ("http", "<script", "src=", "@import", "{{", "{%", "None", "nan"):
        assert outside not in page, outside
    for rate in rates(table):
        assert f"{100 * rate['value']:.1f}" in page
        assert f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}" in page or (
            f"{100 * rate['low']:+.1f} to {100 * rate['high']:+.1f}" in page
        )
    for row in table["phases"]:
        shown = [
            row["baseline"]["name"],
            row["verdict"],
            f"{row['context']:,}",
            ", ".join(map(str, row["seconds"])),
            *row["alarms"],
        ]
        assert [text for text in shown if text not in page] == []
    for exam in table["exam"]["ids"].values():
        assert exam in page
    assert "36.99" not in page, "broken is not in this table"
    assert "59.32" in page
    assert "1,148" in page


def test_a_table_without_an_illusion_has_a_page(tmp_path: Path, table: dict[str, Any]) -> None:
    write_phases_page(tmp_path / "p.html", {**table, "illusion": {"untrained": "", "steps": []}, "waiting": ["phase2/seed-0"]})
    page = (tmp_path / "p.html").read_text()
    assert "Effect of the shrinking pool" not in page
    assert "phase2/seed-0" in page


def test_without_a_bank_the_table_is_built_from_what_has_finished(place: Path, table: dict[str, Any]) -> None:
    before = (place / "all" / "phases.html").read_bytes()
    assert phases(place / "all", rows=ROWS, lanes=by_chance(Bank.open(place / "bank"), 3)).to_json() == table
    assert (place / "all" / "phases.html").read_bytes() == before


def test_pools_larger_than_the_bank_are_left_out_with_a_note(place: Path) -> None:
    found = phases(place / "all", pools=(58, 99_999, None), rows=ROWS).to_json()
    assert list(found["exam"]["ids"]) == ["58", "all"]
    assert found["exam"]["pool"] == "58"
    assert "larger pools are left out: 99,999" in found["notes"][0]
    assert found["illusion"]["steps"] == []
    phases(place / "all", rows=ROWS)  # as it was


def test_what_cannot_be_is_refused_in_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = Bank.open(place / "bank")
    with pytest.raises(SettingsError, match="did you mean 'phase3'"):
        phases(tmp_path, bank, ["phase33"])
    with pytest.raises(SettingsError, match="counted from 0 by --seeds"):
        phases(tmp_path, bank, ["phase1"], sets=["seed=3"])
    with pytest.raises(RunError, match="holds no finished run"):
        phases(tmp_path)
    assert main(["phases", str(place / "all"), "--pools", "99999"]) == 2
    assert main(["phases", str(place / "all"), "--pools", "10,,20"]) == 2
    assert main(["phases", str(place / "all"), "--bank", str(place / "bank"), "--recipes", "phase1", "--set", "updates=5"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "the largest pool that every scored row can fill" in errors[0]
    assert "is not a list like a,b,c" in errors[1]
    assert "was begun with other settings" in errors[2]


def test_the_command_prints_a_table_and_one_object(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phases", str(place / "all"), "--rows", str(ROWS)]) == 0
    assert "phase1-published-no-A" in capsys.readouterr().out
    assert main(["phases", str(place / "all"), "--rows", str(ROWS), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["exam"]["pool"] == "1000"


@pytest.mark.integration
def test_a_killed_command_goes_on_and_ends_the_same(
    place: Path, tmp_path: Path, command: list[str], quiet_environment: dict[str, str]
) -> None:
    sets = [s for s in SETS if not s.startswith("layers=")]  # which neither of the two reads
    flags = ["--recipes", "phase1,phase3", "--seeds", "2", "--rows", str(ROWS), *(part for s in sets for part in ("--set", s))]
    killed = tmp_path / "killed"
    line = [*command, "phases", str(killed), "--bank", str(place / "bank"), *flags, "--json"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, env=quiet_environment, start_new_session=True, **silent)
    first = killed / "phase1" / "seed-0"
    until(lambda: process.poll() is not None or ((first / "run.json").exists() and Run.open(first).finished), pause=0.005)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = (first / "best.safetensors").stat().st_mtime_ns
    subprocess.run(line, env=quiet_environment, check=True, **silent)
    assert (first / "best.safetensors").stat().st_mtime_ns == written
    again = json.loads((killed / "phases.json").read_text())["phases"]
    whole = phases(tmp_path / "whole", Bank.open(place / "bank"), ("phase1", "phase3"), 2, sets, executor=Here(), rows=ROWS)
    unkilled = json.loads(json.dumps(whole.to_json()))["phases"]
    # How long it took is all that may differ.
    assert [{**row, "seconds": None, "lanes": None} for row in again] == [
        {**row, "seconds": None, "lanes": None} for row in unkilled
    ]


def test_an_option_changes_the_recipes_whose_model_reads_it_and_is_refused_if_none_does(place: Path) -> None:
    bank = Bank.open(place / "bank")
    tasks = _tasks(place / "unused", bank, ["phase1", "phase1-published"], 1, ["layers=2", "working=9", "hidden=8"])
    ours, published = (task.settings.options for task in tasks)
    assert (ours.working, ours.hidden, published.layers, published.hidden) == (9, 8, 2, 8)
    with pytest.raises(SettingsError, match="layers=2: model memory_gru does not read layers"):
        _tasks(place / "unused", bank, ["phase1"], 1, ["layers=2"])
