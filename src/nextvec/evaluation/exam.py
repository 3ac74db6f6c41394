"""The exam: which rows are predicted and what they are told apart from, fixed before any model is seen."""

# Axes: R scored rows, C columns, D width, N rows of the bank.

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.distinct import GOLDEN, mix64
from nextvec.errors import ExamError
from nextvec.ranks import Ranks
from nextvec.windows import rows_of, salted

BLOCK = 256
MINIMUM_ROWS = 30
SALT = "exam-1"


@dataclass(frozen=True, eq=False)
class Exam:
    """Scored rows and their candidates; neither depends on the context length, the model or the run.

    A candidate is a distinct vector (:class:`~nextvec.bank.distinct.Distinct`).
    For a scored row the pool is the first ``pool - 1`` admissible candidates of
    one fixed order, and the truth. Not admissible is what its document has
    already said, however short the context, and copies of the truth. So a row
    that repeats what its document has said is not scored: an answer leaves out
    what the context holds, and can never name it. The order is a salted shuffle of the rows
    of the examined documents, then one of the rest of the bank.

    Attributes:
        bank: what is examined.
        part: ``valid``, ``test`` or ``all``, in words, for the reader.
        rows: [R] scored rows, ascending.
        pool: candidates per row, the truth among them; None for the whole bank.
        id: hash of all the above; two reports are comparable when it is equal.
    """

    bank: Bank
    part: str
    rows: Int64[np.ndarray, " R"]
    pool: int | None
    id: str
    classes: Int64[np.ndarray, " N"] = field(repr=False)
    order: Int64[np.ndarray, " order"] = field(repr=False)

    @staticmethod
    def over(
        bank: Bank,
        documents: Int64[np.ndarray, " M"],
        part: str,
        pool: int | None = 1000,
        max_rows: int = 2000,
        history: int = 1,
    ) -> "Exam":
        """An exam over some documents.

        Args:
            pool: candidates per scored row; None ranks against the whole bank.
            max_rows: scored rows at most, drawn by a salted hash of their place.
            history: rows a document must have before one that is scored.

        Raises:
            ExamError: too few rows to score that are new to their documents, or a bank with fewer distinct rows than ``pool``.
        """
        rows = _new_to_their_documents(bank, rows_of(bank, documents, skip=max(1, history)))
        if len(rows) < MINIMUM_ROWS:
            raise ExamError(
                f"only {len(rows)} rows of the {part} documents have {max(1, history)} rows before them and repeat none; "
                f"an exam needs at least {MINIMUM_ROWS}"
            )
        if len(rows) > max_rows:
            rows = np.sort(rows[np.argsort(_hashes(rows, 1), kind="stable")[:max_rows]])
        classes = bank.distinct.classes
        order = _candidate_order(bank, documents, classes)
        if pool is not None and not 2 <= pool <= len(order):
            raise ExamError(f"pool {pool:,}: must be between 2 and the bank's {len(order):,} distinct rows (or all)")
        name = f"{bank.fingerprint} {part} {pool} {SALT}".encode() + rows.tobytes() + order.tobytes()
        return Exam(bank, part, rows, pool, hashlib.sha256(name).hexdigest()[:16], classes, order)

    @property
    def clusters(self) -> Int64[np.ndarray, " R"]:
        """The document of each scored row."""
        return self.bank.document_of(self.rows)

    def rank(self, predicted_RD: Float[Tensor, "R D"]) -> Ranks:
        """Where the truth of each scored row comes when candidates are sorted by their product with the prediction.

        The truth's score is read from the same product as the others', so a
        tie is a tie to the last bit.

        Raises:
            ExamError: a wrong number of predictions, or one that is not finite.
        """
        if predicted_RD.shape != (len(self.rows), self.bank.dim):
            raise ExamError(f"predictions are {list(predicted_RD.shape)}; want [{len(self.rows)}, {self.bank.dim}]")
        if not torch.isfinite(predicted_RD).all():
            raise ExamError("a prediction is not finite (NaN or infinity); the model is broken")
        columns, truth = self._columns()
        vectors_CD = torch.from_numpy(self.bank.rows[columns]).float()
        above, tied, counts = (np.empty(len(self.rows), dtype=np.int64) for _ in range(3))
        for start in range(0, len(self.rows), BLOCK):
            block = slice(start, min(start + BLOCK, len(self.rows)))
            scores = (predicted_RD[block].float() @ vectors_CD.T).numpy()
            admissible = self._admissible(block, len(columns))
            own = np.take_along_axis(scores, truth[block, None], axis=1)
            above[block] = ((scores > own) & admissible).sum(1)
            tied[block] = ((scores == own) & admissible).sum(1)
            counts[block] = admissible.sum(1) + 1
        return Ranks(above, tied, counts, self.clusters)

    def truths(self) -> Float[Tensor, "R D"]:
        """The vectors to be predicted, for oracles."""
        return torch.from_numpy(self.bank.rows[self.rows]).float()

    def copies_of_the_past(self) -> int:
        """Candidates, over all scored rows, that equal the truth or anything their document said before; none, if sound.

        Compared vector by vector with the whole past, not by how the pool was made.
        """
        columns, _ = self._columns()
        found = 0
        for start in range(0, len(self.rows), BLOCK):
            block = slice(start, start + BLOCK)
            admissible = self._admissible(block, len(columns))
            for allowed, row, first in zip(admissible, self.rows[block], self._starts[block], strict=True):
                found += int(np.isin(columns[allowed], self.classes[first : row + 1]).sum())
        return found

    @property
    def _starts(self) -> Int64[np.ndarray, " R"]:
        return self.bank.offsets[self.clusters]

    def _depth(self) -> int:
        """How far down the order any scored row may have to look for its candidates."""
        if self.pool is None:
            return len(self.order)
        past = self.rows - self.bank.offsets[self.clusters] + 1
        return min(len(self.order), self.pool - 1 + int(past.max()))

    def _columns(self) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " R"]]:
        """The candidates in order, then truths that are not among them; and each row's own column."""
        ordered = self.order[: self._depth()]
        own = self.classes[self.rows]
        columns = np.concatenate([ordered, np.setdiff1d(own, ordered)])
        place = np.full(len(self.bank), -1, dtype=np.int64)
        place[columns] = np.arange(len(columns))
        return columns, place[own]

    def _admissible(self, block: slice, width: int) -> Bool[np.ndarray, "R C"]:
        depth = self._depth()
        place = np.full(len(self.bank), -1, dtype=np.int64)
        place[self.order[:depth]] = np.arange(depth)
        rows = self.rows[block]
        admissible = np.zeros((len(rows), width), dtype=bool)
        admissible[:, :depth] = True
        for i, (row, document) in enumerate(zip(rows.tolist(), self.clusters[block].tolist(), strict=True)):
            said = place[self.classes[self.bank.offsets[document] : row + 1]]
            admissible[i, said[said >= 0]] = False
        if self.pool is not None:
            admissible &= np.cumsum(admissible, axis=1) <= self.pool - 1
        return admissible


def _new_to_their_documents(bank: Bank, rows: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " kept"]:
    """The rows whose vectors their documents have not held before."""
    everything = np.arange(len(bank), dtype=np.int64)
    said = bank.distinct.numbers * bank.num_documents + bank.document_of(everything)
    return np.intersect1d(rows, np.unique(said, return_index=True)[1])


def _candidate_order(
    bank: Bank, documents: Int64[np.ndarray, " M"], classes: Int64[np.ndarray, " N"]
) -> Int64[np.ndarray, " order"]:
    """Distinct vectors, named by the first row that holds them: those of the examined documents first."""
    examined = np.unique(classes[rows_of(bank, documents)])
    rest = np.setdiff1d(classes, examined)
    shuffled = [part[np.argsort(_hashes(part, 2), kind="stable")] for part in (examined, rest)]
    return np.concatenate(shuffled)


def _hashes(rows: Int64[np.ndarray, " R"], stream: int) -> np.ndarray:
    """A well-mixed 64-bit hash per row (:func:`~nextvec.bank.distinct.mix64`): the same on every machine and version."""
    seed = np.uint64(int(salted(SALT, str(stream))[:16], 16))
    return mix64(rows.astype(np.uint64) * GOLDEN + seed)
