"""Tables of probabilities: the reliability of answers, what a prefetch is worth, and the surprise along a document."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 24  # characters of the longest bar
SHOWN_K = 5  # the answer that the tables show; --json has all


def confidence_tables(confidence: Mapping[str, Any]) -> None:
    """The reliability of the probability that the next vector is among the first five, and the worth of fetching them."""
    console = Console()
    found = next(answer for answer in confidence["answers"] if answer["k"] == SHOWN_K)
    error = found["calibration_error"]
    console.print(
        f"\nprobability that the next vector is among the first {SHOWN_K} of the whole bank: mean {found['probability']:.1%}, "
        f"found {found['found']['value']:.1%} · expected calibration error [bold]{error['value']:.3f}[/bold] "
        f"(95 % {error['low']:.3f} to {error['high']:.3f}, by document; {found['calibration_error_by_chance']:.3f} if every "
        f"probability were right; {len(found['bins'])} bins of equal mass)",
        highlight=False,
    )
    table = _table("probability", "found", "95 % interval")
    for each in found["bins"]:
        share = each["found"]
        table.add_row(f"{each['probability']:.1%}", f"{share['value']:.1%}", f"{share['low']:.1%} – {share['high']:.1%}")
    console.print(table)
    console.print(f"\n[dim]what it is worth to fetch these {SHOWN_K} in advance, from a probability on[/dim]", highlight=False)
    table = _table("probability", "fetched", "next chunks found", "right when fetched")
    for row in found["prefetch"]:
        right = "" if row["precision"] is None else f"{row['precision']:.1%}"
        table.add_row(f"{row['threshold']:.0%}", f"{row['fetched']:.1%}", f"{row['found']:.1%}", right)
    console.print(table)


def surprise_table(found: Mapping[str, Any], top: int | None) -> None:
    """The bits of every chunk of a document, or of its ``top`` most surprising ones, in the order of the document."""
    scored = [chunk for chunk in found["chunks"] if chunk["bits"] is not None]
    most = max(chunk["bits"] for chunk in scored)
    shown = found["chunks"] if top is None else sorted(scored, key=lambda chunk: -chunk["bits"])[:top]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("chunk", "bits", "rank"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_column("text", overflow="ellipsis", no_wrap=True)
    for chunk in sorted(shown, key=lambda chunk: chunk["index"]):
        bits, text = chunk["bits"], " ".join((chunk["text"] or f"row {chunk['row']:,}").split())
        values = ("", "", "") if bits is None else (f"{bits:.1f}", f"{chunk['rank']:,.0f}", "█" * round(WIDTH * bits / most))
        table.add_row(f"{chunk['index'] + 1:,}", *values, text, style=None if bits is not None else "dim")
    console = Console()
    console.print(table)
    console.print(
        f"[dim]{found['document']['title']}: mean {found['mean_bits']:.2f} bits of {len(scored):,} chunks, "
        f"{found['candidates']:,} vectors in the bank, model {found['model']}[/dim]",
        highlight=False,
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right")
    return table
