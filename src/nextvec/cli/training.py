"""The verbs that train a run, and that say how far it is."""

from argparse import Namespace
from typing import Any

from nextvec.cli import show
from nextvec.cli.banks import open_bank
from nextvec.cli.output import facts
from nextvec.recipes import recipe
from nextvec.runs import Run
from nextvec.runs.settings import override
from nextvec.training import begin
from nextvec.training import train as run_train
from nextvec.windows import missed_shares


def train(arguments: Namespace) -> int:
    bank = open_bank(arguments.bank, arguments)
    settings = override(recipe(arguments.recipe, len(bank)), arguments.set)
    run = begin(arguments.run, arguments.recipe, settings, bank)
    with show.Bars() as bars:
        if not settings.source.lane_filter:
            for sentence in missed_shares(bank, run.split(bank), settings.split.valid, settings.split.test).values():
                bars.console.print(f"[dim]{sentence}[/dim]", highlight=False)
        for _ in run_train(run, bank, [bars]):
            pass
    return facts(run_facts(run), arguments)


def status(arguments: Namespace) -> int:
    return facts(run_facts(Run.open(arguments.run)), arguments)


def run_facts(run: Run) -> dict[str, Any]:
    history = run.history()
    update = history[-1]["update"] if history else 0
    seconds = run.seconds()
    state = "training" if run.is_training else "finished" if run.finished else "stopped"
    eta, error = run.eta(), run.timing().remaining_error()
    return {
        "kind": "run",
        "state": state,
        "recipe": run.recipe,
        "update": update,
        "updates": run.settings.optimizer.updates,
        "best_hit5": run.best_hit5,
        "finished": run.finished,
        "seconds": round(seconds, 1),
        "eta_seconds": None if eta is None else round(eta, 1),
        "eta_error": None if error is None else round(error, 3),
        "alarms": run.alarms(),
        "bank": run.origin.bank,
    }
