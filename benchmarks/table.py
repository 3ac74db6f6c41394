"""What every benchmark prints: the machine, a table, and figures that compare within this run."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the best and the median of several, and processor seconds of the best."""

    best: float
    median: float
    cpu: float


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time several calls in turn, so that a machine that changes its speed changes it for all of them."""
    for call in calls.values():
        call()
    wall: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began, cpu = time.perf_counter(), time.process_time()
            call()
            wall[name].append((time.perf_counter() - began, time.process_time() - cpu))
    return {
        name: Timing(min(w for w, _ in runs), statistics.median(w for w, _ in runs), min(c for _, c in runs))
        for name, runs in wall.items()
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> None:
    """Print one table."""
    table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False)
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    machine = f"{os.cpu_count()} processors, {platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    console.print(f"[dim]{note}\n{machine}[/dim]\n", highlight=False)
