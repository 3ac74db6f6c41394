"""A real server while rollouts end in every way, one after another, under traffic with idle sessions: does it always answer?

python benchmarks/soak.py [--minutes 10] [--deadline 1.0] [--ways slow,killed]

One process of its own asks ``/healthz`` ten times a second and counts answers that did not come within the deadline; one sends
traffic in short sessions that it leaves behind. Deliberate restarts are not counted. Exit code 1 on any miss, and where a
rollout did not end as it was made to.
"""

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.inference import Engine
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.lifecycle import create, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.plan import CanaryStep, Plan
from nextvec.rollout.promotions import identity
from nextvec.rollout.transition import Command
from nextvec.rollout.units import bands
from nextvec.runs import TrainSettings
from nextvec.training import begin, train
from table import show

DIM = 16
SETTINGS = TrainSettings.of(context=20, batch=3, updates=2, evaluate_every=1, hidden=8, slots=16, working=8, pool=30)
STEPS = (CanaryStep(50.0, 0.0, 10**6), CanaryStep(98.0, 0.0, 10**6))
EVERY = 0.1  # seconds between two questions for health
PATIENCE = 120.0  # seconds for a rollout to end
WAYS = ("promoted", "aborted", "failing", "slow", "killed", "not_a_number", "restarted")
OPTIONS = ("--turn", "0.2", "--budget-ms", "250", "--idle", "1", "--settle", "2", "--isolate", "--max-sessions", "100000")


def runs(folder: Path) -> None:
    """Two sound runs, ``one`` and ``two``, and ``nan``, whose weights are not numbers."""
    rng = np.random.default_rng(0)
    with BankWriter(folder / "bank", encoder="t", encoder_fingerprint="t", dim=DIM) as writer:
        for m in range(12):
            writer.append(VectorDocument(str(m), f"document {m}", rng.standard_normal((50, DIM)).cumsum(0).astype(np.float32)))
        writer.finish()
    bank = Bank.open(folder / "bank")
    for seed, name in enumerate(("one", "two", "nan")):
        settings = SETTINGS.replaced(seed=seed)
        for _ in train(begin(folder / name, "default", settings, bank), bank):
            pass
    weights = folder / "nan" / "best.safetensors"
    with safe_open(weights, "numpy") as file:
        notes = file.metadata()
    save_file({name: np.full_like(w, np.nan) for name, w in load_file(weights).items()}, weights, notes)


