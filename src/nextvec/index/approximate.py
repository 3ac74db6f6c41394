"""Approximate search with faiss: a search walks a graph of the bank's rows and reads few of them."""

# Axes: Q queries, N rows, D width, E width of mapped rows, K neighbours, A rows that a mask knows,
# U distinct vectors, R numbers of these.

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nextvec.bank import Bank, Distinct
from nextvec.errors import DataError, SettingsError
from nextvec.index import layout
from nextvec.index.exact import ExactIndex
from nextvec.index.inputs import as_array, check_k, checked_rows
from nextvec.index.layout import IndexManifest
from nextvec.index.protocol import Neighbours, Queries, RowMap
from nextvec.kernels.scan_best import best_of
from nextvec.kernels.scan_pooled import PooledQuery
from nextvec.kernels.scan_rows import RowFormat
from nextvec.progress import Progress, silent

LINKS, BREADTH_OF_BUILDING, BREADTH = 16, 100, 128
SAMPLE, NEIGHBOURS, MEANT, DECAY = 200, 10, 8, 0.5
BLOCK = 1_000
LISTED, GROWTH = 16, 4  # rows that are listed for a pooled search at first, times k; factor from try to try


class ApproximateIndex:
    """A hierarchical navigable small world graph (Malkov and Yashunin 2020) over a bank's distinct vectors, built by faiss.

    The graph finds candidates. Their scores are the deciding products of
    :class:`ExactIndex`. Added rows are searched exactly until the index is
    built again, so they are always found. Where filters leave the walk fewer
    than ``k`` rows, the walk becomes broader, and in the end all rows are read:
    a search returns ``k`` rows whenever ``k`` exist.

    The graph is built by one thread with the fixed seed of faiss: the same bank
    gives the same graph.

    Attributes:
        reference: the exact index of the same rows.
        measured: recall among the best 10, and what it was measured with.
    """

    KIND: Literal["approximate"] = "approximate"
    exact, filters, grows = False, True, True
    form: RowFormat = "float16"

    def __init__(self, graph: Any, reference: ExactIndex, measured: dict[str, Any]) -> None:
        """Use :meth:`build` or :meth:`open`; ``graph`` is a ``faiss.IndexHNSWSQ``."""
        self._graph = graph
        self.reference = reference
        self.measured = measured

    @classmethod
    def build(
        cls,
        bank: Bank,
        form: RowFormat | None = None,
        threads: int | None = None,
        progress: Progress = silent,
        mapping: RowMap | None = None,
    ) -> "ApproximateIndex":
        """The graph of a bank, and its recall.

        Recall is the share of the exact best 10 that are found. The queries
        resemble predictions: exponential means (decay 0.5) of the rows up to a
        random row, mapped as the rows are.

        Args:
            mapping: of the rows; the graph is of the mapped rows.

        Raises:
            SettingsError: a format other than float16, or faiss is not installed.
            DataError: a mapped row is not finite.
        """
        if form not in (None, cls.form):
            raise SettingsError(f"format {form}: the graph of an approximate index reads {cls.form}")
        faiss = _faiss()
        reference = ExactIndex.build(bank, threads=threads, progress=progress, mapping=mapping)
        graph = faiss.IndexHNSWSQ(reference.dim, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BREADTH_OF_BUILDING
        with _one_thread(faiss):
            graph.train(reference.first_rows(slice(1)))
            whole = len(bank.distinct)
            for start in range(0, whole, BLOCK):
                graph.add(reference.first_rows(slice(start, start + BLOCK)))
                progress("building the graph", min(start + BLOCK, whole), whole)
        index = cls(graph, reference, {})
        queries = predicted_like(bank, SAMPLE)
        index.measured = index._recall(queries if mapping is None else mapping(queries))
        return index

    @classmethod
    def open(
        cls, folder: str | Path, bank: Bank, threads: int | None = None, mapping: RowMap | None = None
    ) -> "ApproximateIndex":
        """The saved index of a bank; the graph is read into memory.

        Args:
            mapping: the map of rows that the index was built with.

        Raises:
            DataError: no approximate index there, another format, an index of another bank or map, or damaged files.
            SettingsError: faiss is not installed.
        """
        folder = Path(folder)
        manifest = IndexManifest.read(folder)
        if manifest.kind != cls.KIND:
            raise DataError(f"{folder} is an {manifest.kind} index, not an {cls.KIND} one")
        reference = ExactIndex.open(folder, bank, threads, mapping)
        try:
            graph = _faiss().read_index(str(folder / layout.GRAPH))
        except RuntimeError as error:
            line = str(error).splitlines()[0]
            raise DataError(f"{folder / layout.GRAPH} is damaged: {line}; build the index again") from None
        if (graph.ntotal, graph.d) != (len(bank.distinct), reference.dim):
            raise DataError(
                f"{folder / layout.GRAPH} holds {graph.ntotal:,} rows of width {graph.d}; the bank has {len(bank.distinct):,} "
                f"distinct vectors of width {reference.dim}; build the index again"
            )
        return cls(graph, reference, manifest.measured)

    def __len__(self) -> int:
        return len(self.reference)

    @property
    def kind(self) -> str:
        return self.KIND

    @property
    def distinct(self) -> Distinct:
        """The bank's distinct vectors, which are those of the graph."""
        return self.reference.distinct

    @property
    def dim(self) -> int:
        return self.reference.dim

    @property
    def map_digest(self) -> str:
        return self.reference.map_digest

    def scores(
        self, rows: Int64[np.ndarray, " R"], query_D: Float[Tensor, " D"] | Float[np.ndarray, " D"]
    ) -> Float32[np.ndarray, " R"]:
        """As :meth:`Index.scores`."""
        return self.reference.scores(rows, query_D)

    def vectors(self, rows: Int64[np.ndarray, " R"]) -> Float32[np.ndarray, "R E"]:
        """As :meth:`Index.vectors`."""
        return self.reference.vectors(rows)

    def search(
        self,
        queries_QD: Queries,
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
    ) -> Neighbours:
        """As :meth:`Index.search`, among the rows that the walk visits.

        The walk returns a list as long as its breadth. The breadth is doubled
        until the better half of the list holds ``k`` rows that the filters
        admit. From a breadth of a sixteenth of all rows on, exact search
        answers instead.
        """
        newer = self.reference.search(queries_QD, k, excluded, allowed, added_only=True)  # also checks all arguments
        queries = np.ascontiguousarray(as_array(queries_QD, self.reference.dim))
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
                nearest = self.distinct.firsts[numbers[may][: 2 * k]]  # ordered by products in float16
                found = self.reference.scores(nearest, queries_QD[q])
                decided += len(found)
                best = best_of(found[None], nearest[None], k)
                scores[q], rows[q] = best[0][0], best[1][0]
            open_queries, breadth = np.array(left, np.int64), 2 * breadth
        rows = self.reference.named(rows, allowed)
        if len(open_queries):
            chosen = None if excluded is None else [excluded[q] for q in open_queries.tolist()]
            exactly = self.reference.search(queries_QD[open_queries], k, chosen, allowed)
            scores[open_queries], rows[open_queries] = exactly.scores, exactly.rows
            decided += exactly.decided
            newer.scores[open_queries], newer.rows[open_queries] = -np.inf, -1  # exact search has found them
        if self.reference.added:
            both = (np.concatenate([scores, newer.scores], 1), np.concatenate([rows, newer.rows], 1))
            scores, rows = best_of(*both, k)
        return Neighbours(rows, scores, decided)

    def search_pooled(
        self,
        predictions: Sequence[PooledQuery],
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
    ) -> Neighbours:
        """As :meth:`Index.search_pooled`, among the rows that the walks of the centres of the queries find.

        The rows that are nearest to a centre are scored. The list of them becomes longer until no row behind its end can
        have a better score than the k-th best. Where it would hold a sixteenth of all rows, exact search answers instead.
        """
        check_k(k)
        if excluded is not None:
            excluded = checked_rows(excluded, len(predictions), len(self))
        scores, rows = np.full((len(predictions), k), -np.inf, np.float32), np.full((len(predictions), k), -1, np.int64)
        left, length, decided = list(range(len(predictions))), LISTED * k, 0
        centres = [prediction.centre(self.reference.longest) for prediction in predictions]
        while left and length * 16 <= self._graph.ntotal:
            barred = None if excluded is None else [excluded[n] for n in left]
            found = self.search(np.stack([centres[n][0] for n in left]), length, barred, allowed)
            decided += found.decided
            for n, names, last in zip(left[:], found.rows, found.scores[:, -1], strict=True):
                listed = np.sort(names[names >= 0])
                products_QR = np.stack([self.scores(listed, query) for query in predictions[n].vectors])
                pooled = predictions[n].scores(products_QR).astype(np.float32)
                decided += products_QR.size
                best = np.argsort(-pooled, kind="stable")[:k]
                if len(listed) < length or pooled[best[-1]] > last + centres[n][1]:
                    scores[n, : len(best)], rows[n, : len(best)] = pooled[best], listed[best]
                    left.remove(n)
            length *= GROWTH
        if left:
            barred = None if excluded is None else [excluded[n] for n in left]
            exactly = self.reference.search_pooled([predictions[n] for n in left], k, barred, allowed)
            scores[left], rows[left] = exactly.scores, exactly.rows
            decided += exactly.decided
        return Neighbours(rows, scores, decided)

    def add(self, vectors: np.ndarray) -> Int64[np.ndarray, " B"]:
        """As :meth:`Index.add`."""
        return self.reference.add(vectors)

    def save(self, folder: str | Path) -> None:
        """As :meth:`Index.save`."""
        manifest, write = self.reference.contents()

        def write_all(path: Path) -> None:
            write(path)
            _faiss().write_index(self._graph, str(path / layout.GRAPH))

        layout.publish(Path(folder), replace(manifest, kind=self.KIND, measured=self.measured), write_all)

    def _filters(
        self, excluded: Sequence[Int64[np.ndarray, "..."]] | None, allowed: Bool[np.ndarray, " A"] | None
    ) -> tuple[Bool[np.ndarray, " U"] | None, list[Int64[np.ndarray, "..."]] | None]:
        """The filters by distinct vector: a mask of possible answers, and for each query the numbers left out."""
        numbers, may_be = self.distinct.numbers, None
        if allowed is not None:
            may_be = np.zeros(len(self.distinct), bool)
            may_be[numbers[np.flatnonzero(allowed[: len(numbers)])]] = True
        if excluded is None:
            return may_be, None
        return may_be, [numbers[names[names < len(numbers)]] for names in map(np.asarray, excluded)]

    def _recall(self, asked: Float32[np.ndarray, "Q D"]) -> dict[str, Any]:
        queries = torch.from_numpy(asked)
        k = min(NEIGHBOURS, len(self.distinct))
        found, true = self.search(queries, k).rows, self.reference.search(queries, k).rows
        shared = [len(np.intersect1d(a, b)) / k for a, b in zip(found, true, strict=True)]
        return {
            f"recall@{k}": float(np.mean(shared)),
            "queries": len(queries),
            "of": f"exponential means of up to {MEANT} rows, decay {DECAY}",
        }


def predicted_like(bank: Bank, count: int, seed: int = 0) -> Float32[np.ndarray, "Q D"]:
    """Queries that resemble predictions: exponential means of up to 8 rows of a document, up to a random row; unit length."""
    ends = np.random.default_rng(seed).integers(0, len(bank), count)
    starts = np.maximum(bank.offsets[bank.document_of(ends)], ends - MEANT + 1)
    read = [bank.rows[start : end + 1].astype(np.float32) for start, end in zip(starts, ends, strict=True)]
    means = np.stack([DECAY ** np.arange(len(rows), dtype=np.float32)[::-1] @ rows for rows in read])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def _admitted(
    numbers: Int64[np.ndarray, " R"], excluded: Int64[np.ndarray, "..."] | None, may_be: Bool[np.ndarray, " U"] | None
) -> Bool[np.ndarray, " R"]:
    may = numbers >= 0  # the walk may find fewer rows than its breadth
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
    """Build with one thread: with several, the graph would depend on their timing."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
