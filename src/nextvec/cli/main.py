"""The command line: ``nextvec VERB``. Exit code 0 done, 1 a check said no, 2 misuse or bad input."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nextvec.cli import rollout, serving
from nextvec.errors import NextvecError, SettingsError

DESCRIPTION = """\
Read a long context of embedding vectors, predict the next one, and measure it honestly.

  nextvec demo                                   text → report, on text every machine has
  nextvec ingest books/ books.bank               your own text, or ready vectors
  nextvec train default runs/first --bank books.bank
  nextvec evaluate runs/first                    Hit@K with intervals, beside every baseline
  nextvec predict runs/first < chapter.txt       what comes next, in words
"""
EPILOG = "Exit codes: 0 done, 1 a check said no, 2 misuse or bad input. `nextvec VERB --help` explains one verb."


class _Parser(argparse.ArgumentParser):
    """Misuse gets one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; never a traceback for what a user can mend."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without our dashes still gets the figures
    try:
        arguments = _parser().parse_args(argv)
        from nextvec.cli import (  # torch takes seconds to import: --help must not wait for it
            experiments,
            index,
            lanes,
            latency,
            phases,
            verbs,
        )

        module = next(
            module
            for module in (verbs, index, lanes, latency, serving, rollout, experiments, phases)
            if hasattr(module, arguments.verb)
        )
        return getattr(module, arguments.verb)(arguments)
    except NextvecError as error:
        print(f"nextvec: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output has left; what they have not read is not missed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"nextvec: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (MemoryError, OverflowError) as error:
        print(f"nextvec: a number is too large for this machine: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nextvec: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> _Parser:
    parser = _Parser("nextvec", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, what: str, detail: str = "") -> argparse.ArgumentParser:
        text = f"{what[0].upper()}{what[1:]}. {detail}"
        added = verbs.add_parser(name, help=what, description=text)
        added.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
        return added

    demo = verb("demo", "the whole way from text to report", "Text is the documentation inside Python's own packages.")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for bank, run, report.json and report.html (demo)")
    demo.add_argument("--size", type=_positive, default=9_000, help="chunks to embed, about (9000)")

    ingest = verb("ingest", "make a bank of text or of ready vectors", "Killed at any moment, the same command goes on.")
    ingest.add_argument(
        "source",
        type=Path,
        help="a folder of .txt/.md/.markdown/.rst, of Parquet or Arrow shards, or of a saved dataset; "
        ".jsonl, .parquet, .arrow, or .npz with vectors and lengths",
    )
    ingest.add_argument("bank", type=Path, help="the bank to make")
    ingest.add_argument(
        "--encoder", help="of texts: all-MiniLM-L6-v2 (offline, the default), or any sentence-transformers model"
    )
    ingest.add_argument("--encoder-name", metavar="NAME", help="of ready vectors: what made them, where the file does not say")
    ingest.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read, and name them")
    ingest.add_argument(
        "--size",
        type=_positive,
        default=300,
        help="largest chunk (300); cut again where the encoder reads less",
    )
    ingest.add_argument(
        "--unit",
        choices=("characters", "tokens"),
        default="characters",
        help="what --size counts (characters); tokens of the encoder",
    )
    ingest.add_argument("--overlap", type=_whole, default=0, help="how much of the chunk before is repeated (0)")
    ingest.add_argument(
        "--dtype", choices=("float16", "float32"), help="how rows are stored (float16, or as the bank that was exported)"
    )

    index = verb(
        "index",
        "make an index of a bank, to look predictions up in",
        "An exact one finds what is nearest, whatever form it reads; an approximate one walks a graph of the rows. "
        "Example: nextvec index books.bank books.index --format int8",
    )
    index.add_argument("bank", type=Path, help="a bank")
    index.add_argument("index", type=Path, help="the index to make; rows stay in the bank")
    index.add_argument("--kind", choices=("exact", "approximate"), default="exact", help="approximate needs faiss (exact)")
    index.add_argument("--format", choices=("float32", "float16", "int8"), help="how rows are read (as the bank stores them)")

    lanes = verb(
        "lanes",
        "say what each chunk of a bank is about, and how even the lanes are",
        "By default the 16 domains, by their descriptions. "
        "Examples: nextvec lanes books.bank --out books.lanes · nextvec lanes books.bank --clusters 16 --balanced",
    )
    lanes.add_argument("bank", type=Path, help="a bank")
    how = lanes.add_mutually_exclusive_group()
    how.add_argument("--table", type=Path, metavar="FILE", help="a .toml of [[lane]] with name, description, examples")
    how.add_argument("--clusters", type=_positive, metavar="N", help="lanes without text: N clusters of the vectors")
    how.add_argument("--random", type=_positive, metavar="N", help="the control: documents dealt to N lanes by chance")
    how.add_argument("--labels", type=Path, metavar="FILE", help="a .csv of document,lane; other documents go to the nearest")
    lanes.add_argument("--balanced", action="store_true", help="clusters of equal size")
    lanes.add_argument("--seed", type=_whole, help="of --clusters and --random (0)")
    lanes.add_argument("--against", type=Path, metavar="FILE", help="a .csv of document,lane to compare with; calibrates")
    lanes.add_argument("--needed", type=_whole, default=1_000, metavar="ROWS", help="a lane with fewer is starved (1000)")
    lanes.add_argument("--out", type=Path, metavar="FOLDER", help="where to write the lanes; beside the bank, never in it")

    inspect = verb("inspect", "what a bank or a run holds")
    inspect.add_argument("path", type=Path, help="a bank or a run")

    audit = verb("audit", "look for what makes numbers unbelievable", "Exit code 1 when a detector fails.")
    audit.add_argument("bank", type=Path, help="a bank")

    export = verb(
        "export",
        "write a bank as Parquet or as windows, or a trained run as ONNX",
        "A bank becomes a .parquet file, or windows in the predecessor's .npz. A run becomes a folder that predicts with "
        "ONNX Runtime and NumPy alone; it is checked against the model before it is written.",
    )
    export.add_argument("source", type=Path, help="a bank, or a finished run")
    export.add_argument("out", type=Path, help="of a bank: a .parquet or .npz file to write; of a run: the folder to write")
    export.add_argument("--context", type=_positive, default=100, help="vectors per window, for .npz (100)")

    train = verb("train", "train a run by a recipe", "Killed at any moment, the same command goes on, bit for bit.")
    train.add_argument("recipe", help="default, or a phase, like phase1 or phase3-published; all fit their size to the bank")
    train.add_argument("run", type=Path, help="the run to make")
    train.add_argument("--bank", type=Path, required=True, help="what to train on")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; may be repeated")

    status = verb("status", "whether a run is being trained, and how far it is")
    status.add_argument("run", type=Path, help="a run")

    evaluate = verb(
        "evaluate", "Hit@1/5/10 with intervals, beside every baseline", "By default on the run's own test documents."
    )
    evaluate.add_argument("run", type=Path, help="a trained run")
    evaluate.add_argument("--bank", type=Path, help="another bank; with --split all (default: the one it was trained on)")
    evaluate.add_argument("--split", choices=("valid", "test", "all"), default="test", help="which documents (test)")
    evaluate.add_argument(
        "--context", type=_positive, help="vectors read before each scored row (what the run was trained with)"
    )
    evaluate.add_argument("--pool", type=_pool, default=1000, metavar="N|all", help="candidates per scored row (1000)")
    evaluate.add_argument("--rows", type=_positive, default=2000, help="scored rows at most (2000)")
    evaluate.add_argument("--lanes", type=Path, metavar="FOLDER", help="figures lane by lane; made by nextvec lanes BANK --out")

    predict = verb(
        "predict",
        "read text from standard input, print the chunks expected next; or predict for a whole file",
        "With --input every document of a bank, or of a Parquet file with document, index and vector, is a session. "
        "Killed at any moment, the same command goes on. "
        "Example: nextvec predict runs/first --input books.bank --output expected.parquet",
    )
    predict.add_argument("run", type=Path, help="a trained run")
    predict.add_argument("-k", type=_positive, default=5, help="how many (5)")
    predict.add_argument("--bank", type=Path, help="where candidates come from (default: the bank it was trained on)")
    predict.add_argument("--input", type=Path, help="a bank, or a .parquet with document, index, vector: many contexts")
    predict.add_argument("--output", type=Path, help="the .parquet to write, with --input")
    predict.add_argument(
        "--at",
        choices=("every", "last"),
        default="every",
        help="after every vector, or after the last of each document (every)",
    )
    predict.add_argument("--vectors", action="store_true", help="write the predicted vectors, too")

    latency = verb(
        "latency",
        "what an answer costs, by context, beside the machine's limits",
        "One vector is read and looked up, on one thread. Exit code 1 when P95 is over the budget, or over the ratio to "
        "another run's. Example: nextvec latency runs/first --contexts 10,100,1000,10000 --candidates 100000",
    )
    latency.add_argument("run", type=Path, help="a trained run")
    latency.add_argument("--bank", type=Path, help="where its bank lies now (default: where it was trained on it)")
    latency.add_argument(
        "--contexts", type=_counts, default=(10, 100, 1_000, 10_000), metavar="N,N,…", help="which (10,100,1000,10000)"
    )
    latency.add_argument(
        "--candidates", type=_positive, help="rows to search; more than the bank has are made of them (the bank's)"
    )
    latency.add_argument(
        "--weights", choices=("auto", "float32", "bfloat16", "int8"), default="auto", help="format (what suits the processor)"
    )
    latency.add_argument(
        "--format", choices=("float32", "float16", "int8"), default="int8", help="how the index reads; all are exact (int8)"
    )
    latency.add_argument("--budget", type=_milliseconds, default=5.0, metavar="MS", help="P95 of an answer at most (5)")
    latency.add_argument("--against", type=Path, metavar="RUN", help="another run, measured beside it")
    latency.add_argument("--ratio", type=_milliseconds, default=1.2, help="P95 at most so many times the other's (1.2)")
    latency.add_argument("--page", type=Path, metavar="HTML", help="write a page with the plot")

    serving.add_arguments(
        verb(
            "serve",
            "answer over HTTP: sessions, predictions, rollouts",
            "On loopback unless there are keys. Example: nextvec serve runs/first",
        )
    )

    rollout.add_arguments(
        verb(
            "rollout",
            "try a canary beside the model that answers, and roll it back at the first proof of harm",
            "Servers take part by --ledger. Example: nextvec rollout start runs/second --over runs/first",
        )
    )

    compare = verb(
        "compare",
        "two runs on one exam: which is better, and whether that is shown",
        "The lift is paired by row and resampled by document. Example: nextvec compare runs/new runs/old",
    )
    compare.add_argument("a", type=Path, metavar="A", help="a trained run")
    compare.add_argument("b", type=Path, metavar="B", help="the run it is compared with, of the same bank")
    compare.add_argument("--bank", type=Path, help="where their bank lies now (default: where A was trained on it)")
    compare.add_argument("--split", choices=("valid", "test"), default="test", help="which documents (test)")
    compare.add_argument("--context", type=_positive, help="vectors read before each scored row (what each was trained with)")
    compare.add_argument("--pool", type=_pool, default=1000, metavar="N|all", help="candidates per scored row (1000)")
    compare.add_argument("--rows", type=_positive, default=2000, help="scored rows at most (2000)")
    compare.add_argument("--lanes", type=Path, metavar="FOLDER", help="the lift lane by lane; made by nextvec lanes BANK --out")
    compare.add_argument(
        "--expert", action="append", default=[], metavar="LANE=RUN", help="a run that answers that lane in A's place"
    )

    gate = verb(
        "gate",
        "judge a run by gates, and leave a decision record in it",
        "Exit code 1 when a gate is not passed. Example: nextvec gate runs/first seed",
    )
    gate.add_argument("run", type=Path, help="a trained run")
    gate.add_argument("gates", help="a .toml file of gates, or one that is shipped: seed, hard_negatives")
    gate.add_argument("--over", type=Path, metavar="RUN", help="what a gain is taken over, where the file names no run")
    gate.add_argument("--bank", type=Path, help="where its bank lies now (default: where it was trained on it)")

    sweep = verb(
        "sweep",
        "train a recipe at many settings, judge all on one valid exam",
        "Killed at any moment, the same command goes on. "
        "Examples: nextvec sweep default --bank books.bank --out sweeps/alpha --over alpha=0.01,0.03,0.05 · "
        "nextvec sweep default --bank books.bank --out sweeps/lr --over lr=1e-4..1e-2 --trials 20",
    )
    sweep.add_argument("recipe", help="what all points share, as for train")
    sweep.add_argument("--bank", type=Path, required=True, help="what to train on")
    sweep.add_argument("--out", type=Path, required=True, help="the folder of the runs and of sweep.json")
    sweep.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="NAME=V,V,…|LOW..HIGH",
        help="a setting and its values, or with --trials its ends; may be repeated",
    )
    sweep.add_argument("--seeds", type=_positive, default=3, help="runs per point (3)")
    sweep.add_argument("--trials", type=_positive, help="search instead of a grid: as many points, proposed by Optuna")
    sweep.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change another setting; may be repeated"
    )
    sweep.add_argument("--jobs", type=_positive, default=1, help="runs at a time; in a search, seeds of one trial (1)")
    sweep.add_argument("--rows", type=_positive, default=2000, help="scored rows of the exam at most (2000)")

    phases = verb(
        "phases",
        "the predecessor's phases, ours and as published, on one exam",
        "Trains what is missing in DIR, then writes DIR/phases.json and phases.html; without --bank, from what has finished. "
        "Killed at any moment, the same command goes on. "
        "Example: nextvec phases runs/phases --bank books.bank --recipes phase1,phase3 --seeds 3",
    )
    phases.add_argument("folder", type=Path, metavar="DIR", help="folder of the runs, DIR/RECIPE/seed-N, and of the table")
    phases.add_argument("--bank", type=Path, help="what to train on (default: train nothing)")
    phases.add_argument("--recipes", type=_names, metavar="A,B,…", help="which (all phases in both forms, and four ablations)")
    phases.add_argument("--seeds", type=_positive, default=1, help="runs per recipe (1)")
    phases.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of every recipe; may be repeated"
    )
    phases.add_argument("--pools", type=_pools, metavar="N,…,all", help="candidates per scored row (58,115,230,1000,1148,all)")
    phases.add_argument("--rows", type=_positive, default=2000, help="scored rows at most (2000)")
    phases.add_argument("--lanes", type=Path, metavar="FOLDER", help="figures lane by lane; made by nextvec lanes BANK --out")
    phases.add_argument("--jobs", type=_positive, default=1, help="runs at a time (1)")

    experiment = verbs.add_parser(
        "experiment", help="controlled experiments: context, experts", description="Controlled experiments."
    )
    which = experiment.add_subparsers(dest="which", required=True, metavar="WHICH")
    context = which.add_parser(
        "context",
        help="what longer context is worth, everything else equal",
        description="Trains runs that differ in nothing but their context, lets them sit one exam, then takes context away "
        "from the longest and disturbs it. Writes DIR/context.json and context.html. Killed at any moment, the same command "
        "goes on. Example: nextvec experiment context --bank books.bank --out runs/context --contexts 100,1000",
    )
    context.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    context.add_argument("--bank", type=Path, required=True, help="what to train on")
    context.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs and of the page")
    context.add_argument("--contexts", type=_counts, default=(100, 500, 1000), metavar="N,N,…", help="which (100,500,1000)")
    context.add_argument("--seeds", type=_positive, default=3, help="runs per context (3)")
    context.add_argument("--recipe", default="default", help="what all runs share, as for train (default)")
    context.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; may be repeated")
    context.add_argument("--pool", type=_pool, default=1000, metavar="N|all", help="candidates per scored row (1000)")
    context.add_argument("--rows", type=_positive, default=2000, help="scored rows at most (2000)")
    context.add_argument("--jobs", type=_positive, default=1, help="runs at a time (1)")

    experts = which.add_parser(
        "experts",
        help="what experts are worth beside one model of as many parameters",
        description="Trains one model without experts, with one that everything passes (equal active parameters), with one as "
        "large as all (equal parameters), and with 16 routed by lanes: by description, by k-means, and by chance, the control. "
        "All make equal updates and sit one exam. Writes DIR/experts.json. Killed at any moment, the same command goes on. "
        "Example: nextvec experiment experts --bank books.bank --out runs/experts --kinds one,active,clusters,random",
    )
    experts.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    experts.add_argument("--bank", type=Path, required=True, help="what to train on")
    experts.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs and of the result")
    experts.add_argument("--lanes", type=Path, metavar="FOLDER", help="figures lane by lane; made by nextvec lanes BANK --out")
    experts.add_argument(
        "--kinds",
        type=_names,
        metavar="A,B,…",
        help="which (all: one,active,total,descriptions,clusters,random,adapters,constants,stages)",
    )
    experts.add_argument("--seeds", type=_positive, default=3, help="runs per kind (3)")
    experts.add_argument("--recipe", default="default", help="what all runs share, as for train (default)")
    experts.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; may be repeated")
    experts.add_argument("--pool", type=_pool, default=1000, metavar="N|all", help="candidates per scored row (1000)")
    experts.add_argument("--rows", type=_positive, default=2000, help="scored rows at most (2000)")
    experts.add_argument("--jobs", type=_positive, default=1, help="runs at a time (1)")
    return parser


def _positive(text: str) -> int:
    return _number(text, 1)


def _whole(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        value = least - 1
    if not least <= value <= 2**40:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _pool(text: str) -> int | None:
    return None if text == "all" else _number(text, 2)


def _pools(text: str) -> tuple[int | None, ...]:
    return tuple(map(_pool, _names(text)))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(_positive, _names(text)))


def _names(text: str) -> tuple[str, ...]:
    """A list with commas between; no name may be empty."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like a,b,c")
    return names


if __name__ == "__main__":
    sys.exit(main())
