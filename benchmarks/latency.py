"""What an answer costs, by context: of an 11.3 million parameter model beside the machine's limits, and of the default model.

    OMP_NUM_THREADS=1 python benchmarks/latency.py [--bank books.bank] [--only default]

One vector is read and the nearest 10 of 100,000 rows are found exactly, in int8 codes, on one thread. The vectors that a
session has read are no answers. All contexts and models of a table take turns.

- A GRU of 2 layers of 1040 units, 384 wide, untrained: its answers mean nothing, their cost does.
- The default model, ``pooled`` with the weights of the package in the space of the rows, which asks with 12 queries. Beside it
  the same model with one query, and a search of its queries by faiss (``IndexFlatIP``), where faiss is installed.

Rows are synthetic. With ``--bank``, they are the bank's, and neighbours of these until there are enough.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.candidate_map import CandidateMap, index_of
from nextvec.index import ExactIndex, Index
from nextvec.inference import Engine
from nextvec.inference.latency import (
    NEIGHBOURS,
    PER_ROUND,
    AnswerLatency,
    answer_ms,
    answers,
    candidates_of,
    limits,
    session_after,
)
from nextvec.kernels.library import level
from nextvec.kernels.weights import FORMATS
from nextvec.models import GRU, Pooled, Recurrent
from nextvec.models.packed import pack, weight_bytes
from nextvec.models.space import InSpace, Space
from nextvec.runs.shipped import POWER, shipped_model
from table import show

try:
    import faiss
except ImportError:
    faiss = None

DIM, ROWS, CONTEXTS, ROUNDS = 384, 100_000, (10, 100, 1_000, 10_000), 60
BESIDE = "faiss IndexFlatIP, one query"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--only", choices=("gru", "default"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given: Path | None = arguments.bank
    bank = documents(ROWS, np.random.default_rng(0)) if given is None else candidates_of(Bank.open(given), ROWS)
    if arguments.only != "default":
        report_gru(bank, ExactIndex.build(bank, "int8"))
    if arguments.only != "gru":
        report_default(bank)


def default_models(bank: Bank) -> tuple[Recurrent[Any], Recurrent[Any]]:
    """The default model in the space of a bank's rows, and the same with one query."""
    found = moments(bank)
    model = shipped_model(Space.fitted(found.mean, found.covariance, POWER, found.rows))
    return model, InSpace(model.space, Pooled(bank.dim, 0.5, pooled=0)).eval()


def report_default(bank: Bank) -> None:
    pooled, single = default_models(bank)
    index = index_of(bank, CandidateMap.of(pooled))
    engines = {
        f"{name}, {form}": Engine(pack(model, form), bank, index, weights=form)
        for form in ("float32", "int8")
        for name, model in (("default", pooled), ("one query", single))
    }
    times = measured(engines, index, bank)
    table = [
        [name, context, *(f"{t:.2f}" for t in np.percentile(taken, [50, 95], axis=0).T.ravel())]
        for (name, context), taken in times.items()
    ]
    columns = ["model, weights", "context", "step P50", "P95", "search P50", "P95", "both P50", "P95"]
    what = (
        f"ms, one thread, {ROWS:,} rows of {DIM}, nearest {NEIGHBOURS}, exact (int8 codes), {ROUNDS * PER_ROUND} answers each"
    )
    absent = "" if faiss else "; faiss is not installed"
    show("One answer of the default model", columns, table, f"{what}, {level()}{absent}")
    show("Ratios of this run", ["what", "P50", "P95"], [*ratios(times)], "step and search together")


def measured(engines: dict[str, Engine], index: Index, bank: Bank) -> dict[tuple[str, str], np.ndarray]:
    """Milliseconds [n, 3] of the step, the search and both, by model and context, all in turns."""
    contexts = CONTEXTS[1:]
    read = bank.rows[: 2 * contexts[-1]].astype(np.float32)
    sessions = {
        (name, f"{context:,}"): session_after(engine, read, context - 1)
        for name, engine in engines.items()
        for context in contexts
    }
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {kind: [] for kind in sessions}
    coming, searching = cycle(read[contexts[-1] :]), flat_search(index)
    for n in range(-1, ROUNDS):
        for kind, session in sessions.items():
            found = [answer_ms(session, next(coming), next(coming)) for _ in range(PER_ROUND)]
            taken[kind] += found if n >= 0 else []
        if searching is not None:
            queries = index.vectors(np.arange(PER_ROUND) + n + 1)
            found = [(0.0, searching(query[None])) for query in queries]
            taken.setdefault((BESIDE, ""), []).extend(found if n >= 0 else [])
    return {kind: np.column_stack([t := np.array(of), t.sum(1)]) for kind, of in taken.items()}


def flat_search(index: Index) -> Callable[[np.ndarray], float] | None:
    """Milliseconds of a search by faiss among the rows of an index; None where faiss is not installed."""
    if faiss is None:
        return None
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(index.first_rows(slice(0, len(index.distinct))))

    def searching(query: np.ndarray) -> float:
        began = time.perf_counter_ns()
        flat.search(query, NEIGHBOURS)
        return (time.perf_counter_ns() - began) / 1e6

    return searching


def ratios(times: dict[tuple[str, str], np.ndarray]) -> Iterator[list[str]]:
    """P50 and P95 of the default model relative to one query, and of the longest context relative to the shortest."""
    both = {kind: np.percentile(of[:, 2], [50, 95]) for kind, of in times.items()}
    shortest, *_, longest = (f"{context:,}" for context in CONTEXTS[1:])
    for name, context in both:
        if name.startswith("default"):
            other = both[name.replace("default", "one query"), context]
            yield [f"{name}, context {context}, over one query", *(f"{r:.2f}" for r in both[name, context] / other)]
    for name in dict.fromkeys(name for name, context in both if context):
        of = both[name, longest] / both[name, shortest]
        yield [f"{name}: context {longest} over {shortest}", *(f"{r:.2f}" for r in of)]


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
