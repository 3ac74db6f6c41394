"""The exam: the rows that are predicted and the candidates of each, fixed before any model is evaluated."""

# Axes: R scored rows, B rows of a block, C columns, D width, W width of an output, E width of a candidate, N rows of the bank.

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.hashing import GOLDEN, mix64
from nextvec.errors import ExamError
from nextvec.evaluation.candidates import CandidateSets
from nextvec.models.queries import Products, Scorer, device_of
from nextvec.ranks import Ranks
from nextvec.windows import rows_of, salted

BLOCK = 256
MINIMUM_ROWS = 30
SALT = "exam-1"
PRODUCTS = Products()
MAPPED = 16_384  # candidates that are mapped at once


@dataclass(frozen=True, eq=False)
class Exam:
    """Scored rows and their candidates; neither depends on the context length, the model or the run.

    A candidate is a distinct vector (:class:`~nextvec.bank.distinct.Distinct`).
    The candidates of a scored row are the truth and the first ``pool - 1``
    admissible candidates of one fixed order. Vectors that its document holds
    before the row are not admissible, however short the context, and neither are
    copies of the truth. A row that repeats a vector of its document is not
    scored: a prediction never names a vector of its context. The order is a salted
    shuffle of the vectors of the examined documents, then one of the rest of the
    bank; items that no document holds are among the rest. Every scored row has exactly ``pool`` candidates; a pool that one row
    cannot fill is refused.

    Attributes:
        bank: whose documents are examined.
        part: ``valid``, ``test`` or ``all``, for the reader.
        rows: [R] scored rows, ascending.
        pool: candidates per row, the truth among them; None for all that are
            admissible, which are fewer for rows that stand late in a long document.
        id: hash of the attributes above and the order; two reports are comparable when their ids are equal.
        repeats: rows of the documents that are not scored because they repeat their own document.
    """

    bank: Bank
    part: str
    rows: Int64[np.ndarray, " R"]
    pool: int | None
    id: str
    order: Int64[np.ndarray, " order"] = field(repr=False)
    repeats: int = 0

    @staticmethod
    def over(
        bank: Bank,
        documents: Int64[np.ndarray, " M"],
        part: str,
        pool: int | None = 1000,
        max_rows: int = 2000,
        history: int = 1,
    ) -> "Exam":
        """The exam over some documents.

        Args:
            pool: candidates per scored row; None ranks against the whole bank.
            max_rows: scored rows at most, drawn by a salted hash of their place.
            history: rows a document must have before one that is scored.

        Raises:
            ExamError: too few rows to score that are new to their documents, or a scored row that has fewer admissible
                candidates than ``pool``.
        """
        rows, repeats = _scored_rows(bank, documents, part, max(1, history))
        if len(rows) > max_rows:
            rows = np.sort(rows[np.argsort(_hashes(rows, 1), kind="stable")[:max_rows]])
        order = _candidate_order(bank, documents)
        return Exam(bank, part, rows, None, _id(bank, part, rows, None, order), order, repeats).among(pool)

    def among(self, pool: int | None) -> "Exam":
        """The exam on the same rows with another number of candidates.

        Raises:
            ExamError: a scored row has fewer admissible candidates than ``pool``, or ``pool`` is below 2.
        """
        if pool is not None and not 2 <= pool <= self.largest_pool:
            raise ExamError(
                f"pool {pool:,}: every scored row must have that many candidates; the largest pool that works for the "
                f"{self.part} documents is {self.largest_pool:,}, of {len(self.order):,} distinct rows in the bank without "
                f"those that a row's own document holds before it; choose 2 to {self.largest_pool:,}, or all"
            )
        return replace(self, pool=pool, id=_id(self.bank, self.part, self.rows, pool, self.order))

    @cached_property
    def admissible(self) -> Int64[np.ndarray, " R"]:
        """Candidates that each scored row could have: its truth, and the vectors that its document does not hold before it."""
        return _admissible(self.bank, self.rows)

    @property
    def largest_pool(self) -> int:
        """The largest pool that every scored row can fill."""
        return int(self.admissible.min())

    @property
    def candidates(self) -> Int64[np.ndarray, " R"]:
        """Candidates of each scored row, the truth among them."""
        return self.admissible if self.pool is None else np.full(len(self.rows), self.pool, dtype=np.int64)

    @property
    def clusters(self) -> Int64[np.ndarray, " R"]:
        """The document of each scored row."""
        return self.bank.document_of(self.rows)

    @cached_property
    def candidate_sets(self) -> CandidateSets:
        """The candidates of each scored row: found once, and read by every ranking."""
        return CandidateSets.of(self.rows, self._starts, self.bank.classes, self.order, self.pool)

    def rank(self, predicted_RW: Float[Tensor, "R W"], scorer: Scorer = PRODUCTS) -> Ranks:
        """The rank of each scored row's truth when candidates are sorted by their score.

        The truth's score is read from the same product as the others' scores, so
        a tie is a tie to the last bit.

        Args:
            predicted_RW: the outputs of the scorer for the scored rows; vectors [R, D] without one.
            scorer: the model of the predictions, which maps the candidates and scores them.

        Raises:
            ExamError: a wrong number of predictions, or one that is not finite.
        """
        width = predicted_RW.shape[1]
        if scorer is PRODUCTS and width != self.bank.dim:
            raise ExamError(f"predictions are {list(predicted_RW.shape)}; want [{len(self.rows)}, {self.bank.dim}]")
        block = max(1, BLOCK * self.bank.dim // max(1, width))  # several queries score in smaller blocks
        return self.rank_each(predicted_RW, scorer, lambda y_BW, mapped_CE: [scorer.scores(y_BW, mapped_CE)], 1, block)[0]

    @torch.inference_mode()
    def rank_each(
        self,
        predicted_RW: Float[Tensor, "R W"],
        scorer: Scorer,
        scores: Callable[[Tensor, Tensor], Iterable[Tensor]],
        count: int,
        block: int = BLOCK,
    ) -> list[Ranks]:
        """The ranks of several predictors that share their outputs and the map of the candidates.

        Args:
            scorer: maps the candidates.
            scores: of outputs [B, W] and mapped candidates [C, E], the scores [B, C] that each predictor gives, each in memory
                of its own, which is overwritten.
            count: of predictors.
            block: outputs that are scored at once.

        Raises:
            ExamError: as :meth:`rank`.
        """
        if len(predicted_RW) != len(self.rows):
            raise ExamError(f"predictions are {list(predicted_RW.shape)}; want one for each of {len(self.rows)} rows")
        if not torch.isfinite(predicted_RW).all():
            raise ExamError("a prediction is not finite (NaN or infinity); the model is broken")
        sets = self.candidate_sets
        mapped_CE = mapped_items(self.bank, sets.columns, scorer)
        above, tied = (np.empty((count, len(self.rows)), dtype=np.int64) for _ in range(2))
        for start in range(0, len(self.rows), block):
            predicted_BW = predicted_RW[start : start + block].float().to(mapped_CE.device)
            for n, scores_BC in enumerate(scores(predicted_BW, mapped_CE)):
                above[n, start : start + block], tied[n, start : start + block] = sets.compare(start, scores_BC.cpu().numpy())
        return [Ranks(above[n], tied[n], sets.counts, self.clusters) for n in range(count)]

    def truths(self) -> Float[Tensor, "R D"]:
        """The true vectors, for oracles."""
        return torch.from_numpy(self.bank.rows[self.rows]).float()

    def copies_of_the_past(self) -> int:
        """Candidates, over all scored rows, that equal the truth or an earlier vector of its document; 0 in a correct exam.

        Compares vector by vector with the whole past, independently of how the candidates were found.
        """
        sets, found = self.candidate_sets, 0
        for r, (row, first) in enumerate(zip(self.rows.tolist(), self._starts.tolist(), strict=True)):
            found += int(np.isin(sets.columns[sets.of_row(r)], self.bank.classes[first : row + 1]).sum())
        return found

    @property
    def _starts(self) -> Int64[np.ndarray, " R"]:
        return self.bank.offsets[self.clusters]


def mapped_items(bank: Bank, items: Int64[np.ndarray, " C"], scorer: Scorer) -> Float[Tensor, "C E"]:
    """The vectors of items as a scorer compares them, on its device."""
    device, vectors = device_of(scorer), bank.table.vectors
    parts = [items[first : first + MAPPED] for first in range(0, len(items), MAPPED)]
    return torch.cat([scorer.candidates(torch.from_numpy(vectors[part]).float().to(device)) for part in parts])


def largest_pool(bank: Bank, documents: Int64[np.ndarray, " M"], part: str) -> int:
    """The largest pool that every row of some documents can fill: that of an exam over all their rows, without its order.

    Raises:
        ExamError: too few rows to score.
    """
    rows, _ = _scored_rows(bank, documents, part, 1)
    return int(_admissible(bank, rows).min())


def _scored_rows(
    bank: Bank, documents: Int64[np.ndarray, " M"], part: str, history: int
) -> tuple[Int64[np.ndarray, " R"], int]:
    """The rows whose vectors their documents have not held before, and how many rows are left out because they were.

    Raises:
        ExamError: too few rows to score.
    """
    every = np.sort(rows_of(bank, documents, skip=history))
    rows = every[bank.new_in_document[every]]
    if len(rows) < MINIMUM_ROWS:
        raise ExamError(
            f"only {len(rows)} rows of the {part} documents can be scored; an exam needs at least {MINIMUM_ROWS} rows that "
            f"have {history} or more before them in their document and repeat none of them"
        )
    return rows, len(every) - len(rows)


def _admissible(bank: Bank, rows: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
    """For each row, the distinct vectors of the bank that its document does not hold before it, its own among them."""
    held = np.concatenate([[0], np.cumsum(bank.new_in_document, dtype=np.int64)])
    return len(bank.distinct) - (held[rows + 1] - held[bank.offsets[bank.document_of(rows)]]) + 1


def _candidate_order(bank: Bank, documents: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " order"]:
    """Distinct vectors, named by the first item that holds them: those of the examined documents first.

    The first row of a vector decides its place, so the order does not depend on how the items are numbered.
    """
    distinct = bank.distinct
    examined = np.unique(distinct.numbers[bank.sequences.items(rows_of(bank, documents))])
    rest = np.setdiff1d(np.arange(len(distinct)), examined)
    shuffled = [part[np.argsort(_hashes(bank.first_rows[part], 2), kind="stable")] for part in (examined, rest)]
    return distinct.firsts[np.concatenate(shuffled)]


def _id(bank: Bank, part: str, rows: Int64[np.ndarray, " R"], pool: int | None, order: Int64[np.ndarray, " order"]) -> str:
    name = f"{bank.fingerprint} {part} {pool} {SALT}".encode() + rows.tobytes() + order.tobytes()
    return hashlib.sha256(name).hexdigest()[:16]


def _hashes(rows: Int64[np.ndarray, " R"], stream: int) -> np.ndarray:
    """A well-mixed 64-bit hash per row (:func:`~nextvec.bank.hashing.mix64`): the same on every machine and version."""
    seed = np.uint64(int(salted(SALT, str(stream))[:16], 16))
    return mix64(rows.astype(np.uint64) * GOLDEN + seed)
