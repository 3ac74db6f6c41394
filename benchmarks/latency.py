"""What an answer costs, by context: of an 11.3 million parameter model beside the machine's limits, and of the default model.

    python benchmarks/latency.py [--bank books.bank]

One vector is read and the nearest 10 of 100,000 rows are found exactly, on one thread, in int8 codes. All contexts and models
of a table take turns.

- A GRU of 2 layers of 1040 units, 384 wide, untrained: its answers mean nothing, their cost does.
- The default model, ``pooled`` with the weights of the package in a fitted space: 12 queries. Beside it the memory GRU of the
  recipe ``memory``, untrained, which has one query.

Rows are synthetic. With ``--bank``, they are the bank's, and neighbours of these until there are enough.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.index import ExactIndex, Index
from nextvec.inference import Engine
from nextvec.inference.latency import AnswerLatency, answers, candidates_of, in_turn, limits, session_after
from nextvec.kernels.library import level
from nextvec.kernels.weights import FORMATS
from nextvec.models import GRU, MemoryGRU, Pooled
from nextvec.models.packed import pack, weight_bytes
from nextvec.models.space import InSpace, Space
from nextvec.runs.shipped import shipped_weights
from table import show

DIM, ROWS, CONTEXTS, ROUNDS = 384, 100_000, (10, 100, 1_000, 10_000), 60
POWER = 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bank", type=Path)
    given: Path | None = parser.parse_args().bank
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bank = documents(ROWS, np.random.default_rng(0)) if given is None else candidates_of(Bank.open(given), ROWS)
    index = ExactIndex.build(bank, "int8")
    report_gru(bank, index)
    report_default(bank, index)


def default_model(bank: Bank) -> InSpace:
    """The model ``pooled`` with the weights of the package, in the space of a bank's rows."""
    found = moments(bank, np.arange(bank.num_documents))
    model = InSpace(Space.fitted(found.mean, found.covariance, POWER), Pooled(bank.dim, 0.5))
    model.take_over({name: tensor for name, tensor in shipped_weights().items() if name != "log_temperature"})
    return model.eval()


def report_default(bank: Bank, index: Index) -> None:
    engines = {
        "pooled": Engine(pack(default_model(bank), "int8"), bank),
        "memory GRU": Engine(pack(MemoryGRU(torch.zeros(DIM), 0.5).eval(), "int8"), bank, index),
    }
    read = bank.rows[:10_000].astype(np.float32)
    kinds = [(name, context) for name in engines for context in CONTEXTS]
    taken = in_turn([session_after(engines[name], read, context) for name, context in kinds], read, ROUNDS)
    times = {kind: np.column_stack([t, t.sum(1)]) for kind, t in zip(kinds, taken, strict=True)}
    table = [
        [name, f"{context:,}", *(f"{t:.2f}" for t in np.percentile(times[name, context], [50, 95], axis=0).T.ravel())]
        for name, context in kinds
    ]
    columns = ["model", "context", "step P50", "P95", "search P50", "P95", "both P50", "P95"]
    what = f"ms, one thread, {ROWS:,} rows of {DIM}, nearest 10, exact (int8 codes), {ROUNDS * 10} answers each, {level()}"
    show("One answer of the default model, and of a model with one query", columns, table, what)
    pooled, single = engines
    rows = []
    for context in CONTEXTS:
        answer, other = (np.median(times[name, context], axis=0) for name in (pooled, single))
        ratios = (answer[2] / other[2], answer[2] / other[1])
        rows.append(
            [f"context {context:,}: over the answer of one query; over its search alone", "; ".join(f"{r:.2f}" for r in ratios)]
        )
    p95 = [np.percentile(times[pooled, context][:, 2], 95) for context in (10_000, 100)]
    rows.append(["P95 at context 10,000 over that at 100", f"{p95[0] / p95[1]:.2f}"])
    show("Ratios of this run, pooled", ["what", "ratio"], rows, "medians, step and search together")


def report_gru(bank: Bank, index: Index) -> None:
    model = GRU(torch.zeros(DIM), 0.5, hidden=1040, layers=2).eval()
    torch.nn.init.normal_(model.residual.weight, std=0.01)
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


def documents(count: int, rng: np.random.Generator) -> Bank:
    """Rows that lie as text's do: a common direction, a topic for each document of 100 rows, and noise."""
    topics = rng.standard_normal((200, DIM)).astype(np.float32)
    of_rows = topics[rng.integers(0, 200, -(-count // 100))].repeat(100, axis=0)[:count]
    rows = 6 * topics[0] + 4 * of_rows + 6 * rng.standard_normal((count, DIM), dtype=np.float32)
    return Bank.from_numpy(rows, [100] * (count // 100) + [count % 100] * (count % 100 > 0))


if __name__ == "__main__":
    main()
