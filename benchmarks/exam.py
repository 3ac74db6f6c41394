"""Processor time of ranking a model and its baselines on one exam, beside the products alone.

python benchmarks/exam.py [--rows 20000]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.evaluation import Exam
from nextvec.evaluation.exam import BLOCK
from table import show

PREDICTORS = 13  # a model and the baselines of a report that rank the rows themselves
DIM = 384
LENGTHS = {"40 documents": 40, "4 documents": 4}


def bank_of(rows: int, documents: int) -> Bank:
    """Random unit rows, dealt evenly."""
    vectors = np.random.default_rng(0).standard_normal((rows, DIM)).astype(np.float32)
    return Bank.from_numpy(vectors, [rows // documents] * documents)


def products(exam: Exam, predicted_RD: torch.Tensor, columns: int) -> None:
    """The matrix products of one ranking, nothing compared."""
    vectors_CD = torch.from_numpy(exam.bank.rows[exam.order[:columns]]).float()
    for start in range(0, len(exam.rows), BLOCK):
        predicted_RD[start : start + BLOCK] @ vectors_CD.T


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def measured(bank: Bank, documents: int, pool: int | None) -> list[str]:
    """Scored rows; seconds of the products alone and of all ranks, and their ratio; size of the candidates."""
    exam = Exam.over(bank, np.arange(max(1, documents // 4)), "test", pool)
    seeds = [torch.Generator().manual_seed(n) for n in range(PREDICTORS)]
    predicted = [torch.randn(len(exam.rows), DIM, generator=seed) for seed in seeds]
    width = len(exam.order) if pool is None else min(len(exam.order), pool - 1 + int(bank.lengths.max()))
    bare = seconds(lambda: [products(exam, p, width) for p in predicted])
    every = seconds(lambda: [exam.rank(p) for p in predicted])
    held = sum(array.nbytes for array in vars(exam.candidate_sets).values()) / 1e3
    return [f"{len(exam.rows):,}", f"{bare:.2f}", f"{every:.2f}", f"{every / bare:.2f}", f"{held:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table: list[list[str]] = []
    for name, documents in LENGTHS.items():
        bank = bank_of(arguments.rows, documents)
        table += [[name, str(pool or "all"), *measured(bank, documents, pool)] for pool in (1000, None)]
    show(
        f"Ranking {PREDICTORS} predictors, {arguments.rows:,} rows of {DIM}",
        ("bank", "pool", "scored rows", "products alone, s", "all ranks, s", "ratio", "candidates, kB"),
        table,
        "Processor seconds on one thread.",
    )


if __name__ == "__main__":
    main()
