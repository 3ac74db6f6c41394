"""One step: what it takes beside what reading its weights and its state takes; of one session, and of 256.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--only default]

A step reads every weight and the state once, so it cannot be faster than their bytes are read. The limit is a plain sum over
as many bytes, which stay in the cache that they fit into; it is measured between the steps, and so are all formats and the
plain model, a few steps of each in turn. The second limit is their size divided by the bandwidth of memory. One thread.

The default model is ``pooled`` with the weights of the package. Its step includes the map of its space, which stays float32 in
all formats. Sessions step as an engine steps them, so the figures of 256 include what joins and separates their states.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from nextvec.bank import Bank
from nextvec.inference import Engine
from nextvec.inference.states import leaves
from nextvec.kernels.library import level
from nextvec.kernels.weights import WeightFormat
from nextvec.models import GRU, LSTM, LinearRecurrence, MemoryGRU, Recurrent, Transformer
from nextvec.models.packed import fastest_format, pack, weight_bytes
from nextvec.models.space import Space
from nextvec.reproduction.published import PublishedMemoryGRU
from nextvec.runs.shipped import shipped_model
from table import show

DIM, CONTEXT, ROUNDS, STEPS, WARM, MANY = 384, 300, 40, 10, 4, 256
DRAM = 512 << 20  # bytes that fit no cache
FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8")
CENTRE = torch.zeros(DIM)
DEFAULT = "default"
MODELS: dict[str, Callable[[], Recurrent[Any]]] = {
    DEFAULT: lambda: shipped_model(Space.blank(DIM)),
    "gru, 2 layers of 1040": lambda: GRU(CENTRE, 0.5, hidden=1040, layers=2),
    "published, 768 wide": PublishedMemoryGRU,
    "lstm, 512": lambda: LSTM(CENTRE, 0.5),
    "linear, 2 layers of 512": lambda: LinearRecurrence(CENTRE, 0.5),
    "memory_gru, 512": lambda: MemoryGRU(CENTRE, 0.5),
    "transformer, 4 layers of 512": lambda: Transformer(CENTRE, 0.5),
}


TOGETHER = (DEFAULT, "gru, 2 layers of 1040", "memory_gru, 512")  # models whose sessions step together


class Stepping:
    """A model after its context."""

    def __init__(self, model: Recurrent[Any]) -> None:
        self.model = model.eval()
        self.coming = list(normalize(torch.randn(CONTEXT, 1, model.dim), dim=-1))
        self.state, _ = model.run(model.start(1), torch.stack(self.coming, dim=1))

    def __call__(self, n: int) -> None:
        self.state, _ = self.model.step(self.state, self.coming[n % CONTEXT])

    @property
    def bytes_read(self) -> int:
        return weight_bytes(self.model) + sum(torch.as_tensor(leaf).nbytes for leaf in leaves(self.state))


class Sessions:
    """Sessions of an engine after a context, each with a state of its own."""

    def __init__(self, model: Recurrent[Any], bank: Bank, form: WeightFormat) -> None:
        engine = Engine(model, bank, weights=form)
        session = engine.session()
        session.push_many(bank.rows[:CONTEXT])
        self.engine, self.rows = engine, bank.rows
        self.sessions = [session.copy() for _ in range(MANY)]
        for each in self.sessions:
            each.state = deepcopy(session.state)

    def __call__(self, n: int) -> None:
        self.engine.step(self.sessions, self.rows[n : n + MANY])

    @property
    def bytes_read(self) -> int:
        states = (leaf for session in self.sessions for leaf in leaves(session.state))
        return weight_bytes(self.engine.model) + sum(torch.as_tensor(leaf).nbytes for leaf in states)


def in_turn(calls: dict[str, Callable[[int], object]], rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Milliseconds of each call. Several in a row, so that weights lie where they would; the first of them do not count."""
    taken: dict[str, list[float]] = {what: [] for what in calls}
    warm = min(WARM, steps)
    for _ in range(rounds):
        for what, call in calls.items():
            for n in range(warm + steps):
                began = time.perf_counter_ns()
                call(n)
                if n >= warm:
                    taken[what].append((time.perf_counter_ns() - began) / 1e6)
    return {what: np.array(times) for what, times in taken.items()}


