"""The verbs of the phases and of the controlled experiments: arguments to the library, results to the terminal."""

from argparse import Namespace

from nextvec.cli import show, show_experts, show_phases
from nextvec.cli.banks import open_bank
from nextvec.cli.output import as_json
from nextvec.errors import SettingsError
from nextvec.experiments.context import context_experiment
from nextvec.experiments.executor import LocalProcesses
from nextvec.lanes import Lanes
from nextvec.reproduction.expert_kinds import KINDS
from nextvec.reproduction.experts import experts_experiment
from nextvec.reproduction.phases import phases as run_phases
from nextvec.reproduction.reported import POOLS, RECIPES


def phases(arguments: Namespace) -> int:
    bank = open_bank(arguments.bank, arguments) if arguments.bank else None
    recipes, pools = arguments.recipes or RECIPES, arguments.pools or POOLS
    if arguments.lanes and bank is None:
        raise SettingsError("--lanes needs --bank, the bank that they are of")
    lanes = Lanes.open(arguments.lanes, bank) if arguments.lanes and bank else None
    with show.Bars() as bars:
        found = run_phases(
            arguments.folder,
            bank,
            recipes,
            arguments.seeds,
            arguments.set,
            pools,
            LocalProcesses(arguments.jobs),
            arguments.rows,
            bars,
            lanes,
        ).to_json()
    if arguments.json:
        return as_json(found)
    show_phases.phases_table(found)
    print(f"\nThe whole table: {(arguments.folder / 'phases.html').resolve()}")
    return 0


def experiment(arguments: Namespace) -> int:
    return _experts(arguments) if arguments.which == "experts" else _context(arguments)


def _experts(arguments: Namespace) -> int:
    bank = open_bank(arguments.bank, arguments)
    lanes = Lanes.open(arguments.lanes, bank) if arguments.lanes else None
    with show.Bars() as bars:
        found = experts_experiment(
            arguments.out,
            bank,
            lanes,
            arguments.kinds or tuple(KINDS),
            arguments.seeds,
            arguments.recipe,
            arguments.set,
            LocalProcesses(arguments.jobs),
            arguments.rows,
            arguments.pool,
            bars,
        )
    if arguments.json:
        return as_json(found)
    show_experts.experiment_tables(found)
    print(f"\nThe whole experiment: {(arguments.out / 'experts.json').resolve()}")
    return 0


def _context(arguments: Namespace) -> int:
    bank = open_bank(arguments.bank, arguments)
    with show.Bars() as bars:
        found = context_experiment(
            arguments.out,
            bank,
            arguments.contexts,
            arguments.seeds,
            arguments.recipe,
            arguments.set,
            LocalProcesses(arguments.jobs),
            arguments.rows,
            arguments.pool,
            bars,
        ).to_json()
    if arguments.json:
        return as_json(found)
    show_phases.context_tables(found)
    print(f"\nThe whole experiment: {(arguments.out / 'context.html').resolve()}")
    return 0
