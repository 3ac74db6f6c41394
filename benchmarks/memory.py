"""What an update of training costs: time, and the most memory the process ever held.

    python benchmarks/memory.py

Each way of computing the same update of the default model at context 1000 runs
in a process of its own, so that the peak is its own. The first is the baseline
of all the others; the memory before the first update is taken off.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torch import nn

from nextvec.bank import Bank
from nextvec.recipes import ours
from nextvec.runs import TrainSettings
from nextvec.runs.families import Basis
from nextvec.runs.loading import build
from nextvec.training.gradient import Gradient
from nextvec.windows import training_windows
from table import show

DIM, PASSAGES, CONTEXT, ROUNDS = 384, 8, 1000, 3
WAYS: dict[str, dict[str, object]] = {
    "one batch of 8": {},
    "8 x 1, accumulated": {"batch": 1, "cached": False},
    "8 x 1, gradient caching": {"batch": 1},
    "checkpoints every 100": {"segment": 100},
    "checkpoints and caching": {"segment": 100, "batch": 1},
    "bfloat16": {"precision": "bfloat16"},
}


def settings_of(way: str) -> TrainSettings:
    return ours(45_000, CONTEXT).replaced(**{"batch": PASSAGES, **WAYS[way]})


def measure(way: str) -> dict[str, float]:
    """In a process of its own: megabytes above what was there before, seconds of an update, negatives of a target."""
    torch.set_num_threads(1)
    settings = settings_of(way)
    rng = np.random.default_rng(0)
    bank = Bank.from_numpy(rng.standard_normal((16_000, DIM)).astype(np.float32), [2_000] * 8)
    model = build(settings, Basis(torch.zeros(DIM), 0.5)).train()
    rows = np.arange(len(bank))
    gradient = Gradient(model, nn.Parameter(torch.tensor(-2.0)), bank, rows, settings)
    windows = training_windows(bank, range(8), CONTEXT, rng)
    chosen = np.flatnonzero(windows.stops - windows.starts == CONTEXT + 1)[:PASSAGES]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, done = [], None
    for update in range(ROUNDS):
        began = time.process_time()
        done = gradient.compute(update, windows, chosen, np.empty(0, np.int64), rows, measure=False)
        seconds.append(time.process_time() - began)
    assert done is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"megabytes": peak / 1024, "seconds": statistics.median(seconds), "negatives": done.negatives}


def main() -> None:
    found = {}
    for way in WAYS:
        done = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout)
    first = found["one batch of 8"]
    table = [
        [
            way,
            f"{f['megabytes']:,.0f}",
            f"{f['megabytes'] / first['megabytes']:.2f}",
            f"{f['seconds']:.2f}",
            f"{f['seconds'] / first['seconds']:.2f}",
            f"{f['negatives']:,.0f}",
        ]
        for way, f in found.items()
    ]
    what = f"{PASSAGES} passages of {CONTEXT} vectors, every position a target, 1,024 sampled negatives"
    note = f"{what}; processor seconds, median of {ROUNDS}"
    show("One update", ["way", "peak MB", "of the first", "CPU s", "of the first", "negatives a target"], table, note)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
