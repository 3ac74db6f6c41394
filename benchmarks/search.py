"""Exact and approximate search: ours, faiss and usearch, beside what the machine can do at most.

    OMP_NUM_THREADS=1 python benchmarks/search.py [--rows 100000,1000000] [--bank books.bank] [--threads 1]

Rows are drawn around centres of low rank with noise, unit length, stored as float16; queries are rows with noise
(cosine about 0.7). With ``--bank``, the bank's rows, drawn again with a little noise until there are enough. The limit of
one query is reading the stored bytes (the C library's `memchr`, which finds nothing); that of many is the bare product of
the same shape. All take turns. Graphs of more rows than ``--graph`` are not built: a million take minutes.

One more table asks with 12 queries for each prediction, those of the default model with the weights of the package, in the
space of the rows, after 32 consecutive rows. Without ``--bank`` its rows are drawn as documents that have a topic each.
"Unlike" are 12 queries of the same length that have nothing in common. faiss has no pooled score. What it can do is to find
the 100 nearest rows of each query (with BLAS), which are then scored; the table states how many of the best 10 are among
them. The other peer scores every row.
"""

import argparse
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from usearch import index as usearch  # pyright: ignore[reportMissingImports]

from latency import default_models, documents
from nextvec.bank import Bank
from nextvec.candidate_map import CandidateMap
from nextvec.index import ApproximateIndex, ExactIndex, Index, search_pooled
from nextvec.kernels.library import level
from nextvec.kernels.memory import aligned
from nextvec.kernels.scan_rows import FORMATS
from nextvec.vectors import unit_rows
from table import show

DIM, K, MANY, ASKED = 384, 10, 256, 40
CONTEXT, LISTED = 32, 100  # rows that the model reads; rows that faiss finds for each query
Call = Callable[[np.ndarray], np.ndarray | None]  # queries [Q, D] → rows [Q, K]; None for a limit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="100000,1000000")
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--graph", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="of many queries; one query is asked 40 times")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    for count in map(int, arguments.rows.split(",")):
        rng = np.random.default_rng(0)
        rows = synthetic(count, rng) if arguments.bank is None else drawn(Bank.open(arguments.bank), count, rng)
        report_products(rows, arguments.threads, count <= arguments.graph, arguments.rounds, rng)
        bank = documents(count, rng) if arguments.bank is None else Bank.from_numpy(rows, [count])
        report_pooled(bank, arguments.threads, rng)


def report_products(rows: np.ndarray, threads: int, graphs: bool, rounds: int, rng: np.random.Generator) -> None:
    asked = rows[rng.integers(0, len(rows), MANY)].astype(np.float32) + rng.standard_normal((MANY, DIM), np.float32) / DIM**0.5
    queries = aligned(asked.shape, asked.dtype)
    queries[:] = unit_rows(asked)
    calls = contenders(rows, threads, graphs)
    truth = calls["ours, float32"](queries)
    assert truth is not None
    single = [queries[i : i + 1] for i in range(ASKED)]
    report(f"{len(rows):,} rows, one query", {**limits_of_one(rows), **calls}, single, truth)
    report(f"{len(rows):,} rows, {MANY} queries", {**limit_of_many(rows), **calls}, [queries] * rounds, truth)


def synthetic(count: int, rng: np.random.Generator) -> np.ndarray:
    centres, spread = rng.standard_normal((500, 48), np.float32), rng.standard_normal((48, DIM), np.float32) / 48**0.5
    rows = aligned((count, DIM), np.dtype(np.float16))
    for start in range(0, count, 65_536):
        n = min(65_536, count - start)
        block = (centres[rng.integers(0, 500, n)] + rng.standard_normal((n, 48), np.float32)) @ spread
        block += 0.5 * rng.standard_normal(block.shape, np.float32)
        rows[start : start + n] = unit_rows(block)
    return rows


def drawn(bank: Bank, count: int, rng: np.random.Generator) -> np.ndarray:
    rows = aligned((count, DIM), np.dtype(np.float16))
    for start in range(0, count, len(bank)):
        block = bank.rows[: count - start].astype(np.float32)
        block += 0.01 * (start > 0) * rng.standard_normal(block.shape, np.float32)
        rows[start : start + len(block)] = unit_rows(block)
    return rows


