"""No verdict of these tests depends on how fast the machine is: clients wait as long as it takes."""

import inspect
import threading
from collections.abc import Iterator

import httpx
import pytest

from nextvec import client
from tests.serving.faults import RELEASED
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
