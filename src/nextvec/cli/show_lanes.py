"""Lanes on the terminal: their shares of a bank, their agreement with labels, examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nextvec.ranks import Rate

FEW_DOCUMENTS = 10
FEW = 6  # columns with their names whole
CONFIDENCE = {
    "chance": "dealt by chance: confidence is 1 and says nothing",
    "labels": "labelled documents have confidence 1, others a softmax fitted to the labels",
}


def census_table(found: Mapping[str, Any]) -> None:
    """The shares, what is uneven about them, the agreement, and examples."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("lane")
    for name in ("chunks", "share", "documents", "share", "confidence", "unsure", ""):
        table.add_column(name, justify="right")
    for lane in found["lanes"]:
        table.add_row(
            lane["name"],
            f"{lane['rows']:,}",
            f"{lane['share']:.1%}",
            f"{lane['documents']:,}",
            f"{lane['document_share']:.1%}",
            f"{lane['confidence']:.2f}",
            f"{lane['unsure']:.0%}",
            "starved" if lane["starved"] else "",
        )
    console.print(table)
    print(
        f"\nentropy {found['entropy']:.2f} bits, {found['evenness']:.0%} of even · unsure {found['unsure']:.1%} of the chunks"
    )
    print(f"starved: {len(found['starved'])} of {len(found['lanes'])} lanes")
    console.print(f"[dim]{_confidence(found)}[/dim]", highlight=False)
    if found["agreement"]:
        _agreement(found["agreement"], console)
    _examples(found["lanes"], console)
    if found["out"]:
        print(f"\nThe lanes: {found['out']}")


def lane_table(lanes: Mapping[str, Any], lift: str) -> None:
    """Hit@K lane by lane, and what is gained in each."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("lane")
    for name in ("rows", "docs", "Hit@5", "95 %", "Hit@10", lift):
        table.add_column(name, justify="right", no_wrap=True)
    for name, figures in lanes.items():
        hit, gain = figures["hit@5"], figures["lift"]["hit@5"]
        shown = gain["low"] > 0 or gain["high"] < 0
        points = f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        table.add_row(
            escape(name),
            f"{figures['rows']:,}",
            f"{figures['documents']:,}",
            f"{hit['value']:.1%}",
            f"{100 * hit['low']:.1f}–{100 * hit['high']:.1f}",
            f"{figures['hit@10']['value']:.1%}",
            points,
            style="bold" if shown else "",
        )
    console.print("", table, sep="\n")
    few = sum(figures["documents"] < FEW_DOCUMENTS for figures in lanes.values())
    console.print(
        f"[dim]bold: the interval of the lift lies off 0; of {len(lanes)} at 95 % about {0.05 * len(lanes):.1f} do by chance · "
        f"{few} lanes have fewer than {FEW_DOCUMENTS} documents: their intervals are narrower than they ought to be[/dim]",
        highlight=False,
    )


def experts_table(use: Mapping[str, Any]) -> None:
    """How often each expert was active, and how even that is."""
    console = Console()
    shares = " ".join(f"{share:.0%}" for share in use["use"])
    console.print(
        f"\nexperts: {use['used']} of {use['experts']} active in at least 1 % of the rows, none in {use['nobody']:.1%}; gate "
        f"entropy {use['entropy_bits']:.2f} bits, {use['entropy_share']:.0%} of even\n[dim]active in {shares}[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def _confidence(found: Mapping[str, Any]) -> str:
    default = (
        f"confidence is calibrated to the labels (temperature {found['temperature']:.3f})"
        if found["calibrated"]
        else f"confidence is by margins alone (temperature {found['temperature']:.3f}): it orders, but is no accuracy"
    )
    return CONFIDENCE.get(found["kind"], default)


def _agreement(found: Mapping[str, Any], console: Console) -> None:
    chunks, documents, balanced = (Rate(**found[name]) for name in ("chunks", "documents", "balanced"))
    print(f"\nright lane, chunks     {chunks}; one lane for all would get {found['largest']:.1%}")
    print(f"every label alike      {balanced}; one lane for all would get {1 / _present(found):.1%}")
    print(f"right lane, documents  {documents}")
    if found["calibration_error"] is not None:
        print(f"confidence is off by   {found['calibration_error']:.1%}, in the mean")
    if found["named"]:
        print("clusters are named by the commonest label among the other half of the documents")
    _confusion(found, console)


def _confusion(found: Mapping[str, Any], console: Console) -> None:
    """A line a lane, so that few labels need few columns."""
    present = [c for c, row in enumerate(found["confusion"]) if any(row)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("lane")
    for c in present:
        table.add_column(found["labels"][c][: 12 if len(present) <= FEW else 4], justify="right", no_wrap=True)
    for k, lane in enumerate(found["lanes"]):
        table.add_row(lane, *(f"{found['confusion'][c][k]:,}" for c in present))
    console.print("\nchunks by lane and label", table, sep="\n")


def _present(found: Mapping[str, Any]) -> int:
    return sum(any(row) for row in found["confusion"])


def _examples(lanes: Sequence[Mapping[str, Any]], console: Console) -> None:
    print()
    for lane in lanes:
        for example in lane["examples"]:
            said = "" if example["text"] is None else " ".join(example["text"].split())
            line = f"{lane['name']}  {example['title']}, row {example['row']:,}  {said}".rstrip()
            shown = line if len(line) <= 150 else f"{line[:149]}…"
            console.print(shown, markup=False, highlight=False, style="dim", soft_wrap=True)
