"""What one prediction costs: a step of the model after some context, alone and with exact search of the bank."""

# Axes: T vectors of context, D width.

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.index import ExactIndex
from nextvec.models import Recurrent

WARM_UP = 10
NEIGHBOURS = 10


@dataclass(frozen=True)
class Milliseconds:
    """Percentiles over ``n`` measurements, each of them one that was measured."""

    p50: float
    p95: float
    p99: float
    n: int

    @staticmethod
    def over(measured: Float64[np.ndarray, " n"]) -> "Milliseconds":
        p50, p95, p99 = np.percentile(measured, [50, 95, 99], method="inverted_cdf").tolist()
        return Milliseconds(p50, p95, p99, len(measured))

    def to_json(self) -> dict[str, float | int]:
        return {"p50_ms": self.p50, "p95_ms": self.p95, "p99_ms": self.p99, "n": self.n}


@dataclass(frozen=True)
class Latency:
    """One thread, one passage.

    Attributes:
        context: vectors that were read before.
        rows: of the bank that was searched.
        step: one vector read, one predicted.
        search: the same, and the prediction looked up among all rows.
    """

    context: int
    rows: int
    step: Milliseconds
    search: Milliseconds

    def to_json(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "rows": self.rows,
            "step": self.step.to_json(),
            "search": self.search.to_json(),
        }


@torch.inference_mode()
def step_latency(model: Recurrent[Any], bank: Bank, context: int, steps: int = 200, searches: int = 50) -> Latency:
    """Measure ``steps`` steps and ``searches`` steps with search, each after the same ``context`` rows of the bank.

    A bank with fewer rows is read again from its start. Warm-up is not counted.
    """
    threads, training = torch.get_num_threads(), model.training
    torch.set_num_threads(1)
    model.eval()
    try:
        index = ExactIndex(bank.rows)
        state = model.run(model.start(1), _vectors(bank, 0, context)[None])[0]
        coming = _vectors(bank, context, max(steps, searches) + WARM_UP)

        def step(n: int) -> Tensor:
            return model.step(state, coming[n : n + 1])[1]

        def search(n: int) -> None:
            index.search(step(n), NEIGHBOURS)

        return Latency(context, len(bank), _timed(step, steps), _timed(search, searches))
    finally:
        torch.set_num_threads(threads)
        model.train(training)


def _vectors(bank: Bank, first: int, count: int) -> Tensor:
    rows = np.arange(first, first + count) % len(bank)
    return torch.from_numpy(bank.rows[rows].astype(np.float32))


def _timed(call: Callable[[int], object], count: int) -> Milliseconds:
    taken: list[float] = []
    for n in range(WARM_UP + count):
        began = time.perf_counter_ns()
        call(n)
        taken.append((time.perf_counter_ns() - began) / 1e6)
    return Milliseconds.over(np.array(taken[WARM_UP:]))
