"""How well the probabilities of answers agree with what came, on the test documents of banks or runs.

    python benchmarks/calibration.py books.bank technical.bank runs/first ... --out calibration.json

A bank is predicted by the weights of the package in the space of its training documents. The event is "the next vector is among
the first k of all vectors of the bank that the context does not hold". Three ways to give it a probability are compared:

- fitted: the calibration of nextvec, fitted on the valid documents;
- usual: the calibration before any fit, which is the mean of those of other banks;
- constant: for every answer the share that was found on the valid documents.

The last line is the mean of the fitted calibrations: what USUAL in nextvec.confidence.fit was taken from.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.confidence import USUAL, Calibration, Reliability, fit
from nextvec.confidence.fit import log_loss
from nextvec.evaluation.answers import Answers, answers
from nextvec.evaluation.calibration import ROWS
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.predictions import predict_rows
from nextvec.evaluation.report import HITS
from nextvec.models import Recurrent
from nextvec.models.space import Space
from nextvec.runs import bank_of, load_model, open_source
from nextvec.runs.shipped import CONTEXT, POWER, shipped_model, shipped_settings
from nextvec.windows import Split, split


@dataclass(frozen=True, eq=False)
class Opened:
    """A run, or a bank with the weights of the package.

    Attributes:
        model: made without the valid and test documents.
        context: vectors that it was trained to read.
    """

    name: str
    bank: Bank
    parts: Split
    model: Recurrent[Any]
    context: int | None

    @staticmethod
    def at(path: Path) -> "Opened":
        source = open_source(path)
        bank = bank_of(source)
        if not isinstance(source, Bank):
            return Opened(source.name, bank, source.split(bank), load_model(source), source.settings.passages.context)
        shares = shipped_settings().split
        parts = split(bank, shares.valid, shares.test)
        found = moments(bank, parts.train)
        model = shipped_model(Space.fitted(found.mean, found.covariance, POWER, found.rows))
        return Opened(path.name, bank, parts, model, CONTEXT)

    def answers(self, documents: np.ndarray, part: str, context: int | None) -> Answers:
        exam = Exam.over(self.bank, documents, part, None, ROWS)
        return answers(exam, self.model, predict_rows(self.model, self.bank, exam.rows, context), context)


def measured(opened: Opened) -> tuple[Calibration, dict[str, dict[int, Reliability]]]:
    """The fitted calibration; and for each way and k the probabilities on the test documents."""
    known = opened.answers(opened.parts.valid, "valid", None)
    test = opened.answers(opened.parts.test, "test", opened.context)
    fitted = fit(known.scores, known.places, known.documents)
    ways = {name: {k: test.reliability(by, k) for k in HITS} for name, by in (("fitted", fitted), ("usual", USUAL))}
    shares = {k: np.full(len(test.places), (known.places < k).mean()) for k in HITS}
    ways["constant"] = {k: Reliability(k, shares[k], test.places < k, test.documents) for k in HITS}
    return fitted, ways


def main(paths: list[Path], out: Path | None) -> None:
    torch.set_num_threads(1)
    console, calibrations, results = Console(width=140), [], []
    for path in paths:
        opened = Opened.at(path)
        calibration, ways = measured(opened)
        calibrations.append(calibration)
        about = {"source": opened.name, "bank": opened.bank.fingerprint, "calibration": asdict(calibration)}
        judged = {way: [_to_json(of) for of in by_k.values()] for way, by_k in ways.items()}
        results.append({**about, "ways": judged})
        console.print(_table(opened.name, calibration, judged), "")
    level, growth = (float(np.mean([getattr(of, name) for of in calibrations])) for name in ("level", "growth"))
    console.print(f"mean calibration: level {level:.2f}, growth {growth:+.2f}", highlight=False)
    if out is not None:
        out.write_text(json.dumps({"sources": results, "mean": {"level": level, "growth": growth}}, indent=1) + "\n")


def _to_json(of: Reliability) -> dict[str, Any]:
    return {**of.to_json(), "log_loss": log_loss(of.probabilities, of.found)}


def _table(name: str, calibration: Calibration, judged: Mapping[str, list[dict[str, Any]]]) -> Table:
    rows = judged["fitted"][0]["found"]["n"]
    title = f"{name}: fitted on {calibration.rows:,} rows of {calibration.documents} documents, judged on {rows:,} rows"
    columns = ("way", "k", "mean probability", "found", "calibration error", "95 %", "if all were right", "logarithmic loss")
    table = Table(*columns, title=title, box=None)
    for way, each in judged.items():
        for of in each:
            error = of["calibration_error"]
            figures = (f"{of['probability']:.1%}", f"{of['found']['value']:.1%}", f"{error['value']:.3f}")
            interval = f"{error['low']:.3f} to {error['high']:.3f}"
            table.add_row(
                way, f"{of['k']}", *figures, interval, f"{of['calibration_error_by_chance']:.3f}", f"{of['log_loss']:.4f}"
            )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="BANK|RUN")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON, with diagrams and prefetch tables")
    given = parser.parse_args()
    main(given.sources, given.out)
