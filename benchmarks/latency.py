"""What an answer of an 11.3 million parameter model costs, by context, beside the machine's limits.

    python benchmarks/latency.py

A GRU of 2 layers of 1040 units, 384 wide, untrained: its answers mean nothing,
their cost does. One vector is read and the nearest 10 of 100,000 rows are
found exactly, on one thread. All contexts and formats take turns.
"""

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.index import ExactIndex
from nextvec.inference import Engine
from nextvec.inference.latency import AnswerLatency, answers, limits
from nextvec.kernels.library import level
from nextvec.kernels.weights import FORMATS
from nextvec.models import GRU
from nextvec.models.packed import pack, weight_bytes
from table import show

DIM, ROWS, CONTEXTS, ROUNDS = 384, 100_000, (10, 100, 1_000, 10_000), 60
BYTES = {"float32": 4, "float16": 2, "int8": 1}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    bank = _bank(rng)
    model = GRU(torch.zeros(DIM), 0.5, hidden=1040, layers=2).eval()
    torch.nn.init.normal_(model.residual.weight, std=0.01)
    index = ExactIndex.build(bank, "int8")
    read = bank.rows[:10_000]
    found: dict[str, list[AnswerLatency]] = {}
    for form in FORMATS:
        again = model if form == "int8" else None
        found[form] = answers(Engine(pack(model, form), bank, index), CONTEXTS, read, again, ROUNDS)
    table = [_row(form, answer) for form in FORMATS for answer in found[form]]
    columns = ["weights", "context", "step P50", "P95", "search P50", "P95", "both P50", "P95", "P99", "state kB"]
    parameters = sum(p.numel() for p in model.parameters())
    what = f"ms, one thread, {ROWS:,} rows of {DIM}, nearest 10, exact (int8 codes), {ROUNDS * 10} answers each, {level()}"
    show(f"One answer of a GRU of {parameters:,} parameters", columns, table, what)

    rows = []
    for form in FORMATS:
        size = weight_bytes(pack(model, form))
        limit = limits(size, ROWS * DIM)
        step = found[form][1].step.p50
        memory = size / limit.memory_gb_s / 1e6
        plain = found["float32"][1].step.p50
        rows.append(
            [
                form,
                f"{size / 1e6:.1f}",
                f"{step:.2f}",
                f"{memory:.2f}",
                f"{step / memory:.2f}",
                f"{limit.weights_ms:.2f}",
                f"{plain / step:.2f}",
            ]
        )
    columns = ["weights", "MB", "step ms", "read from memory ms", "times", "read again ms", "of float32's speed"]
    show("A step beside reading its weights once", columns, rows, "read again: a buffer as large, which may stay in the cache")

    best = found["int8"]
    flat = best[3].both.p95 / best[1].both.p95
    rows = [["P95 at context 10,000 over that at 100", f"{flat:.2f}"]]
    for answer in best:
        if answer.reread is not None:
            times = answer.reread.p50 / answer.both.p50
            rows.append(
                [f"reading {answer.context:,} vectors again: {answer.reread.p50:,.1f} ms", f"{times:,.1f} times the answer"]
            )
    limit = limits(weight_bytes(pack(model, "int8")), ROWS * DIM)
    rows.append(["search over reading its index once", f"{best[1].search.p50 / limit.index_ms:.2f}"])
    show(
        "Ratios of this run, int8 weights", ["what", "ratio"], rows, "reading again: the plain model over the window, no search"
    )


def _row(form: str, answer: AnswerLatency) -> list[str]:
    step, search, both = answer.step, answer.search, answer.both
    times = (step.p50, step.p95, search.p50, search.p95, both.p50, both.p95, both.p99)
    return [form, f"{answer.context:,}", *(f"{t:.2f}" for t in times), f"{answer.state_bytes / 1e3:,.0f}"]


def _bank(rng: np.random.Generator) -> Bank:
    """Rows that lie as text's do: a common direction, topics, and noise."""
    topics = rng.standard_normal((200, DIM)).astype(np.float32)
    rows = 6 * topics[0] + 4 * topics[rng.integers(0, 200, ROWS)] + 6 * rng.standard_normal((ROWS, DIM), dtype=np.float32)
    return Bank.from_numpy(rows, [ROWS // 100] * 100)


if __name__ == "__main__":
    main()
