"""How well the surprise of a chunk finds the boundary between two documents.

    python benchmarks/surprise.py books.bank technical.bank runs/first ... --out surprise.json

The test documents of each bank, or of the bank of a run, are cut into segments of 20 to 60 rows, and segments of different
documents are joined to sequences of ten segments. The first row of a segment is a boundary. The area under the ROC curve (AUC)
is the probability that a boundary has a higher value than another row. The values: surprise in bits; 1 - cosine of a row and
the row before it, of the raw rows and as the model compares them (in its space); and 1 - cosine of the mean of the five rows
before and the mean of the five rows from there on: the block comparison of TextTiling (Hearst 1997), which reads four rows on.
Intervals resample the sequences. A bank is predicted by the weights of the package in the space of its training documents.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from rich.console import Console
from rich.table import Table

from nextvec.bank import Bank
from nextvec.confidence import Calibration
from nextvec.evaluation.calibration import calibrate
from nextvec.evaluation.surprise import surprise
from nextvec.models import Recurrent

SHORTEST, LONGEST, SEGMENTS = 20, 60, 10
BLOCK = 5  # rows on each side of a place
RESAMPLES = 1_000
SURPRISE = "surprise"


def sequences(bank: Bank, documents: Int64[np.ndarray, " M"], most: int, seed: int) -> list[list[np.ndarray]]:
    """Sequences of segments; neighbouring segments come from different documents.

    Args:
        most: sequences.
    """
    rng = np.random.default_rng(seed)
    left: dict[int, list[np.ndarray]] = {}
    for m in documents.tolist():
        at, last, parts = int(bank.offsets[m]), int(bank.offsets[m + 1]), []
        while at < last:
            length = int(rng.integers(SHORTEST, LONGEST + 1))
            parts.append(np.arange(at, min(at + length, last)))
            at += length
        left[m] = [parts[n] for n in rng.permutation(len(parts)) if len(parts[n]) >= SHORTEST]
    made: list[list[np.ndarray]] = []
    while len(made) < most:
        joined: list[np.ndarray] = []
        before = -1
        while len(joined) < SEGMENTS:
            open_ones = [m for m, parts in left.items() if parts and m != before]
            if not open_ones:
                return made
            # Long documents first, so that what is left at the end is of several documents.
            before = max(open_ones, key=lambda m: (len(left[m]), rng.random()))
            joined.append(left[before].pop())
        made.append(joined)
    return made


def area_under_curve(values: Float64[np.ndarray, " N"], positive: Bool[np.ndarray, " N"]) -> float:
    """The area under the ROC curve: the share of pairs of a positive and a negative in which the positive has more.

    Equal values count one half (Mann and Whitney 1947).
    """
    _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
    mid_ranks = (np.cumsum(counts) - (counts - 1) / 2)[of]
    p, n = int(positive.sum()), int((~positive).sum())
    return float((mid_ranks[positive].sum() - p * (p + 1) / 2) / (p * n))


def measures(
    model: Recurrent[Any], calibration: Calibration, bank: Bank, segments: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The value of each measure at every row that has all of them, and which of these rows are boundaries."""
    rows = np.concatenate(segments)
    starts = np.cumsum([len(part) for part in segments])[:-1]
    raw = bank.rows[rows].astype(np.float64)
    with torch.inference_mode():
        mapped = model.candidates(torch.from_numpy(bank.rows[rows].astype(np.float32))).double().numpy()
    values = {
        SURPRISE: surprise(model, calibration, bank, rows).bits,
        "cosine of neighbours": _neighbours(raw),
        "cosine of neighbours, in space": _neighbours(mapped),
        "blocks of five": _blocks(raw),
        "blocks of five, in space": _blocks(mapped),
    }
    there = np.all([np.isfinite(value) for value in values.values()], axis=0)
    boundary = np.isin(np.arange(len(rows)), starts)
    return {name: value[there] for name, value in values.items()}, boundary[there]


def _neighbours(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([[np.nan], 1 - _cosines(rows[1:], rows[:-1])])


def _blocks(rows: np.ndarray) -> np.ndarray:
    total = np.concatenate([np.zeros((1, rows.shape[1])), rows.cumsum(0)])
    out, at = np.full(len(rows), np.nan), np.arange(BLOCK, len(rows) - BLOCK + 1)
    out[at] = 1 - _cosines(total[at] - total[at - BLOCK], total[at + BLOCK] - total[at])
    return out


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def compared(found: Sequence[tuple[dict[str, np.ndarray], np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per measure, the AUC and the AUC of surprise minus it: the value on all sequences, then those of the resamples."""
    rng = np.random.default_rng(0)
    draws = [np.arange(len(found)), *(rng.integers(len(found), size=len(found)) for _ in range(RESAMPLES))]
    areas: dict[str, np.ndarray] = {}
    for name in found[0][0]:
        areas[name] = np.array(
            [
                area_under_curve(np.concatenate([found[n][0][name] for n in draw]), np.concatenate([found[n][1] for n in draw]))
                for draw in draws
            ]
        )
    return {name: (area, areas[SURPRISE] - area) for name, area in areas.items()}


def _interval(values: np.ndarray, sign: str = "") -> str:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main(arguments: argparse.Namespace) -> None:
    from calibration import Opened  # beside this file

    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    table = Table("source", "rows", "boundaries", "measure", "AUC", "surprise minus it", box=None)
    for path in arguments.sources:
        opened = Opened.at(path)
        calibration = calibrate(opened.model, opened.bank, opened.parts)
        made = sequences(opened.bank, opened.parts.test, arguments.sequences, arguments.seed)
        found = [measures(opened.model, calibration, opened.bank, segments) for segments in made]
        rows, boundaries = sum(len(of) for _, of in found), sum(int(of.sum()) for _, of in found)
        about = {"source": opened.name, "bank": opened.bank.fingerprint, "sequences": len(found), "rows": rows}
        areas = compared(found)
        results.append({**about, "boundaries": boundaries, "auc": {name: _to_json(area) for name, (area, _) in areas.items()}})
        for n, (name, (area, ahead)) in enumerate(areas.items()):
            first = (opened.name, f"{rows:,}", f"{boundaries:,}") if n == 0 else ("", "", "")
            table.add_row(*first, name, _interval(area), "" if name == SURPRISE else _interval(ahead, "+"))
    Console(width=130).print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"sources": results}, indent=1) + "\n")


def _to_json(values: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="BANK|RUN")
    parser.add_argument("--sequences", type=int, default=20, help="at most, for each source")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