def contenders(rows: np.ndarray, threads: int, graphs: bool) -> dict[str, Call]:
    floats = rows.astype(np.float32)
    flat, half = (
        faiss.IndexFlatIP(DIM),
        faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT),
    )
    flat.add(floats)
    half.train(floats[:1])
    half.add(floats)
    default = faiss.cvar.distance_compute_blas_threshold
    calls: dict[str, Call] = {f"ours, {form}": ours(ExactIndex(rows, form, threads)) for form in FORMATS}
    calls["faiss flat"] = of_faiss(flat, default)
    calls["faiss flat, BLAS from 20 queries"] = of_faiss(flat, 20)
    calls["faiss float16"] = of_faiss(half, default)
    calls["usearch exact, float16"] = lambda queries: usearch.search(
        rows, queries.astype(np.float16), K, "ip", exact=True, threads=threads
    ).keys.reshape(-1, K)
    if graphs:
        bank = Bank.from_numpy(rows, [len(rows)])
        began = time.perf_counter()
        calls["ours, approximate (faiss HNSW)"] = ours(ApproximateIndex.build(bank, threads=threads))
        built = time.perf_counter()
        graph = usearch.Index(ndim=DIM, metric="ip", dtype="f16", connectivity=16, expansion_add=100, expansion_search=128)
        graph.add(np.arange(len(rows)), floats, threads=1)
        seconds = (built - began, time.perf_counter() - built)
        print(f"graphs of {len(rows):,} rows, one thread: faiss {seconds[0]:.0f} s, usearch {seconds[1]:.0f} s")
        calls["usearch HNSW, float16"] = lambda queries: graph.search(queries, K, threads=threads).keys.reshape(-1, K)
    return calls


def ours(index: Index) -> Call:
    return lambda queries: index.search(queries, K).rows


def of_faiss(index: faiss.Index, threshold: int, k: int = K) -> Callable[[np.ndarray], np.ndarray]:
    """A search by faiss, which multiplies by BLAS from ``threshold`` queries on."""

    def call(queries: np.ndarray) -> np.ndarray:
        faiss.cvar.distance_compute_blas_threshold = threshold
        return index.search(queries, k)[1]

    return call


def limits_of_one(rows: np.ndarray) -> dict[str, Call]:
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    full = np.ones(rows.size * 4, np.uint8)

    def reading(size: int) -> Call:
        def call(_: np.ndarray) -> None:
            memchr(full.ctypes.data, 0, rows.size * size)

        return call

    return {f"limit: reading {form}": reading(size) for form, size in zip(FORMATS, (4, 2, 1), strict=True)}


def limit_of_many(rows: np.ndarray) -> dict[str, Call]:
    """The bare product, its results thrown away block by block."""
    block, out = torch.from_numpy(rows[:8192].astype(np.float32)), torch.empty(8192, MANY)

    def call(queries: np.ndarray) -> None:
        columns = torch.from_numpy(queries).T
        for start in range(0, len(rows), 8192):
            n = min(8192, len(rows) - start)
            torch.mm(block[:n], columns, out=out[:n])

    return {"limit: bare product": call}