@dataclass
class Server:
    """The server under test, started again by the same command whatever was promoted."""

    folder: Path
    process: "subprocess.Popen[str] | None" = None
    port: int = 0
    command: list[str] = field(default_factory=list[str])

    def start(self) -> None:
        runs_and_ledger = [str(self.folder / "one"), "--ledger", str(self.folder / "rollouts.db"), "--port", str(self.port)]
        command = [sys.executable, "-m", "nextvec.cli.main", "serve", *runs_and_ledger, *OPTIONS, "--json"]
        log = (self.folder / "server.log").open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start:\n{(self.folder / 'server.log').read_text()[-2000:]}")
        self.port = int(line.strip().rstrip('"}').split(":")[-1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)

    def models(self) -> dict[str, Any]:
        return {model["name"]: model for model in httpx.get(f"{self.url}/v1/models", timeout=30).json()["models"]}

    def stable(self) -> str:
        return next(name for name, model in self.models().items() if model["stable"])


def ask_for_health(url: str, deadline: float, paused: Any, asked: Any, missed: Any, slowest: Any) -> None:
    """Until the parent ends this: ``paused`` while the server is being restarted."""
    client = httpx.Client(base_url=url, timeout=deadline)
    while True:
        began = time.monotonic()
        try:
            good = client.get("/healthz").status_code == 200
        except httpx.HTTPError:
            good = False
        if not paused.value:
            took = time.monotonic() - began
            asked.value += 1
            missed.value += not good or took > deadline
            slowest.value = max(slowest.value, took)
        time.sleep(EVERY)


def send_traffic(url: str, paused: Any, answered: Any, refused: Any) -> None:
    """Sessions of three appends each, which are left idle; every tenth is deleted."""
    client, rng, n = httpx.Client(base_url=url, timeout=10), np.random.default_rng(1), 0
    while True:
        name = f"s{os.getpid()}-{n}"
        n += 1
        with suppress(httpx.HTTPError):
            client.put(f"/v1/sessions/{name}")
            for _ in range(3):
                body = rng.standard_normal((1, DIM)).astype("<f4").tobytes()
                kind = {"content-type": "application/vnd.nextvec.f32"}
                good = client.post(f"/v1/sessions/{name}/append?k=3", content=body, headers=kind).status_code == 200
                answered.value += good
                refused.value += not good and not paused.value
            if n % 10 == 0:
                client.delete(f"/v1/sessions/{name}")
        time.sleep(0.005)


class Rollouts:
    """Drafts rollouts over the present stable model and lets them end."""

    def __init__(self, server: Server, paused: Any) -> None:
        self.server, self.paused, self.count = server, paused, 0
        self.ledger = open_ledger(server.folder / "rollouts.db")
        self.digests = {name: Engine.open(server.folder / name).digest for name in ("one", "two")}
        self.digests["nan"] = "no digest: these weights cannot be opened"

    def draft(self, canary: str | None = None) -> tuple[str, str]:
        """A rollout in the shadow; its id, and the canary's name."""
        stable = self.server.stable()
        canary = canary or {"one": "two", "two": "one"}[stable]
        self.count += 1
        rollout = f"r{self.count}"
        old, new = (identity(name, self.digests[name]) for name in (stable, canary))
        plan = Plan(3.0, 0.01, STEPS, lease=5.0)
        create(self.ledger, rollout, "default", plan, stable=old, canary=new, actor="soak", evidence=Evidence(bands()))
        intervene(self.ledger, rollout, Command("start", "soak"))
        return rollout, canary

    def person(self, rollout: str, verb: str) -> None:
        httpx.post(f"{self.server.url}/v1/rollouts/{rollout}/{verb}", timeout=30).raise_for_status()

    def state(self, rollout: str) -> str:
        return self.ledger.record(rollout).state

    def served(self, canary: str) -> int:
        """The canary's process, once it is there and half of the sessions are its own."""
        until(lambda: (self.server.models().get(canary) or {}).get("process") is not None, f"{canary} is not served")
        return int(self.server.models()[canary]["process"])

    def ended(self, rollout: str, disturb: Callable[[], None] = lambda: None) -> str:
        """Wait for the end, disturbing the canary meanwhile; the cause."""

        def over() -> bool:
            disturb()
            return self.state(rollout) in ("PROMOTED", "ROLLED_BACK", "REJECTED")

        until(over, f"{rollout} is still {self.state(rollout)}", 0.0)
        until(lambda: httpx.get(f"{self.server.url}/v1/rollouts", timeout=30).json()["current"] is None, "it is not let go")
        until(lambda: len(self.server.models()) == 1, "the model that lost is still served")
        rows = self.ledger.rows(rollout)
        return next(row.cause for row in reversed(rows) if row.before != "ROLLING_BACK")

    # The ways to end

    def promoted(self) -> str:
        rollout, canary = self.draft()
        self.served(canary)
        for _ in range(3):
            self.person(rollout, "promote")
            time.sleep(0.5)
        cause = self.ended(rollout)
        assert self.server.stable() == canary, "another model is stable"
        return cause

    def aborted(self) -> str:
        rollout, canary = self.draft()
        self.served(canary)
        self.person(rollout, "promote")
        time.sleep(1.0)
        self.person(rollout, "abort")
        return self.ended(rollout)

    def not_a_number(self) -> str:
        rollout, _ = self.draft("nan")
        return self.ended(rollout)

    def disturbed(self, disturb: Callable[[int], None]) -> str:
        """Half of the sessions go to a canary whose process is disturbed again and again."""
        rollout, canary = self.draft()
        self.served(canary)
        self.person(rollout, "promote")

        def once() -> None:
            process = (self.server.models().get(canary) or {}).get("process")
            if process is not None:
                with suppress(ProcessLookupError):
                    disturb(int(process))

        return self.ended(rollout, once)

    def failing(self) -> str:
        return self.disturbed(lambda process: stopped(process, 1.0, 0.02))

    def slow(self) -> str:
        return self.disturbed(lambda process: stopped(process, 0.35, 0.02))

    def killed(self) -> str:
        return self.disturbed(lambda process: os.kill(process, signal.SIGKILL))

    def restarted(self) -> str:
        """The server is killed in the middle of a rollout, and goes on with it."""
        rollout, canary = self.draft()
        self.served(canary)
        self.person(rollout, "promote")
        with restarting(self.paused):
            self.server.kill()
            self.server.start()
        self.served(canary)
        self.person(rollout, "abort")
        return self.ended(rollout)


def stopped(process: int, seconds: float, between: float) -> None:
    os.kill(process, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(process, signal.SIGCONT)
    time.sleep(between)


@contextmanager
def restarting(paused: Any) -> Iterator[None]:
    paused.value = 1
    try:
        yield
    finally:
        time.sleep(0.5)  # what was asked before has failed by now
        paused.value = 0


def until(what: Callable[[], bool], otherwise: str, pause: float = 0.1) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > end:
            raise SystemExit(f"in {PATIENCE:g} s: {otherwise}")
        time.sleep(pause)


def memory(process: int) -> float:
    """MiB resident, of the server and the processes of its models."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return sum(rss for pid, parent, rss in rows if process in (pid, parent)) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no further rollout begins (10)")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds for an answer to /healthz (1)")
    parser.add_argument("--ways", default=",".join(WAYS), metavar="NAME,NAME", help=f"to end ({', '.join(WAYS)})")
    arguments = parser.parse_args()
    if unknown := set(arguments.ways.split(",")) - set(WAYS):
        parser.error(f"--ways: {', '.join(sorted(unknown))} is none of {', '.join(WAYS)}")
    context = multiprocessing.get_context("spawn")
    paused, asked, missed, answered, refused = (context.Value("i", 0) for _ in range(5))
    slowest = context.Value("d", 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs(folder)
        server = Server(folder)
        server.start()
        clients = [
            context.Process(target=ask_for_health, args=(server.url, arguments.deadline, paused, asked, missed, slowest)),
            context.Process(target=send_traffic, args=(server.url, paused, answered, refused)),
        ]
        for client in clients:
            client.daemon = True
            client.start()
        rollouts, table = Rollouts(server, paused), list[list[str]]()
        ways = [getattr(rollouts, name) for name in arguments.ways.split(",")]
        end, n = time.monotonic() + 60 * arguments.minutes, 0
        try:
            while time.monotonic() < end:
                way, before, slow_before = ways[n % len(ways)], missed.value, asked.value
                slowest.value = 0.0
                cause = way()
                assert server.process is not None
                figures = [str(asked.value - slow_before), str(missed.value - before), f"{1e3 * slowest.value:.0f}"]
                table.append([way.__name__, cause[:60], *figures, f"{memory(server.process.pid):.0f}"])
                print(*table[-1], sep="  ", file=sys.stderr, flush=True)
                n += 1
        finally:
            for client in clients:
                client.terminate()
            server.kill(signal.SIGTERM)
            rollouts.ledger.close()
    heads = ["ended by", "cause", "asked for health", "missed", "slowest, ms", "MiB"]
    note = f"{answered.value:,} appends answered, {refused.value:,} not; a miss is no answer within {arguments.deadline:g} s"
    show("rollouts that end in every way, under traffic", heads, table, note)
    return 1 if missed.value or not table else 0


if __name__ == "__main__":
    sys.exit(main())
