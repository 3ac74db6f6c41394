"""Tables of what experts are worth."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Json = Mapping[str, Any]


def experiment_tables(found: Json) -> None:
    """Every kind beside those without experts, then lane by lane, then whom the experts' predictions heard."""
    console = Console()
    kinds = found["kinds"]
    rivals = [kind["kind"] for kind in kinds if kind["experts"] is None]
    table = _table("kind", "parameters", "active", "Hit@5", "seeds", *(f"over {rival}" for rival in rivals))
    for kind in kinds:
        hit = f"{kind['hit@5']['value']:.1%}"
        seeds = f"{100 * min(kind['seeds']):.1f}–{100 * max(kind['seeds']):.1f}"
        lifts = [_points(kind["lift"].get(rival)) for rival in rivals]
        table.add_row(kind["kind"], f"{kind['parameters']:,}", f"{kind['active']:,}", hit, seeds, *lifts)
    console.print(table)
    for kind in kinds:
        console.print(f"[dim]{kind['kind']}: {kind['what']}[/dim]", highlight=False)
    if found["lanes"] and rivals:
        _lanes(console, found, rivals[0])
    for kind in kinds:
        if use := kind["experts"]:
            console.print(
                f"{kind['kind']}: {use['used']} of {use['experts']} experts heard by 1 % of the rows or more, nobody by "
                f"{use['nobody']:.1%}; entropy {use['entropy_bits']:.2f} bits, {use['entropy_share']:.0%} of even",
                highlight=False,
            )
    exam = found["exam"]
    pool = "all" if exam["pool"] is None else f"{exam['pool']:,}"
    console.print(
        f"[dim]{exam['rows']:,} rows of {exam['documents']} test documents, {pool} candidates each · points of Hit@5, seeds "
        f"averaged by row, paired by row, resampled by document · exam {exam['id']}[/dim]",
        highlight=False,
    )
    for note in found["notes"]:
        console.print(f"[dim]{note}[/dim]", highlight=False)


def _lanes(console: Console, found: Json, rival: str) -> None:
    names = [kind["kind"] for kind in found["kinds"] if kind["kind"] != rival]
    table = _table("lane", "rows", "docs", f"{rival}, Hit@5", *(f"{name}, over it" for name in names))
    by_name = {kind["kind"]: kind for kind in found["kinds"]}
    for lane, held in found["lanes"].items():
        own = f"{by_name[rival]['lanes'][lane]['hit@5']['value']:.1%}"
        lifts = [_points(by_name[name]["lanes"][lane]["lift"].get(rival)) for name in names]
        table.add_row(lane, f"{held['rows']:,}", f"{held['documents']:,}", own, *lifts)
    console.print("", table, "", sep="\n")


def _points(lift: Json | None) -> str:
    if lift is None:
        return ""
    shown = f"{100 * lift['value']:+.1f} ({100 * lift['low']:+.1f} to {100 * lift['high']:+.1f})"
    return f"[bold]{shown}[/bold]" if lift["low"] > 0 or lift["high"] < 0 else shown


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table
