"""The audit of a bank: checks for properties of a bank that make its figures unreliable. Each check can fail."""

# Axes: N rows, D width, M documents.

from collections.abc import Callable

import numpy as np
import torch

from nextvec.bank import Bank, census
from nextvec.bank.verification import content_fingerprint
from nextvec.errors import DataError, ExamError
from nextvec.evaluation.audit_text import truncated, unreadable
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.finding import Finding
from nextvec.windows import Split, missed_shares, rows_of, split

BLOCK = 65_536
DUPLICATES, LEAK = 0.2, 0.05
SAMPLE = 4_096
ROWS_TO_BELIEVE, DOCUMENTS_TO_BELIEVE = 1_000, 5
POOL = 1_000
VALID, TEST = 0.15, 0.2  # shares of the rows that a training holds out by default


def audit(bank: Bank) -> dict[str, Finding]:
    """Run every check."""
    checks: dict[str, Callable[[Bank], Finding]] = {
        "fingerprint": _fingerprint,
        "unit_rows": _unit_rows,
        "documents": _documents,
        "encoder": _encoder,
        "truncated": truncated,
        "unreadable": unreadable,
        "order": _order,
        "duplicates": _duplicates,
        "shares": _shares,
        "leakage": _leakage,
        "exam_size": _exam_size,
        "candidates": _candidates,
        "oracle_truth": _oracle_truth,
        "oracle_ignorance": _oracle_ignorance,
        "context_excluded": _context_excluded,
    }
    return {name: check(bank) for name, check in checks.items()}


def _fingerprint(bank: Bank) -> Finding:
    if bank.path is None:
        return Finding(True, "the bank lies in memory", {})
    found = content_fingerprint(bank.path, bank.manifest)
    return Finding(
        found == bank.fingerprint,
        "rows, offsets and documents are those that were written",
        {"recorded": bank.fingerprint[:16], "found": found[:16]},
    )


def _unit_rows(bank: Bank) -> Finding:
    worst, finite = 0.0, True
    for start in range(0, len(bank.table), BLOCK):
        norms = np.linalg.norm(bank.table.vectors[start : start + BLOCK].astype(np.float32), axis=1)
        finite = finite and bool(np.isfinite(norms).all())
        worst = max(worst, float(np.abs(norms - 1).max()))
    passed = finite and worst < 5e-3
    return Finding(passed, "every row is finite and of unit length", {"worst_deviation": worst if finite else "not finite"})


def _documents(bank: Bank) -> Finding:
    ids = bank.ids
    twice = len(ids) - len(set(ids))
    ordered = bool((np.diff(bank.offsets) > 0).all()) and int(bank.offsets[0]) == 0 and int(bank.offsets[-1]) == len(bank)
    return Finding(
        twice == 0 and ordered,
        "document ids are unique and their rows lie end to end",
        {"documents": len(ids), "ids_twice": twice, "shortest": int(bank.lengths.min()), "longest": int(bank.lengths.max())},
    )


def _encoder(bank: Bank) -> Finding:
    known = bank.manifest.encoder_fingerprint not in ("", "unknown")
    says = (
        "all rows come from one known encoder"
        if known
        else "the encoder is unknown: text can be neither added nor sent as a query"
    )
    # A bank of ready vectors may have an unknown encoder; text that was chunked here was encoded here.
    return Finding(known or not bank.manifest.reads_text, says, {"encoder": bank.manifest.encoder})


def _order(bank: Bank) -> Finding:
    """Neighbouring rows must be more alike than rows drawn at random from the same documents; otherwise the order was lost."""
    rng = np.random.default_rng(0)
    longer = rows_of(bank, range(bank.num_documents), skip=1)
    if len(longer) < 2:
        return Finding(False, "no document has two rows; there is no order to predict", {})
    rows = rng.choice(longer, min(SAMPLE, len(longer)), replace=False)
    documents = bank.document_of(rows)
    other = rng.integers(bank.offsets[documents], bank.offsets[documents + 1])
    now, before, random = (bank.rows[r].astype(np.float32) for r in (rows, rows - 1, other))
    difference = (now * before).sum(1) - np.where(other == rows, (now * before).sum(1), (now * random).sum(1))
    z = float(difference.mean() / (difference.std() / len(rows) ** 0.5 + 1e-12))
    return Finding(
        z > 3,
        "neighbouring rows are more alike than shuffled ones",
        {"adjacent_cosine": float((now * before).sum(1).mean()), "lift_over_shuffled": float(difference.mean()), "z": z},
    )


def _duplicates(bank: Bank) -> Finding:
    counted = census(bank)
    share = (counted.exact_duplicates + counted.near_duplicates) / counted.rows
    return Finding(
        share <= DUPLICATES,
        f"at most {DUPLICATES:.0%} of the rows repeat an earlier one",
        {
            "exact": counted.exact_duplicates,
            "near": counted.near_duplicates,
            "share": share,
            "near_duplicate_document_groups": len(counted.document_groups),
        },
    )


