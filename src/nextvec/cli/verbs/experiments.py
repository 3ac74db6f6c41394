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
    parser.add_argument("b", type=Path, metavar="B", help="the run to compare A with, trained on the same bank")
    add_bank_of_run(parser)
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="which documents are scored (default: test)")
    parser.add_argument(
        "--context", type=positive, help="vectors read before each scored row (default: the context length of the training)"
    )
    add_exam(parser)
    add_lanes(parser, "also report the lift of each lane")
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="LANE=RUN",
        help="run that predicts the rows of this lane in place of A; may be given several times",
    )


def _compare(arguments: Namespace) -> int:
    from nextvec.cli.experiments import compare

    return compare(arguments)


def _gate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a trained run")
    parser.add_argument("gates", help="a .toml file of gates, or one of the built-in files: seed, hard_negatives")
    parser.add_argument("--over", type=Path, metavar="RUN", help="run to compare with, if the file of gates names no run")
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
        help="a setting and its values, or its range if --trials is given; may be given several times",
    )
    parser.add_argument(
        "--seeds", type=positive, default=3, help="runs for each combination of settings, with different seeds (default: 3)"
    )
    parser.add_argument(
        "--trials", type=positive, help="number of combinations that Optuna proposes, in place of all combinations"
    )
    add_settings(parser, "another setting of every run")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        help="runs that are trained at the same time (default: 1); with --trials, only runs of one combination",
    )
    add_rows(parser)


def _sweep(arguments: Namespace) -> int:
    from nextvec.cli.experiments import sweep

    return sweep(arguments)


def _phases_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the runs (DIR/RECIPE/seed-N) and of the table")
    parser.add_argument("--bank", type=Path, help="the bank to train on (default: train nothing, report the finished runs)")
    add_verify(parser)
    parser.add_argument(
        "--recipes",
        type=names,
        metavar="A,B,…",
        help="recipes to train (default: all phases in both forms, and four ablations)",
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


def _experiment_arguments(parser: ArgumentParser, recipe: str = "default") -> None:
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each model, with different seeds (default: 3)")
    parser.add_argument("--recipe", default=recipe, help=f"the recipe of every run, as for nextvec train (default: {recipe})")
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
    parser.add_argument("--kinds", type=names, metavar="A,B,…", help=f"models to train (default: {KINDS})")
    _experiment_arguments(parser, "memory")  # experts read raw rows


def _experiment(arguments: Namespace) -> int:
    from nextvec.cli.phases import experiment

    return experiment(arguments)


EXPERIMENTS = (
    Verb(
        "compare",
        "compare two runs on one exam, and print the difference with its interval",
        "Reads two runs and their bank, evaluates both on one exam, and prints the lift of A over B with its interval. "
        "The lift is paired by row, and the interval resamples documents. Writes the "
        "evaluation result of each run into the folder of the run.",
        "nextvec compare runs/new runs/old",
        _compare_arguments,
        _compare,
    ),
    Verb(
        "gate",
        "check whether a run passes gates, and record the decision",
        "Reads a run, its bank and a file of gates, prints which gates the run passes, and writes a decision record into the "
        "run. The exit code is 1 if the run does not pass a gate.",
        "nextvec gate runs/first seed",
        _gate_arguments,
        _gate,
    ),
    Verb(
        "sweep",
        "train a recipe with several settings, and compare the runs on one validation exam",
        "Reads a bank, trains a run for every combination of settings and every seed, and writes the runs and sweep.json. With "
        f"--trials, Optuna proposes the settings from ranges such as lr=1e-4..1e-2. {AGAIN}",
        "nextvec sweep default --bank books.bank --out sweeps/alpha --over alpha=0.01,0.03,0.05",
        _sweep_arguments,
        _sweep,
    ),
    Verb(
        "phases",
        "train the phases of the published predecessor system in two forms, and compare them on one exam",
        "Reads a bank and trains the phases that DIR lacks: with the model of nextvec and as published. Writes the runs, "
        f"DIR/phases.json and DIR/phases.html. Without --bank it reports the finished runs. {AGAIN}",
        "nextvec phases runs/phases --bank books.bank --recipes phase1,phase3 --seeds 3",
        _phases_arguments,
        _phases,
    ),
    VerbGroup(
        "experiment",
        "run a controlled experiment: context or experts",
        "Trains runs that differ in one property, and measures the effect of this property.",
        "which",
        (
            Verb(
                "context",
                "measure the gain of a longer context",
                "Reads a bank, trains runs that differ only in their context length, and compares them on one exam. Then it "
                "shortens and disturbs the context of the run with the longest context. Writes the runs, DIR/context.json "
                "and DIR/context.html. "
                f"{AGAIN}",
                "nextvec experiment context --bank books.bank --out runs/context --contexts 100,1000",
                _context_arguments,
                _experiment,
            ),
            Verb(
                "experts",
                "compare experts with one model of as many parameters",
                "Reads a bank and trains three models without routing: one without expert blocks, one with as many "
                "parameters as are active in a model of experts, and one with as many parameters in total. Also trains models "
                "of 16 experts that are routed by descriptions, by k-means, or at random as a control. All models make the "
                "same number of updates and are evaluated on one exam. Writes the runs and DIR/experts.json. "
                f"{AGAIN}",
                "nextvec experiment experts --bank books.bank --out runs/experts --kinds one,active,clusters,random",
                _experts_arguments,
                _experiment,
            ),
        ),
    ),
)
