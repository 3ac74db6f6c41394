"""Approximate search by faiss: a graph of the bank's rows that is walked, not read."""

# Axes: Q queries, N rows, D width, K neighbours, A rows that a mask knows, U distinct vectors, R numbers of these.

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from nextvec.bank import Bank, Distinct
from nextvec.errors import DataError, SettingsError
from nextvec.index import layout
from nextvec.index.exact import ExactIndex, Neighbours
from nextvec.index.inputs import Queries, as_array
from nextvec.index.layout import Manifest
from nextvec.kernels import scan
from nextvec.progress import Progress, silent

LINKS, BREADTH_OF_BUILDING, BREADTH = 16, 100, 128
SAMPLE, NEIGHBOURS, MEANT, DECAY = 200, 10, 8, 0.5
BLOCK = 1_000


class ApproximateIndex:
    """A hierarchical navigable small world graph (Malkov and Yashunin 2020) over a bank's distinct vectors, built by faiss.

    It finds candidates; their scores are the products that :class:`ExactIndex`
    decides by, so a row that both find has the same score to the bit. Rows that
    are added are read exactly until the index is built again: they are always
    found. Where filters leave the walk fewer than ``k`` rows, the walk is made
    broader, and in the end all rows are read: ``k`` rows come when ``k`` exist.

    There is no rank of the truth here: a rank counts all rows that score above
    it, and a walk sees few of them.

    The graph is built by one thread with faiss's own fixed seed: the same bank
    gives the same graph.

    Attributes:
        exact: the same rows, exactly.
        measured: recall among the best 10, and what it was measured with.
    """

    KIND = "approximate"

    def __init__(self, graph: Any, exact: ExactIndex, measured: dict[str, Any]) -> None:
        """Use :meth:`build` or :meth:`open`; ``graph`` is a ``faiss.IndexHNSWSQ``."""
        self._graph = graph
        self.exact = exact
        self.measured = measured

    @classmethod
    def build(cls, bank: Bank, threads: int | None = None, progress: Progress = silent) -> "ApproximateIndex":
        """The graph of a bank, and its recall.

        Recall is the share of the exact best 10 that are found, for queries as
        a model would ask: exponential means (decay 0.5) of the rows up to a
        drawn one, which predict the next row better than any row does.

        Raises:
            SettingsError: faiss is not installed.
        """
        faiss = _faiss()
        graph = faiss.IndexHNSWSQ(bank.dim, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BREADTH_OF_BUILDING
        with _one_thread(faiss):
            graph.train(bank.rows[:1].astype(np.float32))
            firsts = bank.distinct.firsts
            for start in range(0, len(firsts), BLOCK):
                graph.add(bank.rows[firsts[start : start + BLOCK]].astype(np.float32))
                progress("building the graph", min(start + BLOCK, len(firsts)), len(firsts))
        index = cls(graph, ExactIndex.build(bank, threads=threads), {})
        index.measured = index._recall(bank)
        return index

    @classmethod
    def open(cls, folder: str | Path, bank: Bank, threads: int | None = None) -> "ApproximateIndex":
        """The saved index of a bank; the graph is read into memory.

        Raises:
            DataError: no approximate index there, another format, made of another bank, or files that are not whole.
            SettingsError: faiss is not installed.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        if manifest.kind != cls.KIND:
            raise DataError(f"{folder} is an {manifest.kind} index, not an {cls.KIND} one")
        exact = ExactIndex.open(folder, bank, threads)
        try:
            graph = _faiss().read_index(str(folder / layout.GRAPH))
        except RuntimeError as error:
            line = str(error).splitlines()[0]
            raise DataError(f"{folder / layout.GRAPH} is damaged: {line}; build the index again") from None
        if (graph.ntotal, graph.d) != (len(bank.distinct), bank.dim):
            raise DataError(
                f"{folder / layout.GRAPH} holds {graph.ntotal:,} rows of width {graph.d}; the bank has {len(bank.distinct):,} "
                f"distinct vectors of width {bank.dim}; build the index again"
            )
        return cls(graph, exact, manifest.measured)

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def distinct(self) -> Distinct:
        """The bank's distinct vectors, which are the graph's."""
        return self.exact.distinct

    @property
    def dim(self) -> int:
        return self.exact.dim

    def search(
        self,
        queries_QD: Queries,
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
    ) -> Neighbours:
        """As :meth:`ExactIndex.search`, of the rows that the walk comes by.

        The walk's list is as long as it is broad, and what filters leave of it
        are the best that they leave of all; it is broadened until its better
        half holds ``k`` of them, and given up for exact search where that would
        take a sixteenth of all rows.
        """
        newer = self.exact.search(queries_QD, k, excluded, allowed, added_only=True)  # checks everything, too
        queries = np.ascontiguousarray(as_array(queries_QD, self.exact.dim))
        scores, rows = np.full_like(newer.scores, -np.inf), np.full_like(newer.rows, -1)
        may_be, barred = self._filters(excluded, allowed)
        share = 1.0 if may_be is None else max(float(may_be.mean()), 1.0 / self._graph.ntotal)
        decided, open_queries, breadth = newer.decided, np.arange(len(queries)), max(BREADTH, int(2 * k / share))
        while len(open_queries) and breadth * 16 <= self._graph.ntotal:
            parameters = _faiss().SearchParametersHNSW(efSearch=breadth)
            walked = self._graph.search(queries[open_queries], breadth, params=parameters)[1]
            left: list[int] = []
            for q, numbers in zip(open_queries.tolist(), walked, strict=True):
                may = _admitted(numbers, None if barred is None else barred[q], may_be)
                if may[: breadth // 2].sum() < k:
                    left.append(q)
                    continue
                nearest = self.distinct.firsts[numbers[may][: 2 * k]]  # in the walk's own order, which float16 rounds
                found = self.exact.scores(nearest, queries_QD[q])
                decided += len(found)
                best = scan.best_of(found[None], nearest[None], k)
                scores[q], rows[q] = best[0][0], best[1][0]
            open_queries, breadth = np.array(left, np.int64), 2 * breadth
        rows = self.exact.named(rows, allowed)
        if len(open_queries):
            chosen = None if excluded is None else [excluded[q] for q in open_queries.tolist()]
            exactly = self.exact.search(queries_QD[open_queries], k, chosen, allowed)
            scores[open_queries], rows[open_queries] = exactly.scores, exactly.rows
            decided += exactly.decided
            newer.scores[open_queries], newer.rows[open_queries] = -np.inf, -1  # exact search has seen them
        if self.exact.added:
            both = (np.concatenate([scores, newer.scores], 1), np.concatenate([rows, newer.rows], 1))
            scores, rows = scan.best_of(*both, k)
        return Neighbours(rows, scores, decided)

    def add(self, vectors: np.ndarray) -> Int64[np.ndarray, " B"]:
        """As :meth:`ExactIndex.add`."""
        return self.exact.add(vectors)

    def save(self, folder: str | Path) -> None:
        """Write the graph, its recall and the rows that were added.

        Raises:
            DataError: the folder exists.
        """
        manifest, write = self.exact.contents()

        def write_all(path: Path) -> None:
            write(path)
            _faiss().write_index(self._graph, str(path / layout.GRAPH))

        layout.publish(Path(folder), replace(manifest, kind=self.KIND, measured=self.measured), write_all)

    def _filters(
        self, excluded: Sequence[Int64[np.ndarray, "..."]] | None, allowed: Bool[np.ndarray, " A"] | None
    ) -> tuple[Bool[np.ndarray, " U"] | None, list[Int64[np.ndarray, "..."]] | None]:
        """The filters for the graph's vectors: which an allowed row holds, and for each query which an excluded row holds."""
        numbers, may_be = self.distinct.numbers, None
        if allowed is not None:
            may_be = np.zeros(len(self.distinct), bool)
            may_be[numbers[np.flatnonzero(allowed[: len(numbers)])]] = True
        if excluded is None:
            return may_be, None
        return may_be, [numbers[names[names < len(numbers)]] for names in map(np.asarray, excluded)]

    def _recall(self, bank: Bank) -> dict[str, Any]:
        queries = torch.from_numpy(predicted_like(bank, SAMPLE))
        k = min(NEIGHBOURS, len(self.distinct))
        found, true = self.search(queries, k).rows, self.exact.search(queries, k).rows
        shared = [len(np.intersect1d(a, b)) / k for a, b in zip(found, true, strict=True)]
        return {
            f"recall@{k}": float(np.mean(shared)),
            "queries": len(queries),
            "of": f"exponential means of up to {MEANT} rows, decay {DECAY}",
        }


def predicted_like(bank: Bank, count: int, seed: int = 0) -> Float32[np.ndarray, "Q D"]:
    """Queries as a model would ask: exponential means of up to 8 rows of a document, up to a drawn one; unit length."""
    ends = np.random.default_rng(seed).integers(0, len(bank), count)
    starts = np.maximum(bank.offsets[bank.document_of(ends)], ends - MEANT + 1)
    read = [bank.rows[start : end + 1].astype(np.float32) for start, end in zip(starts, ends, strict=True)]
    means = np.stack([DECAY ** np.arange(len(rows), dtype=np.float32)[::-1] @ rows for rows in read])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def _admitted(
    numbers: Int64[np.ndarray, " R"], excluded: Int64[np.ndarray, "..."] | None, may_be: Bool[np.ndarray, " U"] | None
) -> Bool[np.ndarray, " R"]:
    may = numbers >= 0  # the walk may end before its list is full
    if may_be is not None:
        may &= may_be[np.maximum(numbers, 0)]
    if excluded is not None:
        may &= ~np.isin(numbers, excluded)
    return may


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise SettingsError('approximate search needs faiss: pip install "nextvec[ann]"') from None
    return faiss


@contextmanager
def _one_thread(faiss: Any) -> Generator[None]:
    """Several threads would link rows in the order in which they happen to come."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
