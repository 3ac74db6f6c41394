"""Verbs that train or judge several runs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nextvec.cli.arguments import (
    add_bank_of_run,
    add_exam,
    add_jobs,
    add_lanes,
    add_rows,
    add_settings,
    add_training_bank,
    add_verify,
    counts,
    names,
    pools,
    positive,
)
from nextvec.cli.verb import Verb, VerbGroup
from nextvec.cli.verbs.banks import AGAIN

KINDS = "one,active,total,descriptions,clusters,random,adapters,constants,stages"


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="a trained run")
    parser.add_argument("b", type=Path, metavar="B", help="the run that A is compared with, trained on the same bank")
    add_bank_of_run(parser)
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which documents are scored (default: test)")
    parser.add_argument(
        "--context", type=positive, help="vectors read before each scored row (default: the context of its training)"
    )
    add_exam(parser)
    add_lanes(parser, "also report the lift of each lane")
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="LANE=RUN",
        help="a run that answers the rows of this lane instead of A; may be given several times",
    )


def _compare(arguments: Namespace) -> int:
    from nextvec.cli.experiments import compare

    return compare(arguments)


def _gate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a trained run")
    parser.add_argument("gates", help="a .toml file of gates, or the name of one that nextvec has: seed, hard_negatives")
    parser.add_argument(
        "--over", type=Path, metavar="RUN", help="the run that a gain is measured over, where the file of gates names none"
    )
    add_bank_of_run(parser)


def _gate(arguments: Namespace) -> int:
    from nextvec.cli.experiments import gate

    return gate(arguments)


def _sweep_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe of every run, as for nextvec train")
    add_training_bank(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs and of sweep.json")
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="NAME=V,V,…|LOW..HIGH",
        help="a setting and its values, or with --trials its range; may be given several times",
    )
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each point, with different seeds (default: 3)")
    parser.add_argument(
        "--trials", type=positive, help="search instead of trying every combination: number of points that Optuna proposes"
    )
    add_settings(parser, "another setting of every run")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        help="runs that are trained at a time; with --trials, of one point (default: 1)",
    )
    add_rows(parser)


def _sweep(arguments: Namespace) -> int:
    from nextvec.cli.experiments import sweep

    return sweep(arguments)


def _phases_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the runs (DIR/RECIPE/seed-N) and of the table")
    parser.add_argument("--bank", type=Path, help="the bank to train on (default: train nothing, report what has finished)")
    add_verify(parser)
    parser.add_argument(
        "--recipes", type=names, metavar="A,B,…", help="which recipes (default: all phases in both forms, and four ablations)"
    )
    parser.add_argument("--seeds", type=positive, default=1, help="runs of each recipe, with different seeds (default: 1)")
    add_settings(parser, "a setting of every recipe")
    parser.add_argument(
        "--pools",
        type=pools,
        metavar="N,…,all",
        help="numbers of candidates of each scored row (default: 58,115,230,1000,1148,all)",
    )
    add_rows(parser)
    add_lanes(parser)
    add_jobs(parser)


def _phases(arguments: Namespace) -> int:
    from nextvec.cli.phases import phases

    return phases(arguments)


def _experiment_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each kind, with different seeds (default: 3)")
    parser.add_argument("--recipe", default="default", help="the recipe of every run, as for nextvec train (default: default)")
    add_settings(parser, "a setting of every run")
    add_exam(parser)
    add_jobs(parser)


def _context_arguments(parser: ArgumentParser) -> None:
    add_training_bank(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the runs, context.json and context.html"
    )
    parser.add_argument(
        "--contexts",
        type=counts,
        default=(100, 500, 1000),
        metavar="N,N,…",
        help="context lengths, in vectors (default: 100,500,1000)",
    )
    _experiment_arguments(parser)


def _experts_arguments(parser: ArgumentParser) -> None:
    add_training_bank(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs and of experts.json")
    add_lanes(parser)
    parser.add_argument("--kinds", type=names, metavar="A,B,…", help=f"which models (default: {KINDS})")
    _experiment_arguments(parser)


def _experiment(arguments: Namespace) -> int:
    from nextvec.cli.phases import experiment

    return experiment(arguments)


EXPERIMENTS = (
    Verb(
        "compare",
        "compare two runs on one exam, and say whether the difference is shown",
        "Reads two runs and their bank, lets both answer one exam, and prints the lift of A over B with its interval: paired "
        "by row and resampled by document. Keeps what each run answered in the folder of the run.",
        "nextvec compare runs/new runs/old",
        _compare_arguments,
        _compare,
    ),
    Verb(
        "gate",
        "judge a run by gates, and record the decision",
        "Reads a run, its bank and a file of gates, prints which gates the run passes, and writes a decision record into the "
        "run. Exit code 1 when a gate is not passed.",
        "nextvec gate runs/first seed",
        _gate_arguments,
        _gate,
    ),
    Verb(
        "sweep",
        "train a recipe at several settings, and compare them on one valid exam",
        "Reads a bank, trains a run for every combination of settings and every seed, and writes the runs and sweep.json. With "
        f"--trials, Optuna proposes the settings from ranges such as lr=1e-4..1e-2. {AGAIN}",
        "nextvec sweep default --bank books.bank --out sweeps/alpha --over alpha=0.01,0.03,0.05",
        _sweep_arguments,
        _sweep,
    ),
    Verb(
        "phases",
        "train the predecessor's phases, ours and as published, and compare them on one exam",
        "Reads a bank, trains the runs that are missing in DIR, and writes them, DIR/phases.json and DIR/phases.html. Without "
        f"--bank it reports the runs that have finished. {AGAIN}",
        "nextvec phases runs/phases --bank books.bank --recipes phase1,phase3 --seeds 3",
        _phases_arguments,
        _phases,
    ),
    VerbGroup(
        "experiment",
        "run a controlled experiment: context or experts",
        "Trains runs that differ in one thing, and measures what it is worth.",
        "which",
        (
            Verb(
                "context",
                "measure what a longer context is worth",
                "Reads a bank, trains runs that differ only in their context, and compares them on one exam. Then it shortens "
                "and disturbs the context of the longest. Writes the runs, DIR/context.json and DIR/context.html. "
                f"{AGAIN}",
                "nextvec experiment context --bank books.bank --out runs/context --contexts 100,1000",
                _context_arguments,
                _experiment,
            ),
            Verb(
                "experts",
                "measure what experts are worth beside one model of as many parameters",
                "Reads a bank and trains one model without experts, one with equal active parameters, one with equal "
                "parameters in all, and models of 16 experts that are routed by description, by k-means, or by chance as the "
                "control. All make equal updates and answer one exam. Writes the runs and DIR/experts.json. "
                f"{AGAIN}",
                "nextvec experiment experts --bank books.bank --out runs/experts --kinds one,active,clusters,random",
                _experts_arguments,
                _experiment,
            ),
        ),
    ),
)
