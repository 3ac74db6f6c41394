"""Rollouts on the terminal. This module and its imports must not import torch, so that ``rollout status`` starts fast."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

from rich.console import Console
from rich.table import Table

from nextvec.rollout.evalues import ALPHA_OK


def rollout_status(found: Mapping[str, Any]) -> None:
    """Print the state of a rollout, what its next step waits for, the evidence, the last steps, and the detectable effects."""
    console = Console()
    console.print(f"[bold]{found['rollout']}[/bold]  {found['state']}  {_standing(found)}", highlight=False)
    console.print(f"[dim]{found['canary']} beside {found['stable']}[/dim]", highlight=False)
    _counts(console, found["next"], found["ended"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stream", "verdict", "evidence for WORSE", "evidence for OK"):
        table.add_column(name, justify="left" if name in ("stream", "verdict") else "right")
    evidence = found["evidence"]
    for stream, said in evidence["verdict"].items():
        log_e, alpha = evidence["log_e"][stream], evidence["guardrails"][stream]["alpha"]
        worse, ok = log_e["worse"] / -log(alpha), log_e["ok"] / -log(ALPHA_OK)
        mark = {"WORSE": "[bold red]WORSE[/bold red]", "OK": "[green]OK[/green]"}.get(said, said)
        table.add_row(stream, mark, f"{max(0.0, worse):.0%}", f"{max(0.0, ok):.0%}")
    console.print(table)
    for step in found["steps"][-6:]:
        console.print(f"[dim]{step['time'][:19]}[/dim]  {step['to']}  {step['cause']} ({step['actor']})", highlight=False)
    for effect in found["detectable"]:
        harm = "none" if effect["harm"] is None else f"{effect['harm']:.2f} times stable's rate"
        where = f"{effect['weight']:g} % with {effect['units']:,} units of {effect['stream']}"
        console.print(f"[dim]smallest detectable effect at {where}: {harm}[/dim]", highlight=False)


def _standing(found: Mapping[str, Any]) -> str:
    """The share of the canary, or why the rollout ended."""
    if found["state"] == "PROMOTED":
        return "the canary answers all sessions"
    if found["cause"] is not None:
        return f"stable answers all sessions: {found['cause']}"
    return f"{found['weight']:g} % to the canary"


def _counts(console: Console, step: Mapping[str, Any], ended: bool) -> None:
    sessions = ", ".join(f"{count:,} {arm}" for arm, count in step["sessions"].items())
    pairs = ", ".join(f"{count:,} {stream}" for stream, count in step["pairs"].items() if count) or "none"
    console.print(f"sessions by arm: {sessions}; mirrored pairs: {pairs}", highlight=False)
    if not ended:
        console.print(f"missing for the next step: {'; '.join(step['missing']) or 'nothing'}", highlight=False)


def simulation(rows: Sequence[Mapping[str, Any]], rollouts: int) -> None:
    """Print how simulated rollouts of each harm ended."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("harm", "rule", "rolled back", "requests until then", "promoted", "by"):
        table.add_column(name, justify="left" if name in ("harm", "rule", "by") else "right")
    for row in rows:
        until = row["requests"]["median"]
        by = ", ".join(f"{stream} {share:.0%}" for stream, share in (row.get("by") or {}).items())
        when = "" if until is None else f"{until:,}"
        promoted = f"{row['promoted']:.0%}" if row["rule"] == "sequential test" else ""
        table.add_row(row["harm"], row["rule"], f"{row['rolled_back']:.1%}", when, promoted, by)
    Console().print(table)
    print(f"{rollouts} rollouts of each harm over the same requests; the median of requests, both arms")
