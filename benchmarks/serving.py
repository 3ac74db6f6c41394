"""What HTTP adds to the engine, beside a floor; whether a longer context costs more; what is left of it under overload.

python benchmarks/serving.py [--seconds 4] [--isolate]

The load is open: requests leave on their schedule whether or not earlier ones
were answered, and a latency counts from when its request was due, so a server
that stalls cannot hide it. Client and server have a core each, on a machine of
two; what else runs there is in the figures of both server and floor.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.inference import Engine
from nextvec.runs import TrainSettings
from nextvec.training import begin, train
from table import show

DIM, ROWS, HIDDEN = 384, 5_000, 128
SETTINGS = TrainSettings.of(context=64, batch=2, updates=1, evaluate_every=1, hidden=HIDDEN, slots=256, pool=100)
CONTEXTS, CLIENTS = (100, 1_000, 10_000), (1, 64)
ROUNDS = 3
SIZE = 900  # bytes of an answer with ten expected

FLOOR = f"""
import asyncio, socket, uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
class Constant:
    async def __call__(self, scope, receive, send):
        await Request(scope, receive).body()
        await Response(b"x" * {SIZE}, media_type="application/json")(scope, receive, send)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
app = Router([Route("/v1/sessions/{{session}}/append", Constant(), methods=["POST"])])
config = uvicorn.Config(app, http="httptools", loop="uvloop", lifespan="off", log_config=None, access_log=False)
uvicorn.Server(config).run([listener])
"""


def trained(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    with BankWriter(folder / "bank", encoder="t", encoder_fingerprint="t", dim=DIM) as writer:
        for m in range(20):
            steps = rng.standard_normal((ROWS // 20, DIM))
            writer.append(VectorDocument(str(m), f"document {m}", np.cumsum(steps, 0).astype(np.float32)))
        writer.finish()
    bank = Bank.open(folder / "bank")
    for _ in train(begin(folder / "run", "default", SETTINGS, bank), bank):
        pass
    return folder / "run"


@contextmanager
def process(command: list[str], core: int) -> Iterator[int]:
    """A server on one core; yields its port."""
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # inherited, by the processes of a server as well
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    os.sched_setaffinity(0, here)
    try:
        assert child.stdout is not None
        line = child.stdout.readline().strip()
        yield int(line.rstrip('"}').split(":")[-1])
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


class Wire:
    """One keep-alive connection that speaks just enough HTTP, so that the client costs little of the shared machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @staticmethod
    async def open(port: int) -> "Wire":
        return Wire(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path: str, body: bytes = b"", method: str = "POST", deadline: int = 1_000) -> tuple[int, bytes]:
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/vnd.nextvec.f32\r\n"
            f"x-deadline-ms: {deadline}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        answered = await self.reader.readuntil(b"\r\n\r\n")
        length = int(answered.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(answered[9:12]), await self.reader.readexactly(length)


def bodies(count: int) -> list[bytes]:
    rows = np.random.default_rng(1).standard_normal((count, DIM)).astype("<f4")
    return [row.tobytes() for row in rows]


async def opened(
    wires: list[Wire], names: list[str], rate: float, seconds: float, payloads: list[bytes]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Latencies (ms, from when each was due) and statuses of requests that leave on schedule; and the seconds it took."""
    due = iter(range(int(rate * seconds)))
    began, latencies, statuses = time.perf_counter() + 0.05, list[float](), list[int]()

    async def one(wire: Wire, name: str) -> None:
        for n in due:
            at = began + n / rate
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            status, _ = await wire.ask(f"/v1/sessions/{name}/append", payloads[n % len(payloads)])
            latencies.append((time.perf_counter() - at) * 1e3)
            statuses.append(status)

    await asyncio.gather(*map(one, wires, names))
    return np.array(latencies), np.array(statuses), time.perf_counter() - began


async def engine_ms(run: Path, context: int, rate: float, payloads: list[bytes]) -> float:
    """Median of a step and a search without any server, on the server's core, at the same pace: what waits grows cold."""
    engine = Engine.open(run, weights="float32")
    session = engine.session()
    session.push_many(np.random.default_rng(2).standard_normal((context, DIM)).astype(np.float32))
    session.predict(10)
    taken, here = [], os.sched_getaffinity(0)
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    for payload in payloads[:300]:
        await asyncio.sleep(1 / rate)
        began = time.perf_counter()
        session.push(np.frombuffer(payload, np.float32))
        session.predict(10)
        taken.append((time.perf_counter() - began) * 1e3)
    os.sched_setaffinity(0, here)
    return float(np.median(taken))


async def prepared(port: int, context: int, clients: int) -> tuple[list[Wire], list[str]]:
    rows = np.random.default_rng(2).standard_normal((context, DIM)).astype("<f4")
    names = [f"c{context}-{clients}-{n}" for n in range(clients)]
    wire = await Wire.open(port)
    for name in names:
        await wire.ask(f"/v1/sessions/{name}", method="PUT")
        for first in range(0, context, 1_000):
            await wire.ask(f"/v1/sessions/{name}/append?k=0", rows[first : first + 1_000].tobytes())
        await wire.ask(f"/v1/sessions/{name}/predict", deadline=60_000)
    wire.writer.close()
    return [await Wire.open(port) for _ in range(clients)], names


async def measure(run: Path, port: int, floor: int, seconds: float) -> None:
    payloads = bodies(512)
    table: list[list[str]] = []
    for context in CONTEXTS:
        for clients in CLIENTS:
            if clients > 1 and context > 1_000:
                clients = 4  # as many states as are rebuilt in a reasonable time
            wires, names = await prepared(port, context, clients)
            plain = [await Wire.open(floor) for _ in range(clients)]
            rate = 100.0 if clients == 1 else 200.0
            engine = await engine_ms(run, context, rate, payloads)
            await opened(wires, names, rate, 0.5, payloads)
            rounds: list[list[float]] = []
            for _ in range(ROUNDS):  # in turn, the medians of their percentiles: a stall of the machine is in one of them
                found, _, _ = await opened(wires, names, rate, seconds, payloads)
                base, _, _ = await opened(plain, names, rate, seconds, payloads)
                rounds.append([*np.percentile(found, [50, 95, 99]), *np.percentile(base, [50, 95])])
            p50, p95, p99, f50, f95 = np.median(rounds, axis=0)
            figures = (p50, p95, p99, engine, p50 - engine, f50, f95, (p50 - engine) / f50)
            table.append([f"{context:,}", str(clients), f"{rate:.0f}", *[f"{figure:.2f}" for figure in figures]])
            for wire in [*wires, *plain]:
                wire.writer.close()
    columns = [
        "context",
        "clients",
        "per s",
        "P50",
        "P95",
        "P99 ms",
        "engine P50",
        "P50 - engine",
        "floor P50",
        "floor P95",
        "times",
    ]
    note = f"open loop; memory GRU {HIDDEN}, {ROWS:,} candidates, width {DIM}; times: P50 - engine over floor P50"
    show("Append one vector, predict ten", columns, table, note)
    await overload(port, seconds, payloads)


async def overload(port: int, seconds: float, payloads: list[bytes]) -> None:
    """Capacity is the most that was ever answered in time on a schedule that rises by a fifth until it no longer helps."""
    wires, names = await prepared(port, 100, 64)
    more = [*wires, *[await Wire.open(port) for _ in range(192)]]
    asked = [names[n % 64] for n in range(256)]
    capacity, rate = 0.0, 200.0
    while True:
        _, statuses, took = await opened(more, asked, rate, seconds, payloads)
        good = float((statuses == 200).sum() / took)
        capacity = max(capacity, good)
        if good < 0.9 * rate:
            break
        rate *= 1.2
    rows = []
    for times in (0.5, 1.0, 2.0):
        latencies, statuses, took = await opened(more, asked, times * capacity, 2 * seconds, payloads)
        good = (statuses == 200).sum() / took
        p50, p95 = np.percentile(latencies[statuses == 200], [50, 95])
        shed = (statuses == 503).mean()
        sent = len(statuses) / took
        rows.append(
            [f"{times:g} x", f"{sent:.0f}", f"{good:.0f}", f"{good / capacity:.0%}", f"{shed:.0%}", f"{p50:.1f}", f"{p95:.1f}"]
        )
    note = f"capacity {capacity:.0f} answers per second; sent is what left, with the client on its core"
    show("Overload", ["load", "sent per s", "good per s", "of capacity", "refused", "P50", "P95 ms"], rows, note)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--isolate", action="store_true", help="the engine in a process of its own, on the server's core")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = trained(Path(folder))
        serve = [sys.executable, "-m", "nextvec.cli.main", "serve", str(run), "--port", "0", "--json", "--weights", "float32"]
        serve += ["--isolate"] * arguments.isolate
        last = os.cpu_count() or 1
        os.sched_setaffinity(0, {0})
        with process(serve, last - 1) as port, process([sys.executable, "-c", FLOOR], last - 1) as floor:
            asyncio.run(measure(run, port, floor, arguments.seconds))


if __name__ == "__main__":
    main()
