"""A real server as a process of its own, on a tiny run that a test has made."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.runs import TrainSettings
from nextvec.serving.answers import RoutingRequest
from nextvec.training import begin, train
from tests.conftest import walk_bank
from tests.waiting import PATIENCE

DIM = 16
# What the server would refuse or break off because the machine is slow; a test whose subject that is names its own.
PATIENT = ("--budget-ms", "60000", "--deadline-ms", "60000")
SMALL = TrainSettings.of(context=20, batch=3, updates=2, evaluate_every=1, hidden=8, slots=16, working=8, pool=30)


def make_run(folder: Path, seed: int = 0, bank: Bank | None = None, settings: TrainSettings = SMALL) -> Path:
    """A run trained for two updates on a bank beside it; its weights hang on ``seed``, its bank does not."""
    bank = walk_bank(dim=DIM) if bank is None else bank
    if not (folder / "bank").exists():
        with BankWriter(folder / "bank", encoder="t", encoder_fingerprint="t", dim=DIM) as writer:
            for m, name in enumerate(bank.ids):
                writer.append(VectorDocument(name, f"title {m}", bank.document(m)))
            writer.finish()
    held = Bank.open(folder / "bank")
    run = begin(folder / f"run{seed}", "default", settings.replaced(seed=seed), held)
    for _ in train(run, held):
        pass
    return folder / f"run{seed}"


def asking(session: str, lane: str | None = None) -> RoutingRequest:
    """What a router knows of a request without headers, by a key without rights."""
    return RoutingRequest(session, lane, {}, frozenset())


def rows_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


@dataclass
class Running:
    """A server that answers at ``url``."""

    process: "subprocess.Popen[str]"
    url: str
    before_end: ExitStack = field(default_factory=ExitStack)  # such as closing the pages that would notice the end

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def talk(self, data: bytes, timeout: float = PATIENCE) -> bytes:
        """What comes back for these bytes until the server closes."""
        with socket.create_connection(self.address, timeout=timeout) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may say no before it has read everything
                connection.sendall(data)
            received = b""
            with suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    received += part
            return received


@contextmanager
def serving(
    run: Path | Sequence[Path], sessions: Path | None, *options: str, log: Path | None = None, port: int | None = 0
) -> Iterator[Running]:
    """A server on a free port; killed at the end, if it has not been stopped. ``options`` come after ``PATIENT``.

    Without ``sessions`` the server chooses their folder; with ``port`` None the options say where it listens.
    """
    first = run if isinstance(run, Path) else run[0]
    log = log or (sessions or first.parent / "server").with_suffix(".log")
    command = [
        sys.executable,
        "-m",
        "nextvec.cli.main",
        "serve",
        *([str(run)] if isinstance(run, Path) else map(str, run)),
        *(() if port is None else ("--port", str(port))),
        *([] if sessions is None else ["--sessions", str(sessions)]),
        "--json",
        *PATIENT,
    ]
    errors = log.open("ab")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        running = Running(process, json.loads(line)["url"])
        with running.before_end:
            yield running
    finally:
        process.kill()
        process.wait(PATIENCE)
        process.stdout.close()
        errors.close()


def request(method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A request that closes its connection, as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body
