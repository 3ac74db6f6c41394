"""One session, one step: what it takes beside what reading its weights takes.

    python benchmarks/step.py

A step reads every weight once, so it cannot be faster than its bytes are read
in. The limit is a plain sum over as many bytes, which stay in the cache that
they fit into, as the weights do; it is measured between the steps, and so are
all formats and the plain model, a few steps of each in turn. One thread.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from nextvec.kernels.library import level
from nextvec.kernels.weights import WeightFormat
from nextvec.models import GRU, LSTM, LinearRecurrence, MemoryGRU, Recurrent, Transformer
from nextvec.models.packed import fastest_format, pack, weight_bytes
from nextvec.reproduction.published import PublishedMemoryGRU
from table import show

DIM, CONTEXT, ROUNDS, STEPS, WARM = 384, 300, 40, 10, 4
DRAM = 512 << 20  # bytes that fit no cache
FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8")
CENTRE = torch.zeros(DIM)
MODELS: dict[str, Callable[[], Recurrent[Any]]] = {
    "gru, 2 layers of 1040": lambda: GRU(CENTRE, 0.5, hidden=1040, layers=2),
    "published, 768 wide": PublishedMemoryGRU,
    "lstm, 512": lambda: LSTM(CENTRE, 0.5),
    "linear, 2 layers of 512": lambda: LinearRecurrence(CENTRE, 0.5),
    "memory_gru, 512": lambda: MemoryGRU(CENTRE, 0.5),
    "transformer, 4 layers of 512": lambda: Transformer(CENTRE, 0.5),
}


class Stepping:
    """A model after its context, and the milliseconds of its steps."""

    def __init__(self, model: Recurrent[Any]) -> None:
        self.model = model.eval()
        self.coming = normalize(torch.randn(CONTEXT, model.dim), dim=-1)
        self.state, _ = model.run(model.start(1), self.coming[None])
        self.milliseconds: list[float] = []

    def __call__(self, n: int) -> float:
        self.state, y_BD = self.model.step(self.state, self.coming[n % CONTEXT][None])
        return float(y_BD[0, 0])


def in_turn(calls: dict[str, Callable[[int], float]]) -> dict[str, np.ndarray]:
    """Milliseconds of each call. Several in a row, so that weights lie where they would; the first of them do not count."""
    taken: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(ROUNDS):
        for what, call in calls.items():
            for n in range(WARM + STEPS):
                began = time.perf_counter_ns()
                call(n)
                if n >= WARM:
                    taken[what].append((time.perf_counter_ns() - began) / 1e6)
    return {what: np.array(times) for what, times in taken.items()}


def reading(count: int) -> Callable[[int], float]:
    """Sums as many bytes, as float32."""
    buffer = torch.ones(max(1, count // 4))
    return lambda _: float(buffer.sum())


def rows_of(model_name: str) -> list[list[str]]:
    model = MODELS[model_name]()
    packed = {form: pack(model, form) for form in FORMATS}
    sizes = {form: weight_bytes(ours) for form, ours in packed.items()}
    calls: dict[str, Callable[[int], float]] = {"plain": Stepping(model)}
    for form, ours in packed.items():
        calls |= {form: Stepping(ours), f"reading {form}": reading(sizes[form])}
    times = in_turn(calls)
    middle = {what: float(np.median(taken)) for what, taken in times.items()}
    parameters = f"{sum(p.numel() for p in model.parameters()):,}"
    table: list[list[str]] = []
    for form in ("plain", *FORMATS):
        p50, p95 = np.percentile(times[form], [50, 95])
        limit = middle.get(f"reading {form}")
        table.append(
            [
                f"{model_name}: {form}",
                parameters,
                f"{sizes.get(form, weight_bytes(model)) / 1e6:.1f}",
                f"{p50:.3f} / {p95:.3f}",
                "" if limit is None else f"{limit:.3f} ({sizes[form] / limit / 1e6:.0f} GB/s)",
                "" if limit is None else f"{p50 / limit:.2f}",
                f"{middle['float32'] / p50:.2f}",
                f"{middle['plain'] / p50:.2f}",
            ]
        )
    return table


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    table = [row for model_name in MODELS for row in rows_of(model_name)]
    sums = reading(DRAM)
    dram = DRAM / statistics.median(in_turn({"dram": sums})["dram"][::STEPS]) / 1e6
    columns = [
        "model: weights",
        "parameters",
        "MB read",
        "step ms P50 / P95",
        "limit ms",
        "of limit",
        "of float32's speed",
        "of plain's",
    ]
    show(
        "A step of one session",
        columns,
        table,
        f"limit: a sum over as many bytes; DRAM {dram:.0f} GB/s; "
        f"kernels {level()}, fastest format {fastest_format()}; after {CONTEXT} vectors",
    )


if __name__ == "__main__":
    main()
