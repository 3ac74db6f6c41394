"""Supervised targets per second of training: every position, against the predecessor's last position only.

    python benchmarks/supervision.py

The same model, the same vectors, the same passages; only what is scored
differs. Aim: at least 50 times as many targets per second.
"""

import numpy as np
import torch
from torch import nn

from nextvec.bank import Bank
from nextvec.batches import candidates, passages
from nextvec.models import MemoryGRU, Recurrent
from nextvec.objective import info_nce
from nextvec.windows import Windows
from table import interleaved, show

DIM, BATCH = 384, 4


def step(model: Recurrent[object], bank: Bank, classes: np.ndarray, windows: Windows) -> int:
    """One whole update without the optimiser's own time, which is the same for both."""
    batch = passages(bank, windows, np.arange(len(windows)))
    scored = batch.targets >= 0
    copies = np.ones(len(bank), np.int64)
    named = candidates(bank, classes, copies, batch.targets[scored].numpy(), np.empty(0, np.int64))
    loss = info_nce(model(batch.x)[scored] @ named.vectors.T, named.truth, named.forbidden, torch.tensor(0.07))
    model.zero_grad()
    loss.backward()
    return int(scored.sum())


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    bank = Bank.from_numpy(rng.standard_normal((8_000, DIM)).astype(np.float32), [2_000] * 4)
    classes = bank.distinct.classes
    model: Recurrent[object] = MemoryGRU(torch.zeros(DIM), 0.5, hidden=64)
    assert isinstance(model, nn.Module)
    table = []
    for context in (100, 500, 1000):
        starts = bank.offsets[:BATCH] + 10
        every = Windows(starts, starts + 1, starts + context + 1)
        last = Windows(starts, starts + context, starts + context + 1)
        times = interleaved(
            {"every": lambda w=every: step(model, bank, classes, w), "last": lambda w=last: step(model, bank, classes, w)},
            rounds=5,
        )
        rates = {"every": every.targets / times["every"].median, "last": last.targets / times["last"].median}
        ratio = rates["every"] / rates["last"]
        table.append([str(context), f"{rates['last']:,.1f}", f"{rates['every']:,.0f}", f"{ratio:.0f}"])
    note = f"memory-augmented GRU, hidden 64, 2048 slots, {BATCH} passages of {DIM}-wide vectors, one thread; medians of 5"
    show("Targets per second", ["context", "last position only", "every position", "times"], table, note)


if __name__ == "__main__":
    main()
