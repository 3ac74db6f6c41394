"""What happens when a rollout ends: the loop goes on, the loser is unloaded, and a restart follows the ledger."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nextvec.cli.serving import sessions_folder
from nextvec.client import Client
from nextvec.errors import ServingError
from nextvec.inference import Engine
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import intervene
from nextvec.rollout.promotions import Promotion, start
from nextvec.rollout.transition import Command
from tests.serving.orders import ENDS, ORDERS
from tests.serving.server import Running, rows_of, serving
from tests.serving.test_canary import PERSON, QUICK, STEPS, draft, spoil, state, talk, until
from tests.waiting import PATIENCE


@pytest.mark.integration
def test_a_rollout_ends_in_every_order_of_thread_and_loop(made: Path) -> None:
    command = [sys.executable, "-m", "tests.serving.orders", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    stable = {"aborted": "run0", "promoted": "run1"}
    assert done.stdout.splitlines() == [f"{name}: {order}: {stable[name]}" for name in ENDS for order in ORDERS]


def served(folder: Path, *more: str) -> Any:
    """The command that an operator would have in a service file: the sessions' folder is not named."""
    return serving(folder / "run0", None, "--ledger", str(folder / "rollouts.db"), *QUICK, *more)


def names(server: Running) -> dict[str, bool]:
    """The served models by name, and which is the stable one."""
    models = httpx.get(f"{server.url}/v1/models").raise_for_status().json()["models"]
    return {model["name"]: model["stable"] for model in models}


def process_of(server: Running, name: str) -> int:
    models = httpx.get(f"{server.url}/v1/models").raise_for_status().json()["models"]
    return next(int(model["process"]) for model in models if model["name"] == name)


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def promote(server: Running) -> None:
    for _ in range(len(STEPS) + 1):
        httpx.post(f"{server.url}/v1/rollouts/r/promote").raise_for_status()


@pytest.mark.integration
def test_the_command_of_before_a_promotion_serves_the_promoted_model_and_every_session(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder)
    with served(folder) as server, Client(server.url) as client:
        talk(client, "s")
        promote(server)
        until(lambda: names(server).get("run1", False))
        talk(client, "t")
        server.kill()
    with served(folder) as server, Client(server.url) as client:
        assert names(server) == {"run1": True}
        want = Engine.open(folder / "run1").session()
        for name in ("s", "t"):
            assert client.session(name).seq == 3
        want.push_many(np.concatenate([rows_of(1, n) for n in range(3)]))
        answer = client.session("s").predict(3)
        assert answer.model == "run1"
        assert [e.row for e in answer.expected] == [e.row for e in want.predict(3)]
        server.kill()
    shutil.rmtree(folder / "run0")  # the old run may go: nothing needs it any more
    with serving(folder / "run1", None, "--ledger", str(folder / "rollouts.db")) as server, Client(server.url) as client:
        assert client.session("t").seq == 3


@pytest.mark.integration
@pytest.mark.parametrize("fault", ["gone", "other weights"])
def test_a_promoted_model_that_cannot_be_served_stops_the_start_in_one_line(ledger: Ledger, folder: Path, fault: str) -> None:
    draft(ledger, folder)
    for _ in range(len(STEPS) + 1):
        intervene(ledger, "r", Command("promote", PERSON))
    assert state(ledger) == "PROMOTED"
    if fault == "gone":
        shutil.rmtree(folder / "run1")
    else:
        spoil(folder / "run1", 1.5)
    command = [sys.executable, "-m", "nextvec.cli.main", "serve", "run0", "--ledger", "rollouts.db", "--port", "0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "run1 was promoted on 'default'" in line
    assert "--route" in line


@pytest.mark.parametrize("runs", [["a", "b"], ["b", "a"], ["b"]])
def test_the_sessions_folder_does_not_depend_on_which_run_is_named_first(tmp_path: Path, runs: list[str]) -> None:
    assert sessions_folder([tmp_path / name for name in runs]) == tmp_path / "sessions"


def test_runs_of_several_folders_have_no_default_folder_of_sessions(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="--sessions"):
        sessions_folder([tmp_path / "a", tmp_path / "elsewhere" / "b"])


def made_by(*pairs: tuple[str, str]) -> list[Promotion]:
    return [Promotion(over, name, f"digest of {name}") for over, name in pairs]


@pytest.mark.parametrize(
    ("named", "long", "experts", "made", "opened"),
    [
        (["a"], None, [], [], ["a"]),
        (["a"], None, [], [("a", "b")], ["b"]),
        (["b"], None, [], [("a", "b")], ["b"]),
        (["a", "b"], None, [], [("a", "b")], ["b"]),
        (["b", "a"], None, [], [("a", "b")], ["b", "a"]),
        (["a"], None, [], [("a", "b"), ("b", "c")], ["c"]),
        (["b"], None, [], [("a", "b"), ("b", "a")], ["a"]),
        (["a"], None, [], [("a", "b"), ("b", "a")], ["a"]),
        (["x"], None, [], [("a", "b")], ["b", "x"]),
        (["a", "l"], "l", [], [("l", "m")], ["a", "m"]),
        (["a", "l"], "l", [], [("l", "m"), ("a", "b")], ["b", "m"]),
        (["a", "e"], None, ["e"], [("a", "b")], ["b", "e"]),
        (["a"], None, ["a"], [("a", "b")], ["b", "a"]),
    ],
)
def test_a_start_opens_what_was_promoted_in_the_place_of_what_it_was_promoted_over(
    named: list[str], long: str | None, experts: list[str], made: list[tuple[str, str]], opened: list[str]
) -> None:
    runs = {name: Path("runs", name) for name in named}
    found = start(runs, long, set(experts), made_by(*made), lambda name: Path("runs", name))
    assert list(found.runs.items()) == [(name, Path("runs", name)) for name in opened]
    assert found.long == (None if long is None else opened[-1])
    promoted = {name for _, name in made} & {opened[0], found.long}
    assert found.digests == {name: f"digest of {name}" for name in promoted}


@pytest.mark.integration
@pytest.mark.parametrize("verb", ["abort", "promote"])
def test_the_model_that_lost_is_unloaded_and_its_process_ends(ledger: Ledger, folder: Path, verb: str) -> None:
    draft(ledger, folder)
    loser, winner = ("run1", "run0") if verb == "abort" else ("run0", "run1")
    with served(folder, "--isolate") as server, Client(server.url) as client:
        until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["watching"])
        assert names(server) == {"run0": True, "run1": False}
        process = process_of(server, loser)
        talk(client, "s")
        if verb == "abort":
            httpx.post(f"{server.url}/v1/rollouts/r/abort").raise_for_status()
        else:
            promote(server)
        until(lambda: names(server) == {winner: True})
        until(lambda: not lives(process))
        assert {answer.model for answer in talk(client, "s")} == {winner}


@pytest.mark.integration
def test_a_model_named_on_the_command_line_stays_after_a_rollback(ledger: Ledger, folder: Path) -> None:
    draft(ledger, folder)
    runs = [folder / "run0", folder / "run1"]
    with serving(runs, folder / "sessions", "--ledger", str(folder / "rollouts.db"), *QUICK) as server:
        until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["watching"])
        httpx.post(f"{server.url}/v1/rollouts/r/abort").raise_for_status()
        until(lambda: httpx.get(f"{server.url}/v1/rollouts").json()["current"] is None)
        assert names(server) == {"run0": True, "run1": False}
