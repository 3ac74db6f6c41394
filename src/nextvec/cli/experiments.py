"""The verbs that compare runs: arguments to the library, results to the terminal."""

from argparse import Namespace
from collections.abc import Sequence

from nextvec.cli import show, show_experiments
from nextvec.cli.banks import open_bank, open_bank_of
from nextvec.cli.output import as_json
from nextvec.errors import SettingsError
from nextvec.evaluation.results import OWN_CONTEXT
from nextvec.experiments.comparison import compare as run_compare
from nextvec.experiments.decision import decide
from nextvec.experiments.executor import LocalProcesses
from nextvec.experiments.gate import read_gates
from nextvec.experiments.search import Span, parse_over, search
from nextvec.experiments.sweep import sweep as run_sweep
from nextvec.lanes import Lanes
from nextvec.runs import Run


def compare(arguments: Namespace) -> int:
    a, b = Run.open(arguments.a), Run.open(arguments.b)
    bank = open_bank_of(a, arguments)
    context = arguments.context or OWN_CONTEXT
    with show.Bars() as bars:
        lanes = Lanes.open(arguments.lanes, bank) if arguments.lanes else None
        settings = (arguments.split, context, arguments.pool, arguments.rows)
        found = run_compare(a, b, bank, *settings, bars, lanes, _experts(arguments.expert)).to_json()
    if arguments.json:
        return as_json(found)
    show_experiments.comparison_table(found)
    return 0


def _experts(given: Sequence[str]) -> dict[str, Run]:
    experts: dict[str, Run] = {}
    for assignment in given:
        lane, equals, path = assignment.partition("=")
        if not equals or lane in experts:
            raise SettingsError(f"--expert {assignment!r}: want LANE=RUN, each lane once")
        experts[lane] = Run.open(path)
    return experts


def gate(arguments: Namespace) -> int:
    gates = read_gates(arguments.gates, str(arguments.over) if arguments.over else None)
    run = Run.open(arguments.run)
    bank = open_bank_of(run, arguments)
    with show.Bars() as bars:
        decision = decide(run, bank, gates, bars)
    record = decision.write(run.path)
    if arguments.json:
        as_json({**decision.to_json(), "record": str(record)})
    else:
        show_experiments.decision_table(decision, record)
    return 0 if decision.passed else 1


def sweep(arguments: Namespace) -> int:
    bank = open_bank(arguments.bank, arguments)
    over = parse_over(arguments.over)
    shared = (arguments.seeds, arguments.set, LocalProcesses(arguments.jobs), arguments.rows)
    with show.Bars() as bars:
        if arguments.trials:
            found = search(arguments.recipe, bank, arguments.out, over, arguments.trials, *shared, bars).to_json()
        else:
            grid = {name: _listed(name, values) for name, values in over.items()}
            found = run_sweep(arguments.recipe, bank, arguments.out, grid, *shared, bars).to_json()
    if arguments.json:
        as_json(found)
    else:
        show_experiments.sweep_table(found)
    return 0 if found["finished"] else 1


def _listed(name: str, values: Sequence[object] | Span) -> Sequence[object]:
    if isinstance(values, Span):
        raise SettingsError(
            f"--over {name}={values.low}..{values.high} has no steps; list its values, or search with --trials N"
        )
    return values
