"""What a space does to the documents that it was fitted on.

    python benchmarks/crossfit.py transcripts.bank books.bank

Hit@5 of untrained exponential means in a space of power 0.5, on four exams: training documents in the space of all training
documents; the same documents, each in a space that was fitted without it; valid documents; test documents. The first two
have the same scored rows and candidates, and only the space differs.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nextvec.bank import Bank
from nextvec.bank.moments import Moments, moments
from nextvec.evaluation.baselines import DECAYS, baseline_ranks, means_in_space
from nextvec.evaluation.exam import Exam
from nextvec.recipes import recipe
from nextvec.training.folds import deal
from nextvec.windows import split

POWER, ROWS = 0.5, 500


def main(arguments: argparse.Namespace) -> None:
    table = Table("bank", "documents", "space fitted on", *(f"{decay:g}" for decay in DECAYS), box=None)
    settings = recipe("default", 0)
    for path in arguments.banks:
        bank = Bank.open(path)
        parts = split(bank, settings.split.valid, settings.split.test)
        own, inside, outside = moments(bank, parts.train), [], []
        for documents, others in deal(settings, bank, parts.train):
            exam = Exam.over(bank, documents, "train", None, ROWS)
            exam = exam.among(min(1000, exam.largest_pool))
            inside.append(_hits(exam, own))
            outside.append(_hits(exam, others))
        rows = {("training", "them, too"): inside, ("training", "others"): outside}
        for part in ("valid", "test"):
            exam = Exam.over(bank, parts.part(part), part, None, 2000)
            rows[part, "training documents"] = [_hits(exam.among(min(1000, exam.largest_pool)), own)]
        for (documents, fitted), hits in rows.items():
            table.add_row(Path(path).stem, documents, fitted, *(f"{100 * h:.1f}" for h in np.concatenate(hits, axis=1).mean(1)))
    Console(width=140).print(table)


def _hits(exam: Exam, found: Moments) -> np.ndarray:
    """Hit@5 of each decay and scored row."""
    ranks = baseline_ranks(exam, [means_in_space(found, POWER)], None)
    return np.stack([each.hits(5) for each in ranks.values()])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", nargs="+")
    main(parser.parse_args())