def reading(size: int) -> Callable[[int], object]:
    """Sums as many bytes, as float32."""
    buffer = torch.ones(max(1, size // 4))
    return lambda _: buffer.sum()


def rows_of(model_name: str, dram: float) -> list[list[str]]:
    """One row of the table for the plain model and one for each format.

    Args:
        dram: bandwidth of memory in GB/s.
    """
    model = MODELS[model_name]()
    parameters = f"{sum(p.numel() for p in model.parameters()):,}"
    stepping = {"plain": Stepping(model)} | {form: Stepping(pack(model, form)) for form in FORMATS}
    calls: dict[str, Callable[[int], object]] = dict(stepping)
    calls |= {f"reading {form}": reading(stepping[form].bytes_read) for form in FORMATS}
    times = in_turn(calls, ROUNDS, STEPS)
    plain, exact = (float(np.median(times[what])) for what in ("plain", "float32"))
    table: list[list[str]] = []
    for form, of in stepping.items():
        p50, p95 = np.percentile(times[form], [50, 95])
        limited = limit_columns(p50, of.bytes_read, times.get(f"reading {form}"), dram)
        head = [f"{model_name}: {form}", parameters, f"{of.bytes_read / 1e6:.2f}", f"{p50:.3f} / {p95:.3f}"]
        table.append([*head, *limited, f"{exact / p50:.2f}", f"{plain / p50:.2f}"])
    return table


def limit_columns(milliseconds: float, size: int, reading_ms: np.ndarray | None, dram: float) -> list[str]:
    if reading_ms is None:
        return ["", "", ""]
    limit, memory = float(np.median(reading_ms)), size / dram / 1e6
    return [f"{limit:.3f} ({size / limit / 1e6:.0f} GB/s)", f"{milliseconds / limit:.2f}", f"{milliseconds / memory:.2f}"]


def rows_together(model_name: str, dram: float) -> list[list[str]]:
    """One row of the table for each format: a step of many sessions, beside as many single steps."""
    model = MODELS[model_name]()
    bank = Bank.from_numpy(normalize(torch.randn(1_000, DIM), dim=-1).numpy(), [1_000])
    sessions = {form: Sessions(pack(model, form), bank, form) for form in FORMATS}
    calls: dict[str, Callable[[int], object]] = dict(sessions)
    calls |= {f"reading {form}": reading(sessions[form].bytes_read) for form in FORMATS}
    times = in_turn(calls, ROUNDS // 10, STEPS)
    table: list[list[str]] = []
    for form, of in sessions.items():
        p50, p95 = np.percentile(times[form], [50, 95])
        limited = limit_columns(p50, of.bytes_read, times[f"reading {form}"], dram)
        head = [f"{model_name}: {form}", f"{of.bytes_read / 1e6:.1f}", f"{p50:.2f} / {p95:.2f}"]
        table.append([*head, f"{1e3 * p50 / MANY:.1f}", *limited])
    return table


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("default",))
    only = parser.parse_args().only
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dram = DRAM / statistics.median(in_turn({"dram": reading(DRAM)}, ROUNDS // 10, STEPS)["dram"]) / 1e6
    note = f"limit: a sum over as many bytes; memory: {dram:.0f} GB/s; kernels {level()}, fastest format {fastest_format()}"
    limits = ["limit ms", "of limit", "of memory"]
    columns = ["model: weights", "parameters", "MB read", "step ms P50 / P95", *limits, "of float32's speed", "of plain's"]
    chosen = (DEFAULT,) if only else tuple(MODELS)
    table = [row for name in chosen for row in rows_of(name, dram)]
    show("A step of one session", columns, table, f"{note}; after {CONTEXT} vectors")
    columns = ["model: weights", "MB read", "step ms P50 / P95", "us a session", *limits]
    table = [row for name in chosen if name in TOGETHER for row in rows_together(name, dram)]
    show(f"A step of {MANY} sessions together", columns, table, f"{note}; after {CONTEXT} vectors")


if __name__ == "__main__":
    main()
