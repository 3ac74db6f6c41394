"""Ten thousand sessions in one process: memory of each, and steps per second together and one at a time.

    python benchmarks/sessions.py

Models are untrained: what they answer means nothing, what it costs does. The
sessions have read contexts of different length. One thread.
"""

import gc
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.inference import Engine, Session
from nextvec.kernels.weights import FORMATS, WeightFormat
from nextvec.models import GRU, MemoryGRU, Recurrent
from nextvec.models.packed import pack
from table import show

DIM, SESSIONS, SECONDS = 384, 10_000, 4.0
LENGTHS = (1, 5, 20)


MODELS: dict[str, Callable[[], Recurrent[Any]]] = {
    "GRU 2 x 1040, 11.3 M": lambda: GRU(torch.zeros(DIM), 0.5, hidden=1040, layers=2),
    "memory GRU 256": lambda: MemoryGRU(torch.zeros(DIM), 0.5, hidden=256),
}


def main() -> None:
    jobs = [(name, form) for name in MODELS for form in FORMATS]
    # Each in a process of its own: memory that another one has given back would be taken for none.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        table = list(pool.map(row_of, *zip(*jobs, strict=True)))
    columns = ["model", "weights", "kB each", "of tensors", "steps/s, 1", "16", "256", "256 over 1"]
    note = f"{SESSIONS:,} sessions that have read {', '.join(map(str, LENGTHS))} vectors, resident memory, one thread"
    show("Sessions in one process", columns, table, note)


def row_of(name: str, form: WeightFormat) -> list[str]:
    torch.set_num_threads(1)
    bank = Bank.from_numpy(np.random.default_rng(0).standard_normal((2_000, DIM)).astype(np.float32), [100] * 20)
    engine = Engine(pack(MODELS[name]().eval(), form), bank)
    engine.step([engine.session()], bank.rows[:1])  # what the first step of all takes is not a session's
    before = _resident()
    sessions = [engine.session() for _ in range(SESSIONS)]
    for length in LENGTHS:  # a third of them each
        for _ in range(length):
            _round(engine, sessions[LENGTHS.index(length) :: len(LENGTHS)], bank, SESSIONS)
    gc.collect()
    each, held = (_resident() - before) / SESSIONS, np.mean([session.num_bytes for session in sessions])
    rates = [_rate(engine, sessions, bank, batch) for batch in (1, 16, 256)]
    figures = [f"{each / 1e3:.1f}", f"{held / 1e3:.1f}", *(f"{rate:,.0f}" for rate in rates), f"{rates[2] / rates[0]:.1f}"]
    return [name, form, *figures]


def _round(engine: Engine, sessions: list[Session], bank: Bank, batch: int) -> None:
    vectors = bank.rows[np.arange(len(sessions)) % len(bank)]
    for first in range(0, len(sessions), batch):
        engine.step(sessions[first : first + batch], vectors[first : first + batch])
        for session in sessions[first : first + batch]:
            session.rows_seen()


def _rate(engine: Engine, sessions: list[Session], bank: Bank, batch: int) -> float:
    """Steps per second, over sessions in turn."""
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        first = done % SESSIONS
        some = sessions[first : first + batch]
        engine.step(some, bank.rows[np.arange(done, done + len(some)) % len(bank)])
        done += len(some)
    return done / (time.perf_counter() - began)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
