"""A bank that is served without training, and its rollout to a run."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nextvec.bank import Bank
from nextvec.client import Client
from nextvec.inference import Engine
from nextvec.inference.snapshot import read
from nextvec.serving.run_state import RunStates
from nextvec.wire.overview import RunState
from tests.command import nextvec
from tests.conftest import walk_bank
from tests.serving.server import DIM, Running, make_run, rows_of, serving
from tests.serving.test_canary import QUICK, until
from tests.serving.test_mapped_run import SETTINGS
from tests.serving.test_rollout_end import names
from tests.serving.test_verbs import told
from tests.test_cli import write_bank


@pytest.fixture
def books(folder: Path, made: Path) -> Path:
    """A bank beside two runs that were trained on it."""
    return Path(shutil.copytree(made / "bank", folder / "books.bank"))


def got(server: Running, path: str) -> Any:
    return httpx.get(f"{server.url}{path}").raise_for_status().json()


@pytest.mark.integration
@pytest.mark.parametrize("options", [(), ("--isolate",)], ids=["here", "isolated"])
def test_a_server_answers_like_the_engine_of_the_bank(books: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    engine = Engine.open(books)
    with serving(books, tmp_path / "s", *options) as server, Client(server.url) as client:
        session, here = client.session("one"), engine.session()
        for n in range(3):
            session.append(rows_of(4, n))
            here.push_many(rows_of(4, n))
            answer, wanted = session.predict(5), here.predict(5)
            assert [e.row for e in answer.expected] == [e.row for e in wanted]
            np.testing.assert_allclose([e.score for e in answer.expected], [e.score for e in wanted], atol=1e-4)
            assert answer.model == "books"
        data = session.snapshot()
        assert read(data).model == engine.digest
        assert [e.row for e in engine.restore(data).predict(5)] == [e.row for e in wanted]
        assert client.restore("two", data).state == "restored"


@pytest.mark.integration
def test_every_operation_answers_without_a_run(books: Path, tmp_path: Path) -> None:
    """The lanes come from the bank; a rollout needs a ledger, as with runs."""
    assert nextvec("lanes", str(books), "--clusters", "3", "--out", str(tmp_path / "lanes")).code == 0
    with serving(books, tmp_path / "s", "--lanes", str(tmp_path / "lanes")) as server, Client(server.url) as client:
        assert client.session("one").append(rows_of(4), k=2).expected
        assert names(server) == {"books": True}
        overview = got(server, "/v1/overview")
        (run,) = overview["runs"]
        assert (run["name"], run["recipe"], run["model"], run["context"]) == ("books", "shipped", "pooled", 256)
        assert (run["trouble"], run["updates"], run["exams"]) == (None, None, [])
        assert sum(lane["answers"] for lane in overview["lanes"]) == 1
        reloaded = httpx.post(f"{server.url}/v1/models/books/reload").raise_for_status().json()
        assert reloaded["digest"] == Engine.open(books).digest
        problem = httpx.post(f"{server.url}/v1/rollouts/r/promote")
        assert problem.status_code == 404
        assert "--ledger" in problem.json()["detail"]
        assert got(server, "/readyz")


@pytest.mark.integration
def test_a_rollout_from_a_bank_to_a_run_and_a_restart_with_the_same_command(books: Path, folder: Path) -> None:
    started = told(
        folder, "rollout", "start", "run1", "--over", "books.bank", "--id", "r", "--budget", "1000000", "--dwell", "0.1"
    )
    assert (started["state"], started["failures"]) == ("SHADOW", [])
    command = (books, None, "--ledger", str(folder / "rollouts.db"), *QUICK)
    with serving(*command) as server, Client(server.url) as client:
        client.session("s").append(rows_of(3))
        until(lambda: names(server) == {"books": True, "run1": False})
        for _ in range(6):  # 5, 10, 25, 50, 98 %, promoted
            httpx.post(f"{server.url}/v1/rollouts/r/promote").raise_for_status()
        until(lambda: names(server).get("run1", False))
        server.kill()
    with serving(*command) as server, Client(server.url) as client:
        assert names(server) == {"run1": True}
        here = Engine.open(folder / "run1").session()
        here.push_many(rows_of(3))
        assert [e.row for e in client.session("s").predict(4).expected] == [e.row for e in here.predict(4)]


@pytest.mark.integration
def test_a_rollout_from_a_run_to_a_bank_finds_it_beside_the_run(books: Path, folder: Path) -> None:
    told(folder, "rollout", "start", "books.bank", "--over", "run0", "--id", "r", "--budget", "1000000")
    with serving(folder / "run0", None, "--ledger", str(folder / "rollouts.db"), *QUICK) as server:
        until(lambda: names(server) == {"run0": True, "books": False})


@pytest.mark.integration
def test_refit_serves_a_run_on_another_bank_in_the_space_of_that_bank(tmp_path: Path) -> None:
    run = make_run(tmp_path, settings=SETTINGS)
    other = write_bank(tmp_path / "other.bank", walk_bank(seed=7, dim=DIM))
    for flags, refit in (((), False), (("--refit",), True)):
        log = tmp_path / f"{refit}.log"
        with serving(run, tmp_path / str(refit), "--bank", str(other), *flags, log=log) as server:
            digest = got(server, "/v1/models")["models"][0]["digest"]
            assert digest == Engine.open(run, Bank.open(other), refit=refit).digest
        assert ("its space is fitted to the rows of this bank" in log.read_text()) == refit
        assert ("--refit fits it to this bank" in log.read_text()) != refit


def test_the_folder_of_a_served_model_that_is_gone_is_reported(books: Path) -> None:
    states = RunStates()
    assert states.read("books", books).model == "pooled"
    shutil.rmtree(books)
    assert states.read("books", books) == RunState("books", "its folder cannot be read any more")