def _parts(bank: Bank) -> Split:
    """The split that a training makes by default.

    Raises:
        DataError: the bank cannot be split.
    """
    return split(bank, VALID, TEST)


def _shares(bank: Bank) -> Finding:
    try:
        parts = _parts(bank)
    except DataError as error:
        return Finding(False, str(error), {"documents": bank.num_documents})
    figures = {name: float(bank.lengths[parts.part(name)].sum()) / len(bank) for name in ("train", "valid", "test")}
    says = "each part of the split holds between half and twice its share of the rows"
    return Finding(not missed_shares(bank, parts, VALID, TEST), says, figures)


def _leakage(bank: Bank) -> Finding:
    """The parts share no documents by construction; a row that occurs in two parts could still leak."""
    try:
        parts = _parts(bank)
    except DataError as error:
        return Finding(False, str(error), {"documents": bank.num_documents})
    classes = bank.classes
    overlap = np.intersect1d(parts.train, np.concatenate([parts.valid, parts.test])).size
    held = classes[rows_of(bank, np.concatenate([parts.valid, parts.test]))]
    shared = float(np.isin(held, classes[rows_of(bank, parts.train)]).mean())
    return Finding(
        overlap == 0 and shared <= LEAK,
        f"no document is in two parts, and at most {LEAK:.0%} of held-out rows also occur in training",
        {"documents_in_both": overlap, "held_out_rows_in_training": shared},
    )


def _exam(bank: Bank) -> Exam:
    try:
        documents = _parts(bank).test
    except DataError:
        documents = np.arange(bank.num_documents)  # a bank that cannot be split is examined whole
    exam = Exam.over(bank, documents, "test", None)
    return exam.among(min(POOL, exam.largest_pool))


def _exam_size(bank: Bank) -> Finding:
    try:
        exam = _exam(bank)
    except ExamError as error:
        return Finding(False, str(error), {"rows": 0})
    rows, documents, pool = len(exam.rows), len(np.unique(exam.clusters)), exam.pool or 0
    return Finding(
        rows >= ROWS_TO_BELIEVE and documents >= DOCUMENTS_TO_BELIEVE and pool >= POOL,
        f"the test part scores {ROWS_TO_BELIEVE:,} rows of {DOCUMENTS_TO_BELIEVE} documents among {POOL:,} candidates",
        {"rows": rows, "documents": documents, "pool": pool},
    )


def _examined(bank: Bank, says: str, judge: Callable[[Exam], tuple[bool, dict[str, float | int | str]]]) -> Finding:
    try:
        passed, figures = judge(_exam(bank))
    except ExamError as error:
        return Finding(False, str(error), {})
    return Finding(passed, says, figures)


def _candidates(bank: Bank) -> Finding:
    """A pool that shrinks along a document makes later rows easier, which looks like a gain of longer contexts."""

    def judge(exam: Exam) -> tuple[bool, dict[str, float | int | str]]:
        ranked = exam.rank(torch.zeros(len(exam.rows), bank.dim)).candidates
        available = np.minimum(POOL, exam.admissible)
        figures: dict[str, float | int | str] = {
            "least": int(available.min()),
            "most": int(available.max()),
            "largest_pool": exam.largest_pool,
        }
        return bool((available == POOL).all() and (ranked == exam.pool).all()), figures

    return _examined(bank, f"every row that the test part scores has {POOL:,} candidates, wherever it stands", judge)


def _oracle_truth(bank: Bank) -> Finding:
    def judge(exam: Exam) -> tuple[bool, dict[str, float | int | str]]:
        hit = float(exam.rank(exam.truths()).hits(1).mean())
        return hit > 0.999, {"hit@1": hit}

    return _examined(bank, "predicting the truth itself scores 100 %", judge)


def _oracle_ignorance(bank: Bank) -> Finding:
    def judge(exam: Exam) -> tuple[bool, dict[str, float | int | str]]:
        ranks = exam.rank(torch.zeros(len(exam.rows), bank.dim))
        hit, chance = float(ranks.hits(5).mean()), ranks.chance(5)
        return abs(hit - chance) < 1e-12, {"hit@5": hit, "chance": chance}

    return _examined(bank, "a predictor that prefers nothing scores exactly chance", judge)


def _context_excluded(bank: Bank) -> Finding:
    def judge(exam: Exam) -> tuple[bool, dict[str, float | int | str]]:
        read = exam.copies_of_the_past()
        return read == 0, {"candidates_already_read": read}

    return _examined(bank, "no candidate is a row that the context already holds", judge)
