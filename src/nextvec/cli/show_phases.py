"""Tables of the phases and of the context experiment."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from nextvec.ranks import candidates_in_words

Json = Mapping[str, Any]


def phases_table(found: Json) -> None:
    """Every phase on one exam, its lift, and the effect of the shrinking pool."""
    console, exam = Console(), found["exam"]
    table = _table("recipe", "context", "Hit@1", "Hit@5", "95 %", "Hit@10", "reported")
    lifts = _table("recipe", "change", "lift", "verdict")
    for row in found["phases"]:
        hit, reported = row["hit@5"], row["reported"]
        style = "bold cyan" if row["lift"]["low"] > 0 else ""
        table.add_row(
            row["recipe"],
            f"{row['context']:,}",
            f"{row['hit@1']['value']:.1%}",
            f"{hit['value']:.1%}",
            f"{100 * hit['low']:.1f} – {100 * hit['high']:.1f}",
            f"{row['hit@10']['value']:.1%}",
            f"{100 * reported['hit@5']:.1f} of {reported['candidates']:,}" if reported else "",
            style=style,
        )
        change = _points(row["change"]) if row["change"] else ""
        lifts.add_row(row["recipe"], change, _points(row["lift"]), row["verdict"], style=style)
    console.print(table, "", lifts, sep="\n")
    for row in found["phases"]:
        if use := row["experts"]:
            console.print(
                f"{row['recipe']}: {use['used']} of {use['experts']} experts active in 1 % of the rows or more, none active in "
                f"{use['nobody']:.1%}; gate entropy {use['entropy_bits']:.2f} bits, {use['entropy_share']:.0%} of even",
                highlight=False,
            )
    if found["illusion"]["steps"]:
        _pool_effect(console, found)
    _terms(console, exam, found["notes"])
    if found["waiting"]:
        console.print(f"[dim]not finished: {', '.join(found['waiting'])}[/dim]", highlight=False)
    for row in found["phases"]:
        for alarm in row["alarms"]:
            console.print(f"[dim]{row['recipe']}: {alarm}[/dim]", highlight=False)


def context_tables(found: Json) -> None:
    """The verdicts, then Hit@5 by trained context, by context in the exam, and with a disturbed far context."""
    console = Console()
    for verdict in found["verdicts"]:
        console.print(f"[bold]{verdict}[/bold]", highlight=False)
    effects = {
        "trained with": found["trained"],
        f"trained with {found['longest']:,}, may read": found["truncated"],
        f"all but the last {found['disturbed']['near']:,}": found["disturbed"]["effects"],
    }
    for title, rows in effects.items():
        table = _table(title, "Hit@5", "95 % interval", "change")
        for row in rows:
            hit = row["hit@5"]
            interval = f"{hit['low']:.1%} – {hit['high']:.1%}"
            table.add_row(row["name"], f"{hit['value']:.1%}", interval, _points(row["change"]))
        console.print("", table, sep="\n")
    _terms(console, found["exam"], found["notes"])


def _pool_effect(console: Console, found: Json) -> None:
    name, steps = found["illusion"]["untrained"], found["illusion"]["steps"]
    table = _table("phase", "candidates", "reported", f"among them: {name}", f"among {candidates_in_words(found['exam'])}")
    for step in steps:
        shown = (step["untrained"][line]["value"] for line in ("shrinking", "fixed"))
        reported = f"{step['reported']['hit@5']:.1%}"
        table.add_row(step["phase"], f"{step['pool']:,}", reported, *(f"{value:.1%}" for value in shown))
    console.print("", table, sep="\n")
    console.print(
        "[dim]untrained: a rise in the first of these two columns alone comes from the pool, not from the model[/dim]"
    )


def _terms(console: Console, exam: Json, notes: list[str]) -> None:
    console.print(
        f"\n[dim]Hit@5 of {exam['rows']:,} rows of {exam['documents']} {exam['part']} documents, "
        f"{candidates_in_words(exam)} candidates each · changes in points, paired by row, resampled by document[/dim]",
        highlight=False,
    )
    for note in notes:
        console.print(f"[dim]{note}[/dim]", highlight=False)


def _points(rate: Json) -> str:
    return f"{100 * rate['value']:+.1f} ({100 * rate['low']:+.1f} to {100 * rate['high']:+.1f})"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=name != "verdict")
    return table
