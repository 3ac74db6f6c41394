"""No verdict of these tests depends on how fast the machine is: clients wait as long as it takes."""

import inspect
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nextvec import client
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.opening import open_ledger
from tests.made_once import made_once
from tests.serving.faults import RELEASED
from tests.serving.server import make_run
from tests.waiting import PATIENCE


@pytest.fixture(autouse=True, scope="session")
def patient_clients() -> None:
    """The timeouts of ``httpx.get`` and its kin, and of the project's own client, where a test gives none."""
    default: httpx.Timeout = inspect.signature(httpx.get).parameters["timeout"].default
    default.connect = default.read = default.write = default.pool = PATIENCE
    for made in (client.Client, client.AsyncClient):
        made.__init__.__defaults__ = (None, PATIENCE)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What lets an engine that hangs go on."""
    RELEASED.clear()
    yield RELEASED
    RELEASED.set()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, ``run0`` and ``run1``, and the bank that both were trained on. Tests only read it."""

    def make(folder: Path) -> None:
        for seed in (0, 1):
            make_run(folder, seed)

    return made_once(tmp_path_factory, "two-runs", make)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of both runs for a test that writes into them; they share the bank that they were trained on."""
    for name in ("run0", "run1"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger of rollouts in ``folder``."""
    opened = open_ledger(folder / "rollouts.db")
    yield opened
    opened.close()
