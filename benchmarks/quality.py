"""Hit@5 of the default model on several banks, beside every baseline; and what each part of the model is worth.

    python benchmarks/quality.py transcripts.bank books.bank ... --out quality
    python benchmarks/quality.py transcripts.bank books.bank ... --out quality --ablations

The first command trains the recipe ``default`` with three seeds on each bank, and prints a table for 1,000 candidates and one
for all. The exams score unseen documents. A column shows the best baseline of its kind on this exam, chosen after the fact. The
weights of the package are read in a space that is fitted to the training documents. Several seeds are averaged row by row.

The second command trains variants of the model from new weights, without one part each, and scores valid documents. Each run
kept the weights of its best look at these documents, so only differences between rows of the table mean something.

OUT holds the runs and what was measured. The same command goes on where it was stopped.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nextvec.bank import Bank
from nextvec.bank.layout import write_atomically
from nextvec.evaluation import Exam, predict_rows
from nextvec.evaluation.baselines import baseline_ranks, is_raw, together
from nextvec.experiments.executor import LocalProcesses, Task
from nextvec.experiments.runs import train_all
from nextvec.experiments.seeds import average, average_lift
from nextvec.models.space import Space
from nextvec.ranks import Ranks
from nextvec.recipes import recipe
from nextvec.runs import Run, load_model
from nextvec.runs.shipped import POWER, shipped_model

POOLS = {"1,000 candidates": 1000, "all candidates": None}
NEW = {"start": "", "lr": 5e-3, "updates": 300}
PARTS: dict[str, dict[str, object]] = {
    "all parts": {},
    "raw rows, no space": {"space": "raw"},
    "no pooled lags": {"pooled": 0},
    "no working memory": {"working": 0},
    "no gates": {"gates": False},
    "space fitted to the rows that are read, no folds": {"folds": 1},
    "InfoNCE in place of smooth misses": {"alpha": 1.0, "misses": 0.0},
}


def main(arguments: argparse.Namespace) -> None:
    banks = {path.stem: Bank.open(path) for path in map(Path, arguments.banks)}
    if arguments.ablations:
        show_parts({name: parts_of(bank, arguments.out / name, arguments.seeds) for name, bank in banks.items()})
    else:
        found = {name: measured(bank, arguments.out / name, arguments.seeds) for name, bank in banks.items()}
        for title in POOLS:
            show(title, {name: tables[title] for name, tables in found.items()})


def trained(bank: Bank, out: Path, seeds: int, **settings: object) -> list[Run]:
    chosen = recipe("default", len(bank)).replaced(**settings)
    tasks = [Task(out / f"seed-{seed}", "default", chosen.replaced(seed=seed)) for seed in range(seeds)]
    return train_all(tasks, bank, LocalProcesses())


def measured(bank: Bank, out: Path, seeds: int) -> dict[str, dict[str, Any]]:
    """The rows of both tables for one bank."""
    runs = trained(bank, out, seeds)
    return {
        title: kept(out / f"test-{pool or 'all'}.json", bank, seeds, lambda p=pool: row(bank, runs, p))
        for title, pool in POOLS.items()
    }


def kept(file: Path, bank: Bank, seeds: int, measure: Any) -> dict[str, Any]:
    """What was measured before on the same bank with as many seeds, or measured now."""
    if file.exists():
        found = json.loads(file.read_text())
        if (found["bank"], found["seeds"]) == (bank.fingerprint, seeds):
            return found
    found = {"bank": bank.fingerprint, "seeds": seeds, **measure()}
    write_atomically(file, json.dumps(found, indent=1).encode())
    return found


def row(bank: Bank, runs: Sequence[Run], pool: int | None) -> dict[str, Any]:
    first, exam = runs[0], Exam.over(bank, runs[0].split(bank).test, "test", pool)
    context, moments = first.settings.passages.context, first.moments()
    baselines = baseline_ranks(exam, list(together(moments, (bank, first.split(bank).train))), context)
    package = shipped_model(Space.fitted(moments.mean, moments.covariance, POWER, moments.rows))
    best = {
        kind: max((n for n in baselines if is_raw(n) == raw), key=lambda n: baselines[n].hits(5).mean())
        for kind, raw in (("raw", True), ("space", False))
    }
    of = {
        "package": [exam.rank(predict_rows(package, bank, exam.rows, context), package)],
        "trained": [exam.rank(predict_rows(model, bank, exam.rows, context), model) for model in map(load_model, runs)],
    }
    return {
        "exam": exam.id,
        "rows": len(exam.rows),
        "documents": len(set(exam.clusters.tolist())),
        "baselines": {kind: {"name": name, **baselines[name].hit(5).to_json()} for kind, name in best.items()},
        **{
            who: {"hit@5": average(ranks, 5).to_json(), "seeds": [100 * float(each.hits(5).mean()) for each in ranks]}
            | {f"over {kind}": average_lift(ranks, [baselines[name]], 5).to_json() for kind, name in best.items()}
            for who, ranks in of.items()
        },
    }


def parts_of(bank: Bank, out: Path, seeds: int) -> dict[str, dict[str, Any]]:
    """The rows of the table of parts for one bank."""
    found: dict[str, dict[str, Any]] = {}
    full: list[Ranks] = []
    for n, (part, settings) in enumerate(PARTS.items()):
        runs = trained(bank, out / "parts" / str(n), seeds, **{**NEW, **settings})
        exam = Exam.over(bank, runs[0].split(bank).valid, "valid", None)
        exam = exam.among(min(1000, exam.largest_pool))
        context = runs[0].settings.passages.context
        ranks = [exam.rank(predict_rows(model, bank, exam.rows, context), model) for model in map(load_model, runs)]
        full = full or ranks
        found[part] = {"hit@5": average(ranks, 5), "change": average_lift(ranks, full, 5)}
        print(f"{out.name}: {part} {found[part]['hit@5']}", flush=True)
    return found


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    columns = (
        "bank",
        "rows",
        "best raw",
        "best in a space",
        "package",
        "over raw",
        "over the space",
        "trained",
        "over raw",
        "over the space",
    )
    table = Table(*columns, title=f"Hit@5 among {title}", title_justify="left", box=None)
    for name, each in found.items():
        figures = [f"{100 * each['baselines'][kind]['value']:.1f}" for kind in ("raw", "space")]
        lifts = [
            [one(each[who]["hit@5"]), *(signed(each[who][f"over {kind}"]) for kind in ("raw", "space"))]
            for who in ("package", "trained")
        ]
        table.add_row(name, f"{each['rows']:,}", *figures, *lifts[0], *lifts[1])
    Console(width=180).print(table)


def show_parts(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    table = Table("valid Hit@5", *found, box=None)
    for part in PARTS:
        cells = [each[part] for each in found.values()]
        table.add_row(
            part, *(one(c["hit@5"].to_json()) if part == "all parts" else signed(c["change"].to_json()) for c in cells)
        )
    Console(width=180).print(table)


def one(rate: dict[str, float]) -> str:
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def signed(rate: dict[str, float]) -> str:
    return f"{100 * rate['value']:+.1f} ({100 * rate['low']:+.1f} to {100 * rate['high']:+.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and measurements")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablations", action="store_true", help="print what each part of the model is worth")
    main(parser.parse_args())
