"""What every index of a bank can do, and what some can do in addition."""

# Axes: Q queries, D width, E width of mapped rows, K neighbours, A rows that a mask knows, B added rows, N and R rows.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nextvec.bank import Distinct
from nextvec.kernels.scan_pooled import PooledQuery
from nextvec.kernels.scan_rows import RowFormat

Queries = Float[Tensor, "Q D"] | Float[np.ndarray, "Q D"]


@runtime_checkable
class RowMap(Protocol):
    """A map of a bank's rows: an index with a map searches what it returns."""

    @property
    def digest(self) -> str:
        """Names the map; two maps with one digest map every row alike."""
        ...

    def __call__(self, rows: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N E"]:
        """The rows as queries compare them."""
        ...


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each query, best first; of equal scores the lower row first.

    Places without a row hold -1 and the score -inf.

    Attributes:
        decided: number of rows whose exact product was computed, over all queries.
    """

    rows: Int64[np.ndarray, "Q K"]
    scores: Float32[np.ndarray, "Q K"]
    decided: int = 0


@runtime_checkable
class Index(Protocol):
    """Finds the distinct vectors of a bank with the largest products.

    Every score is the deciding product of :func:`nextvec.kernels.scan_rows.products`,
    so a row has the same score in every index, bit for bit. Three abilities
    differ from index to index: :attr:`exact`, :attr:`filters` and :attr:`grows`.
    """

    @property
    def kind(self) -> str:
        """The name of the kind, as ``nextvec index --kind`` takes it and the saved manifest states it."""
        ...

    @property
    def exact(self) -> bool:
        """Whether a search finds the nearest rows always; otherwise :attr:`measured` states how many it finds."""
        ...

    @property
    def filters(self) -> bool:
        """Whether :meth:`search` takes ``excluded`` and ``allowed``; an engine needs it, to leave out what was read."""
        ...

    @property
    def grows(self) -> bool:
        """Whether :meth:`add` adds rows; otherwise it raises ``SettingsError``."""
        ...

    @property
    def form(self) -> RowFormat:
        """The format in which rows are read."""
        ...

    @property
    def measured(self) -> Mapping[str, Any]:
        """The recall measured when the index was built, and with what; empty for an exact index."""
        ...

    @property
    def dim(self) -> int:
        """Width of the queries: that of the rows, or of the mapped rows."""
        ...

    @property
    def map_digest(self) -> str:
        """The digest of the map of the rows (:class:`RowMap`); empty without one."""
        ...

    @property
    def distinct(self) -> Distinct:
        """The distinct vectors of the bank that the index was built from."""
        ...

    def __len__(self) -> int:
        """Number of rows: the bank's, and the added ones."""
        ...

    def search(
        self,
        queries_QD: Queries,
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
    ) -> Neighbours:
        """The ``k`` distinct vectors with the largest products for each query.

        A vector is named by the first row that holds it; with ``allowed``, by the first allowed row.

        Args:
            queries_QD: a tensor, or an array, which costs less.
            excluded: for each query, rows whose vectors are left out, in any order.
            allowed: mask of the rows that may be answers (:func:`~nextvec.index.inputs.allowed_rows`); rows beyond its end
                may not.

        Raises:
            SettingsError: k below 1, or filters for an index without this ability.
            DataError: queries of another width or not finite, or filters of another shape.
        """
        ...

    def search_pooled(
        self,
        predictions: Sequence[PooledQuery],
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
    ) -> Neighbours:
        """The ``k`` distinct vectors with the largest pooled scores for each prediction (:mod:`nextvec.kernels.scan_pooled`).

        Filters and errors as for :meth:`search`, with one list of excluded rows for each prediction.
        """
        ...

    def scores(
        self, rows: Int64[np.ndarray, " R"], query_D: Float[Tensor, " D"] | Float[np.ndarray, " D"]
    ) -> Float32[np.ndarray, " R"]:
        """The deciding products of the given rows with one query; of mapped rows where the index has a map.

        Raises:
            DataError: a row that does not exist, or a query of another width or not finite.
        """
        ...

    def vectors(self, rows: Int64[np.ndarray, " R"]) -> Float32[np.ndarray, "R E"]:
        """The given rows as queries are compared with them: mapped where the index has a map.

        Raises:
            DataError: a row that does not exist.
        """
        ...

    def add(self, vectors: np.ndarray) -> Int64[np.ndarray, " B"]:
        """Add rows, which every later search finds; returns their row numbers.

        A row whose vector the index already holds is not added again; its number is that of the first row that holds it.
        With a map of rows, the vectors are those before the map.

        Raises:
            DataError: vectors that are not usable (:mod:`nextvec.vectors`), or of another width; then none is added.
            SettingsError: the index does not grow.
        """
        ...

    def save(self, folder: str | Path) -> None:
        """Write the index, with the added rows and without the bank's own.

        Raises:
            DataError: the folder exists, or the index was not built from a bank.
        """
        ...