@torch.inference_mode()
def report_pooled(bank: Bank, threads: int, rng: np.random.Generator) -> None:
    model, _ = default_models(bank)
    mapped = np.concatenate([CandidateMap(model)(block) for block in np.array_split(bank.rows[:], -(-len(bank) // 65_536))])
    read = np.stack([bank.rows[begin : begin + CONTEXT] for begin in rng.integers(0, len(bank) - CONTEXT, ASKED)])
    flat = faiss.IndexFlatIP(DIM)
    flat.add(mapped)
    floats = torch.from_numpy(mapped)
    together = model.queries(model(torch.from_numpy(read.astype(np.float32)))[:, -1])
    asked = [together._replace(vectors=v[None], log_weights=w[None]) for v, w in zip(*together[:2], strict=True)]
    length = float(together.vectors.norm(dim=-1).mean())
    unlike = [
        q._replace(vectors=length * floats[torch.from_numpy(rng.integers(0, len(bank), q.vectors.shape[1]))][None])
        for q in asked
    ]

    one, many = (of_faiss(flat, threshold, k) for threshold, k in ((20, K), (1, LISTED)))

    def rescored(n: int) -> np.ndarray:
        names = np.unique(many(asked[n].vectors[0].numpy()))
        return names[asked[n].scores(floats[names])[0].topk(K).indices.numpy()]

    count = together.vectors.shape[1]
    calls: dict[str, Callable[[int], np.ndarray]] = {
        f"all scores by torch, {count} queries": lambda n: asked[n].scores(floats).topk(K).indices[0].numpy(),
        "faiss flat, one query": lambda n: one(asked[n].vectors[0, :1].numpy())[0],
        f"faiss flat, {LISTED} rows for each of {count} queries, scored": rescored,
    }
    for form in FORMATS:
        index = ExactIndex(mapped, form, threads)
        calls |= {
            f"{form}, one query": lambda n, index=index: index.search(asked[n].vectors[0, :1].numpy(), K).rows[0],
            f"{form}, {count} queries": lambda n, index=index: search_pooled(index, asked[n], K).rows[0],
            f"{form}, {count} queries that are unlike": lambda n, index=index: search_pooled(index, unlike[n], K).rows[0],
        }
    taken: dict[str, list[float]] = {what: [] for what in calls}
    found: dict[str, list[np.ndarray]] = {what: [] for what in calls}
    for call in calls.values():
        call(0)
    for n in range(ASKED):
        for what, call in calls.items():
            began = time.process_time()
            found[what].append(call(n))
            taken[what].append((time.process_time() - began) * 1e3)
    truth, lines = found[f"float32, {count} queries"], []
    for what, times in taken.items():
        p50, p95 = np.percentile(times, [50, 95])
        form = what.split(",")[0]
        of_one = f"{p50 / np.median(taken[f'{form}, one query']):.2f}" if f"{form}, one query" in taken else ""
        same = "one query" in what or "unlike" in what
        recall = "" if same else f"{np.mean([np.isin(a, b).mean() for a, b in zip(found[what], truth, strict=True)]):.3f}"
        lines.append([what, f"{p50:.2f}", f"{p95:.2f}", of_one, recall])
    note = f"{DIM}-wide; milliseconds of CPU time a prediction, {ASKED} predictions in turn; {torch.get_num_threads()} threads"
    show(f"{len(bank):,} mapped rows, one prediction", ["", "ms P50", "P95", "of one query", f"recall@{K}"], lines, note)


def report(title: str, calls: dict[str, Call], asked: list[np.ndarray], truth: np.ndarray) -> None:
    taken: dict[str, list[float]] = {what: [] for what in calls}
    found: dict[str, list[np.ndarray]] = {what: [] for what in calls}
    for call in calls.values():
        call(asked[0])
    for queries in asked:
        for what, call in calls.items():
            began = time.perf_counter()
            rows = call(queries)
            taken[what].append((time.perf_counter() - began) * 1e3 / len(queries))
            if rows is not None:
                found[what].append(rows)
    single = len(asked[0]) == 1
    lines = []
    for what, times in taken.items():
        p50, p95 = np.percentile(times, [50, 95])
        limit = (f"limit: reading {what[6:]}" if what[6:] in FORMATS else "") if single else "limit: bare product"
        of_limit = f"{p50 / np.median(taken[limit]):.2f}" if limit in taken and limit != what else ""
        whole = np.concatenate(found[what]) if found[what] else None
        wanted = truth[: len(asked)] if single else np.concatenate([truth] * len(asked))
        recall = "" if whole is None else f"{np.mean([np.isin(a, b).mean() for a, b in zip(whole, wanted, strict=True)]):.3f}"
        lines.append([what, f"{p50:.3f}", f"{p95:.3f}", of_limit, recall])
    note = (
        f"{DIM}-wide; milliseconds a query, {len(asked)} rounds in turn; {torch.get_num_threads()} threads, kernels {level()}"
    )
    show(title, ["", "ms P50", "P95", "of the limit", f"recall@{K}"], lines, note)


if __name__ == "__main__":
    main()
