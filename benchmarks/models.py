"""What each model costs: parameters, training, and one step after a context.

    python benchmarks/models.py

The same passages, width and loss for all, one thread. The GRU is what the
others are compared with, in the same run.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from nextvec.bank import Bank
from nextvec.inference import Engine
from nextvec.inference.latency import answers
from nextvec.recipes import ours
from nextvec.runs.families import Basis, family_names
from nextvec.runs.loading import build
from nextvec.training.gradient import Gradient
from nextvec.windows import training_windows
from table import interleaved, show

DIM, PASSAGES, CONTEXT, ROUNDS, ROWS = 384, 2, 1000, 3, 8_000


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    bank = Bank.from_numpy(rng.standard_normal((ROWS, DIM)).astype(np.float32), [2_000] * 4)
    windows = training_windows(bank, range(4), CONTEXT, rng)
    chosen = np.flatnonzero(windows.stops - windows.starts == CONTEXT + 1)[:PASSAGES]
    calls, parameters, steps = {}, {}, {}
    for name in family_names():
        settings = ours(45_000, CONTEXT).replaced(model=name, batch=PASSAGES, negatives=0)
        model: Any = build(settings, Basis(torch.zeros(DIM), 0.5))
        parameters[name] = sum(p.numel() for p in model.parameters())
        steps[name] = answers(Engine(model.eval(), bank), (CONTEXT,), bank.rows)[0]
        gradient = Gradient(model.train(), nn.Parameter(torch.tensor(-2.0)), bank, np.arange(ROWS), settings)
        calls[name] = lambda g=gradient: g.compute(0, windows, chosen, np.empty(0, np.int64), np.arange(ROWS), measure=False)
    times = interleaved(calls, ROUNDS)
    table = [
        [
            name,
            f"{parameters[name]:,}",
            f"{PASSAGES * CONTEXT / times[name].cpu:,.0f}",
            f"{times['gru'].cpu / times[name].cpu:.2f}",
            f"{steps[name].step.p50:.2f} / {steps[name].step.p95:.2f}",
            f"{steps[name].both.p50:.2f} / {steps[name].both.p95:.2f}",
        ]
        for name in family_names()
    ]
    columns = ["model", "parameters", "positions a CPU s", "of the GRU's", "step ms P50 / P95", "with search"]
    what = (
        f"hidden {ours(45_000, CONTEXT).options.hidden}, {DIM}-wide, {PASSAGES} passages of {CONTEXT}, every position a target"
    )
    show("Models in training and in use", columns, table, f"{what}; a step comes after {CONTEXT}; search: exact, {ROWS:,} rows")


if __name__ == "__main__":
    main()
