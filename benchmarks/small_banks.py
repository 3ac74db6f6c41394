"""Hit@5 of the weights of the package on small banks, by the shrinkage of the covariance that the space is fitted to.

    python benchmarks/small_banks.py books.bank technical.bank transcripts.bank encyclopedia.bank mixed_short.bank

Small banks are drawn from large ones: passages of consecutive rows. A bank holds every second row of its passages; the rows
between are read, so the rows that are read had no part in the fit. Each time the next row of the bank is predicted among all
rows of the bank that do not lie before it in its passage. Every column ranks the same rows among the same candidates.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.models.space import Space
from nextvec.runs.shipped import POWER, shipped_model
from table import show

SHAPES = ((1, 30), (10, 10), (1, 100), (4, 100), (60, 10))  # passages, and rows of each
DRAWS = 6  # small banks of a shape from each large bank
Rule = Callable[[np.ndarray, np.ndarray], Space]


def by_rule(mean: np.ndarray, rows: np.ndarray) -> Space:
    return Space.fitted(mean, np.cov(rows.T, bias=True), POWER, len(rows))


def unshrunk(mean: np.ndarray, rows: np.ndarray) -> Space:
    return Space.fitted(mean, np.cov(rows.T, bias=True), POWER, 2 * len(mean))


def centred(mean: np.ndarray, rows: np.ndarray) -> Space:
    return Space.fitted(mean, np.cov(rows.T, bias=True), 0.0, len(rows))


RULES: dict[str, Rule] = {"no shrinkage": unshrunk, "1 - rows / 2D": by_rule, "power 0": centred}


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    banks = [Bank.open(path) for path in arguments.banks]
    table: list[list[str]] = []
    for count, length in SHAPES:
        drawn = [drawn_passages(bank, count, 2 * length, n) for bank in banks for n in range(DRAWS)]
        hits = {name: np.array([hit5(passages, rule) for passages in drawn if passages]) for name, rule in RULES.items()}
        first = next(iter(hits.values()))
        cells = [f"{100 * found.mean():.1f}" for found in hits.values()]
        gains = [(100 * (found - first).mean(), 100 * (found - first).std() / len(first) ** 0.5) for found in hits.values()]
        table.append(
            [f"{count} x {length}", str(len(first)), *cells, *(f"{gain:+.1f} ± {error:.1f}" for gain, error in gains[1:])]
        )
    names = list(RULES)
    columns = ["passages x rows", "banks", *names, *(f"{name}, gain" for name in names[1:])]
    show("Hit@5 on small banks", columns, table, "gain over no shrinkage, ± one standard error over the banks")


def drawn_passages(bank: Bank, count: int, length: int, seed: int) -> list[np.ndarray]:
    """Passages of different documents, as far as there are enough; none if no document is long enough."""
    rng = np.random.default_rng(seed)
    long_enough = np.flatnonzero(bank.lengths >= length)
    if not len(long_enough):
        return []
    chosen = rng.choice(long_enough, count, replace=len(long_enough) < count)
    firsts = [int(rng.integers(bank.offsets[m], bank.offsets[m + 1] - length + 1)) for m in chosen]
    return [bank.rows[first : first + length].astype(np.float32) for first in firsts]


@torch.inference_mode()
def hit5(passages: list[np.ndarray], rule: Rule) -> float:
    rows = np.concatenate([passage[1::2] for passage in passages])
    model = shipped_model(rule(rows.astype(np.float64).mean(0), rows.astype(np.float64)))
    candidates = model.candidates(torch.from_numpy(rows))
    hits: list[bool] = []
    for n, passage in enumerate(passages):
        scores = model.scores(model(torch.from_numpy(passage[None, 0::2]))[0], candidates)
        first = n * len(scores)
        for t, row in enumerate(scores):
            row[first : first + t] = -torch.inf
            hits.append(bool((row > row[first + t]).sum() < 5))
    return float(np.mean(hits))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
