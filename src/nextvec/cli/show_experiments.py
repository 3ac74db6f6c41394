"""Tables of comparisons, decisions and sweeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nextvec.cli.show_lanes import lane_table
from nextvec.experiments.decision import Decision
from nextvec.experiments.metrics import figure_text, threshold_text
from nextvec.ranks import candidates_in_words

Json = Mapping[str, Any]


def comparison_table(found: Json) -> None:
    """Both runs, the lift with its interval, the verdict, and the time that each took."""
    console = Console()
    table = _table("run", "context", "Hit@1", "Hit@5", "95 % interval", "Hit@10", "MRR")
    for side, style in (("a", "bold cyan"), ("b", "")):
        figures = found[side]
        context = "all" if figures["context"] is None else f"{figures['context']:,}"
        one, five, ten = (figures[f"hit@{k}"] for k in (1, 5, 10))
        shares = [f"{one['value']:.1%}", f"{five['value']:.1%}", _interval(five), f"{ten['value']:.1%}"]
        table.add_row(figures["run"], context, *shares, f"{figures['mrr']['value']:.3f}", style=style)
    chance = found["exam"]["chance"]
    table.add_row("chance", "", *(f"{chance[f'hit@{k}']:.1%}" if k else "" for k in (1, 5, 0, 10)), "", style="dim")
    console.print(table)
    print()
    for name, lift in found["lift"].items():
        shown = f"{name.replace('hit', 'Hit')}: {_points(lift)}: [bold]{lift['verdict']}[/bold]"
        console.print(shown, highlight=False)
    console.print(_reached(found["time_to_reach"]), highlight=False)
    for lane, run in found["experts"].items():
        console.print(f"{escape(lane)} is answered by {escape(run)}", highlight=False)
    if found["lanes"]:
        lane_table(found["lanes"], "lift")
    exam = found["exam"]
    console.print(
        f"[dim]{exam['rows']:,} rows of {exam['documents']} {exam['part']} documents · "
        f"{candidates_in_words(exam)} candidates each · paired by row, resampled by document · exam {exam['id']}[/dim]",
        highlight=False,
    )


def decision_table(decision: Decision, record: Path) -> None:
    """Every gate with its bound and the measured figure."""
    console = Console()
    table = _table("", "gate", "bound", "measured", left=4)
    for outcome in decision.outcomes:
        gate = outcome.gate
        bound = f"{gate.bound.replace('_', ' ')} {threshold_text(gate.threshold, gate.metric)}"
        mark = "[green]pass[/green]" if outcome.passed else "[bold red]FAIL[/bold red]"
        over = f" over {gate.over}" if gate.over else ""
        table.add_row(mark, escape(f"{gate.name}{over}"), bound, figure_text(outcome.figure, gate.metric))
    console.print(table)
    console.print(f"\n[bold]{'passed' if decision.passed else 'not passed'}[/bold]; the record: {record}", highlight=False)


def sweep_table(found: Json) -> None:
    """Points, best first, and why runs failed."""
    console = Console()
    table = _table("point", "Hit@5", "95 %", "seeds", "over the best", "updates", "s")
    for point in found["points"]:
        name = " ".join(f"{setting}={value}" for setting, value in point["values"].items())
        seeds = point["seeds"]
        updates, seconds = (sum(seed[what] for seed in seeds) / len(seeds) for what in ("updates", "seconds"))
        cost = (f"{updates:,.0f}", f"{seconds:,.1f}")
        if "hit@5" not in point:
            table.add_row(name, "failed", "", "", "", *cost, style="dim")
            continue
        hit = point["hit@5"]
        missing = sum(seed["hit@5"] is None for seed in seeds)
        span = f"{100 * point['lowest_seed']:.1f}–{100 * point['highest_seed']:.1f}" + (
            f", {missing} failed" if missing else ""
        )
        best = point is found["points"][0]
        over = "" if best or not point["over_best"] else _points(point["over_best"])
        table.add_row(
            name,
            f"{hit['value']:.1%}",
            f"{100 * hit['low']:.1f}–{100 * hit['high']:.1f}",
            span,
            over,
            *cost,
            style="bold cyan" if best else "",
        )
    console.print(table)
    for point in found["points"]:
        for seed in point["seeds"]:
            if seed["failed"]:
                console.print(f"{seed['run']} failed: {seed['failed']}", style="red", markup=False, highlight=False)
    exam = found["exam"]
    if exam["id"]:
        console.print(
            f"\n[dim]{exam['rows']:,} rows of {exam['documents']} valid documents · "
            f"{candidates_in_words(exam)} candidates each · exam {exam['id']}[/dim]\n"
            f"[dim]The valid figure of the best of many points is too high: compare it on the test part[/dim]",
            highlight=False,
        )


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for n, name in enumerate(columns):
        table.add_column(name, justify="left" if n < left else "right", overflow="fold")
    return table


def _interval(rate: Json) -> str:
    return f"{rate['low']:.1%} – {rate['high']:.1%}"


def _points(lift: Json) -> str:
    return f"{100 * lift['value']:+.1f} ({100 * lift['low']:+.1f} to {100 * lift['high']:+.1f})"


def _reached(time: Json) -> str:
    if time["hit@5"] is None:
        return "time to reach: not comparable, the runs were validated on different exams"
    if time["a_seconds"] is None:
        return f"time to reach: A never reached the valid Hit@5 of B, {time['hit@5']:.1%}"
    times = f", {time['ratio']:.1f} times as fast" if time["ratio"] else ""
    b = "" if time["b_seconds"] is None else f", B in {time['b_seconds']:,.2f} s"
    return f"time to reach valid Hit@5 {time['hit@5']:.1%}: A in {time['a_seconds']:,.2f} s{b}{times}"
