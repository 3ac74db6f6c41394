"""Tables of the experts experiment."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from nextvec.ranks import candidates_in_words

Json = Mapping[str, Any]


def experiment_tables(found: Json) -> None:
    """Every kind against those without experts, then by lane, then the active experts."""
    console = Console()
    kinds = found["kinds"]
    references = [kind["kind"] for kind in kinds if kind["experts"] is None]
    table = _table("kind", "parameters", "active", "Hit@5", "95 %", "seeds")
    lifts = _table("kind", *(f"over {reference}" for reference in references))
    for kind in kinds:
        hit, each = kind["hit@5"], [100 * seed for seed in kind["seeds"]]
        shares = (f"{hit['value']:.1%}", f"{100 * hit['low']:.1f}–{100 * hit['high']:.1f}", f"{min(each):.1f}–{max(each):.1f}")
        table.add_row(kind["kind"], f"{kind['parameters']:,}", f"{kind['active']:,}", *shares)
        lifts.add_row(kind["kind"], *(_points(kind["lift"].get(reference)) for reference in references))
    console.print(table, "", lifts, "", sep="\n")
    for kind in kinds:
        console.print(f"[dim]{kind['kind']}: {kind['what']}[/dim]", highlight=False)
    if found["lanes"] and references:
        _lanes(console, found, references[0])
    for kind in kinds:
        if use := kind["experts"]:
            console.print(
                f"{kind['kind']}: {use['used']} of {use['experts']} experts active in 1 % of the rows or more, none active in "
                f"{use['nobody']:.1%}; entropy {use['entropy_bits']:.2f} bits, {use['entropy_share']:.0%} of even",
                highlight=False,
            )
    exam = found["exam"]
    console.print(
        f"[dim]{exam['rows']:,} rows of {exam['documents']} test documents, "
        f"{candidates_in_words(exam)} candidates each · points of Hit@5, seeds averaged "
        f"by row, paired by row, resampled by document · exam {exam['id']}[/dim]",
        highlight=False,
    )
    for note in found["notes"]:
        console.print(f"[dim]{note}[/dim]", highlight=False)


def _lanes(console: Console, found: Json, reference: str) -> None:
    """Points gained over the model without experts; intervals only where they exclude 0, all of them in the JSON."""
    by_name = {kind["kind"]: kind for kind in found["kinds"]}
    names = [name for name in by_name if name != reference]
    table = _table("lane", reference, *(name[:6] for name in names))
    table.padding = (0, 1, 0, 0)
    shown: list[str] = []
    for lane in found["lanes"]:
        gains = {name: by_name[name]["lanes"][lane]["lift"][reference] for name in names}
        own = f"{by_name[reference]['lanes'][lane]['hit@5']['value']:.1%}"
        table.add_row(lane, own, *(_gain(gain) for gain in gains.values()))
        shown += [f"{name} in {lane}: {_points(gain)}" for name, gain in gains.items() if _is_shown(gain)]
    console.print("", table, sep="\n")
    chance = (
        f"of {len(names) * len(found['lanes'])} intervals at 95 % about {0.05 * len(names) * len(found['lanes']):.0f} would"
    )
    sizes = ", ".join(f"{lane} {held['rows']:,} of {held['documents']:,}" for lane, held in found["lanes"].items())
    console.print(f"[dim]rows of documents: {sizes}[/dim]", highlight=False)
    console.print(f"[dim]bold: the interval excludes 0; {chance} by chance[/dim]", *shown, "", sep="\n", highlight=False)


def _gain(lift: Json) -> str:
    value = f"{100 * lift['value']:+.1f}"
    return f"[bold]{value}[/bold]" if _is_shown(lift) else value


def _is_shown(lift: Json) -> bool:
    return lift["low"] > 0 or lift["high"] < 0


def _points(lift: Json | None) -> str:
    if lift is None:
        return ""
    shown = f"{100 * lift['value']:+.1f} ({100 * lift['low']:+.1f} to {100 * lift['high']:+.1f})"
    return f"[bold]{shown}[/bold]" if _is_shown(lift) else shown


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table
