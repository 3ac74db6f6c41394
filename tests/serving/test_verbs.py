"""`nextvec rollout` and `nextvec serve` as commands: what they print, what they refuse, and with which exit code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from nextvec.client import Client
from tests.command import nextvec
from tests.serving.server import rows_of, serving
from tests.waiting import PATIENCE


def told(folder: Path, *words: str, code: int = 0) -> Any:
    done = nextvec(*words, "--json", folder=folder)
    assert done.code == code, done.err
    return json.loads(done.out)


def start(folder: Path, *more: str, code: int = 0) -> Any:
    return told(folder, "rollout", "start", "run1", "--over", "run0", "--id", "r", "--budget", "1000000", *more, code=code)


def test_a_rollout_by_commands_alone(folder: Path) -> None:
    started = start(folder, "--by", "ann")
    assert (started["rollout"], started["state"], started["failures"]) == ("r", "SHADOW", [])
    found = told(folder, "rollout", "status")
    assert found["state"] == "SHADOW"
    assert found["steps"][0]["actor"] == "ann"
    assert found["canary"].startswith("run1@")
    assert told(folder, "rollout", "pause", "--reason", "lunch", "--by", "bob")["state"] == "PAUSED(SHADOW)"
    assert told(folder, "rollout", "resume", "--by", "bob")["state"] == "SHADOW"
    assert told(folder, "rollout", "promote", "--by", "bob")["state"] == "CANARY(0)"
    assert told(folder, "rollout", "abort", "r", "--by", "bob")["state"] == "ROLLING_BACK"
    rows = told(folder, "rollout", "history")["rows"]
    assert [row["to"] for row in rows] == ["DRAFT", "SHADOW", "PAUSED(SHADOW)", "SHADOW", "CANARY(0)", "ROLLING_BACK"]
    assert "lunch" in rows[2]["cause"]
    assert told(folder, "rollout", "verify") == {"rows": 6, "head": rows[-1]["hash"]}
    exported = nextvec("rollout", "export", folder=folder).out.splitlines()
    assert [json.loads(line)["hash"] for line in exported] == [row["hash"] for row in rows]
    for words in (["status"], ["history"], ["verify"]):
        done = nextvec("rollout", *words, folder=folder)
        assert done.code == 0
        assert "r" in done.out


@pytest.mark.integration
def test_watch_follows_to_the_end_and_its_exit_code_says_which(folder: Path) -> None:
    start(folder)
    with serving(folder / "run0", folder / "s", "--ledger", str(folder / "rollouts.db"), "--turn", "0.05") as server:
        command = [sys.executable, "-m", "nextvec.cli.main", "rollout", "watch", "--every", "0.1"]
        watching = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        for _ in range(6):  # 5, 10, 25, 50, 98 %, promoted
            httpx.post(f"{server.url}/v1/rollouts/r/promote").raise_for_status()
        lines, _ = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 0
    assert lines.splitlines()[-1].split("→")[1].strip().startswith("PROMOTED")
    assert nextvec("rollout", "watch", folder=folder).code == 0


def test_a_canary_that_fails_its_checks_is_rejected_on_record(folder: Path) -> None:
    rejected = start(folder, "--budget", "0.0001", code=1)
    assert rejected["state"] == "REJECTED"
    assert "over the budget" in rejected["failures"][0]
    assert "over the budget" in told(folder, "rollout", "history")["rows"][-1]["cause"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rollout", "status"], "there is no ledger"),
        (["rollout", "verify", "--ledger", "run0/run.json"], "run.json"),
        (["rollout", "start", "run0", "--over", "run0"], "nothing to compare"),
        (["rollout", "start", "nowhere", "--over", "run0"], "nowhere"),
        (["rollout", "start", "run1", "--over", "run0", "--id", "a/b"], "A-Z"),
        (["rollout", "start", "run1", "--over", "run0", "--harm", "1"], "cannot be detected"),
        (["rollout", "start", "run1", "--over", "run0", "--base", "2"], "rate"),
        (["rollout", "start", "run1", "--over", "run0", "--dwell", "0"], "above 0"),
        (["rollout", "simulate", "missing.jsonl"], "no such file"),
        (["rollout", "simulate", "--rollouts", "0"], "1 or more"),
        (["rollout", "explode"], "invalid choice"),
        (["serve", "run0", "run0"], "each once"),
        (["serve", "run0", "--long", "run1"], "go together"),
        (["serve", "run0", "run1", "--long", "other", "--threshold", "5"], "not served"),
        (["serve", "run0", "run1", "--long", "run1", "--threshold", "21"], "reads 20 vectors"),
        (["serve", "run0", "--host", "0.0.0.0"], "--keys"),
        (["serve", "run0", "--mirror", "101"], "percentage"),
        (["serve", "missing"], "missing"),
    ],
)
def test_bad_input_is_one_line_and_code_2(folder: Path, words: list[str], message: str) -> None:
    done = nextvec(*words, folder=folder)
    assert done.code == 2, done.err
    assert message in done.err
    *progress, line = done.err.splitlines()
    assert line.startswith("nextvec: ")
    assert all(said.startswith("replays: ") for said in progress)
    assert not (folder / "rollouts.db").exists() or not told(folder, "rollout", "history")["rows"]


def test_the_length_of_a_context_chooses_the_model(folder: Path) -> None:
    runs = [folder / "run0", folder / "run1"]
    with serving(runs, folder / "s", "--long", "run1", "--threshold", "3") as server, Client(server.url) as client:
        session = client.session("s")
        answers = [session.append(rows_of(1, n), k=2) for n in range(5)]
        assert [a.model for a in answers] == ["run0", "run0", "run0", "run1", "run1"]
        assert [a.reason.split(", ")[1] for a in answers] == ["short"] * 3 + ["long"] * 2
        whole = client.predict(rows_of(4), 2)
        assert whole.model == "run1"


def test_a_dry_rollout_says_how_it_would_end(folder: Path) -> None:
    rows = told(folder, "rollout", "simulate", "--rollouts", "5", "--requests", "20000")["rows"]
    assert {row["harm"] for row in rows} >= {"none (A/A)", "errors 0.1 → 5 %", "router gives 2.6 for 5 %"}
    equal = next(row for row in rows if row["harm"] == "none (A/A)" and row["rule"] == "sequential test")
    assert equal["rolled_back"] == 0
