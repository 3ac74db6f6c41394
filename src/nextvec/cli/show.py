"""Tables of results on standard output, and progress bars on standard error."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nextvec.cli.show_confidence import confidence_tables
from nextvec.cli.show_lanes import experts_table, lane_table
from nextvec.evaluation.report import ALL_ROWS, shown_baselines
from nextvec.inference import Because
from nextvec.ranks import Ranks, candidates_in_words
from nextvec.runs import Run
from nextvec.training import Alarmed, Evaluated, Event, Finished, Stepped

SHIPPED_ROW = "weights of the package, before training"
QUIET_SECONDS = 10.0  # between two lines of progress where standard error is not a terminal


class Bars:
    """Progress on standard error: bars with the remaining time on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._spoken: dict[str, float] = {}

    def __enter__(self) -> "Bars":
        if self.console.is_terminal:  # elsewhere rich prints an empty line when it stops
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """A :data:`~nextvec.progress.Progress`."""
        if not self.console.is_terminal:
            self._speak(what, done, total, note)
            return
        if what not in self._tasks or self._bars.tasks[self._tasks[what]].finished:
            self._tasks[what] = self._bars.add_task(what, total=total, note=note)
        self._bars.update(self._tasks[what], completed=done, total=total, note=note)

    def on(self, run: Run, event: Event) -> None:  # noqa: ARG002 - a tracker
        """Show one event of a training."""
        match event:
            case Stepped():
                self("training", event.update, event.updates, f"loss {event.loss:.3f}")
            case Evaluated():
                hit = event.record["valid"]["hit@5"]
                mark = " best so far" if event.best else ""
                self.console.print(f"[dim]update {event.update:>5}  valid Hit@5 {hit:.1%}{mark}[/dim]", highlight=False)
            case Alarmed():
                self.console.print(f"[bold red]alarm[/bold red] {event.alarm} (update {event.update})", highlight=False)
            case Finished():
                self.console.print(f"[dim]training ended at update {event.update}: {event.reason}[/dim]", highlight=False)

    def before_training(self, ranks: Ranks) -> None:
        """Show what the weights of the package reach on the exam of a demo."""
        self.console.print(f"{SHIPPED_ROW}: Hit@5 {ranks.hit(5)}, chance {ranks.chance(5):.1%}", highlight=False)

    def _speak(self, what: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done < total and now - self._spoken.setdefault(what, now) < QUIET_SECONDS:
            return
        if done == total and what not in self._spoken:
            return
        self._spoken[what] = now
        if done == total:
            del self._spoken[what]
        print(f"{what}: {done:,} of {total:,} {note}".rstrip(), file=sys.stderr, flush=True)


def report_table(report: Mapping[str, Any]) -> None:
    """The model, the best baseline of each kind from the best down, chance, and the lifts; of a demo also the start."""
    exam, lift = report["exam"], report["lift"]
    context = "all" if exam["context"] is None else f"{exam['context']:,}"
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("predictor")
    for name in ("Hit@1", "Hit@5", "95 % interval", "Hit@10", "MRR"):
        table.add_column(name, justify="right")
    shown = shown_baselines(report)
    own = (report["model"]["name"], report["model"], "bold cyan")
    start = [(SHIPPED_ROW, report["shipped"], "cyan")] if "shipped" in report else []
    for name, figures, style in [own, *start, *((name, figures, "") for name, figures in shown.items())]:
        hit = figures["hit@5"]
        table.add_row(
            name,
            f"{figures['hit@1']['value']:.1%}",
            f"{hit['value']:.1%}",
            f"{hit['low']:.1%} – {hit['high']:.1%}",
            f"{figures['hit@10']['value']:.1%}",
            f"{figures['mrr']['value']:.3f}",
            style=style,
        )
    table.add_row("chance", *(f"{report['chance'][f'hit@{k}']:.1%}" if k else "" for k in (1, 5, 0, 10, 0)), style="dim")
    console.print(table)
    console.print(
        f"[dim]{len(report['baselines'])} baselines were examined; the table has the best of each kind, --json has all[/dim]\n",
        highlight=False,
    )
    _lift_line("the best baseline", lift)
    _lift_line("the best baseline of raw rows", report["lift_over_raw"])
    if "shipped" in report:
        _lift_line("the start", {"over": SHIPPED_ROW, "hit@5": report["shipped"]["lift"]})
    console.print(
        f"[dim]{exam['rows']:,} rows of {exam['documents']} {exam['part']} documents · "
        f"{candidates_in_words(exam)} candidates each · "
        f"context {context} ({exam['full_context']:.0%} of the rows have it all) · exam {exam['id']}[/dim]",
        highlight=False,
    )
    console.print(f"[dim]spaces fitted to {_fitted_to(report['fitted_to'], exam['bank'])}[/dim]", highlight=False)
    if report["lanes"]:
        lane_table(report["lanes"], f"over {lift['over']}")
    if report["experts"]:
        experts_table(report["experts"])
    if report["confidence"]:
        confidence_tables(report["confidence"])
    for note in report["notes"]:
        console.print(f"[dim]{note}[/dim]", highlight=False)


def _fitted_to(fitted: Mapping[str, Any], examined: str) -> str:
    rows, of = f"{fitted['rows']:,}", "this bank"
    if fitted["of"] == ALL_ROWS:
        return f"all {rows} rows of {of}, those that are scored among them"
    if fitted["bank"] != examined:
        of = f"bank {fitted['bank'][:12]}, not of this one"
    return f"the {rows} {fitted['of']} of {of}"


def _lift_line(what: str, lift: Mapping[str, Any]) -> None:
    gain = lift["hit@5"]
    Console().print(
        f"lift over {what}, {lift['over']}: [bold]{100 * gain['value']:+.1f}[/bold] points of Hit@5 "
        f"(95 % {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}, paired, by document)",
        highlight=False,
    )


def curve_table(curve: list[Mapping[str, Any]]) -> None:
    """Hit@5 by context length."""
    table = Table(box=None, pad_edge=False, header_style="dim", title="What context is worth", title_justify="left")
    for name in ("context", "Hit@5", "95 % interval", "over context 1", "best baseline"):
        table.add_column(name, justify="right")
    for point in curve:
        hit, lift = point["hit@5"], point["lift_over_context_1"]
        gain = (
            f"{100 * lift['value']:+.1f} ({100 * lift['low']:+.1f} to {100 * lift['high']:+.1f})"
            if point["context"] > 1
            else ""
        )
        interval = f"{hit['low']:.1%} – {hit['high']:.1%}"
        table.add_row(f"{point['context']:,}", f"{hit['value']:.1%}", interval, gain, f"{point['baseline_hit@5']['value']:.1%}")
    Console().print("", table, sep="\n")


def examples(found: list[Mapping[str, Any]]) -> None:
    """Print examples: the chunks that were read, those that were predicted, and the true one."""
    console = Console()
    for example in found:
        console.rule(f"[dim]{example['document']}[/dim]", align="left")
        console.print("after", style="dim")
        for text in example["read"]:
            console.print(f"  {_short(text)}", markup=False, highlight=False)
        console.print("the model expects", style="dim")
        for guess in example["expected"]:
            mark = "→ " if guess["true"] else "  "
            style = "bold cyan" if guess["true"] else None
            console.print(f"{mark}{_short(guess['text'])}", markup=False, highlight=False, style=style)
        rank = f"truly came (rank {example['rank']} of {example['candidates']:,})"
        console.print(f"[dim]{rank}[/dim]\n  ", end="", highlight=False)
        console.print(_short(example["truth"]), markup=False, highlight=False)


def because_table(because: Because, context: Sequence[str]) -> None:
    """The parts of a score: the named chunks of the context, the other chunks, and what comes from no chunk."""
    lines = [(row.part, f"{row.position:,}", _short(context[row.position])) for row in because.rows]
    lines.append((because.others, "", "all other chunks of the text"))
    if because.learned:
        lines.append((because.learned, "", "learned values, from no chunk"))
    print(f"{'part':>8}  {'position':>8}  because of")
    for part, position, text in lines:
        print(f"{part:>+8.3f}  {position:>8}  {text}")
    print()


def latency_table(found: Mapping[str, Any]) -> None:
    """Milliseconds by context, the machine's limits beside them, and what the gates say."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ("context", "step", "search", "both P50", "P95", "P99", "reading again", "times", "state")
    for name in columns:
        table.add_column(name, justify="right")
    for at in found["contexts"]:
        both, again = at["both"], at["reread"]
        table.add_row(
            f"{at['context']:,}",
            f"{at['step']['p50_ms']:.2f}",
            f"{at['search']['p50_ms']:.2f}",
            f"{both['p50_ms']:.2f}",
            f"[bold cyan]{both['p95_ms']:.2f}[/bold cyan]",
            f"{both['p99_ms']:.2f}",
            f"{again['p50_ms']:,.0f}" if again else "",
            f"{again['p50_ms'] / both['p50_ms']:,.0f}" if again else "",
            f"{at['state_bytes'] / 1e3:,.0f} kB",
        )
    console.print(table)
    limits, cold = found["limits"], found["cold"]
    weights, index = found["weights"], found["index"]
    for line in (
        f"milliseconds, one thread, nearest {found['k']} of {index['rows']:,} · kernels {found['kernels']}",
        f"limits: weights ({weights['format']}, {weights['bytes'] / 1e6:.1f} MB) read once {limits['weights_ms']:.2f} ms · "
        f"index ({index['format']}, {index['bytes'] / 1e6:.1f} MB) {limits['index_ms']:.2f} ms · "
        f"memory {limits['memory_gb_s']:.1f} GB/s · an empty call {1e3 * limits['call_ms']:.2f} µs",
        f"cold start {cold['seconds']:.2f} s (imports {cold['import_seconds']:.2f}, opening {cold['open_seconds']:.2f}) · "
        f"{cold['peak_bytes'] / 1e6:,.0f} MB at most, {cold['import_bytes'] / 1e6:,.0f} of it imports",
        *found["notes"],
    ):
        console.print(f"[dim]{line}[/dim]", highlight=False)
    for gate in found["gates"]:
        console.print(f"{'pass' if gate['passed'] else 'FAIL'}  {gate['says']}", highlight=False)


def pairs(values: Mapping[str, Any]) -> None:
    """A short list of names and values."""
    width = max(map(len, values))
    for name, value in values.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "-" if value is None else str(value)
        print(f"{name.replace('_', ' '):<{width}}  {shown}")


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 110 else f"{flat[:109]}…"
