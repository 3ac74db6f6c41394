"""Verbs that train a run and use it; and the demo, which does both."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nextvec.cli.arguments import (
    add_bank_of_run,
    add_candidate_bank,
    add_exam,
    add_lanes,
    add_refit,
    add_settings,
    add_source,
    add_training_bank,
    add_verify,
    add_weights,
    counts,
    positive,
    positive_number,
)
from nextvec.cli.verb import Verb
from nextvec.cli.verbs.banks import AGAIN


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        help="folder of the bank, the run and the report (default: demo)",
    )
    parser.add_argument("--size", type=positive, default=9_000, help="approximate number of chunks to encode (default: 9000)")


def _demo(arguments: Namespace) -> int:
    from nextvec.cli.evaluation import demo

    return demo(arguments)


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "recipe", help="default, or a phase such as phase1 or phase3-published; its settings depend on the size of the bank"
    )
    parser.add_argument("run", type=Path, help="the folder of the new run")
    add_training_bank(parser)
    add_settings(parser)


def _train(arguments: Namespace) -> int:
    from nextvec.cli.training import train

    return train(arguments)


def _status_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run")


def _status(arguments: Namespace) -> int:
    from nextvec.cli.training import status

    return status(arguments)


def _evaluate_arguments(parser: ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument(
        "--bank", type=Path, help="another bank, with --split all (default: the bank that the run was trained on)"
    )
    add_verify(parser)
    parser.add_argument(
        "--split", choices=("valid", "test", "all"), default="test", help="which documents are scored (default: test)"
    )
    parser.add_argument(
        "--context",
        type=positive,
        help="vectors read before each scored row (default: the context length of the training)",
    )
    add_refit(parser)
    add_exam(parser)
    add_lanes(parser)
    parser.add_argument(
        "--page", type=Path, metavar="HTML", help="write a page with the figures and the reliability diagram to this file"
    )


def _evaluate(arguments: Namespace) -> int:
    from nextvec.cli.evaluation import evaluate

    return evaluate(arguments)


def _predict_arguments(parser: ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("-k", type=positive, default=5, help="number of chunks to predict (default: 5)")
    parser.add_argument(
        "--because",
        type=positive,
        default=0,
        metavar="N",
        help="also print, for each predicted chunk, the N chunks of the text that add most to its score, and what the others "
        "add; positions count from 0",
    )
    add_candidate_bank(parser)
    add_refit(parser)
    parser.add_argument(
        "--input",
        type=Path,
        help="predict for every document of a bank, or of a .parquet file with document, index and vector, instead of for "
        "standard input",
    )
    parser.add_argument("--output", type=Path, help="with --input: the .parquet file to write")
    parser.add_argument(
        "--at",
        choices=("every", "last"),
        default="every",
        help="with --input: predict after every vector, or after the last vector of each document (default: every)",
    )
    parser.add_argument("--vectors", action="store_true", help="with --input: also write the predicted vectors")


def _predict(arguments: Namespace) -> int:
    from nextvec.cli.prediction import predict

    return predict(arguments)


def _surprise_arguments(parser: ArgumentParser) -> None:
    add_source(parser)
    add_bank_of_run(parser)
    parser.add_argument("--document", metavar="ID", help="id or title of the document (default: the first of the bank)")
    parser.add_argument("--top", type=positive, metavar="N", help="print only the N most surprising chunks")
    parser.add_argument("--page", type=Path, metavar="HTML", help="write a page with the plot to this file")


def _surprise(arguments: Namespace) -> int:
    from nextvec.cli.surprise import surprise

    return surprise(arguments)


def _latency_arguments(parser: ArgumentParser) -> None:
    add_source(parser)
    add_bank_of_run(parser)
    parser.add_argument(
        "--contexts",
        type=counts,
        default=(10, 100, 1_000, 10_000),
        metavar="N,N,…",
        help="context lengths, in vectors (default: 10,100,1000,10000)",
    )
    parser.add_argument(
        "--candidates",
        type=positive,
        help="rows to search (default: the rows of the bank); additional rows are made from rows of the bank",
    )
    add_weights(parser)
    parser.add_argument(
        "--format",
        choices=("float32", "float16", "int8"),
        default="int8",
        help="number format that the exact index reads (default: int8)",
    )
    parser.add_argument(
        "--budget",
        type=positive_number,
        default=5.0,
        metavar="MS",
        help="largest accepted P95 of a prediction, in ms (default: 5)",
    )
    parser.add_argument("--against", type=Path, metavar="RUN|BANK", help="second run, to measure and compare with")
    parser.add_argument(
        "--ratio",
        type=positive_number,
        default=1.2,
        help="largest accepted P95, as a multiple of the P95 of --against (default: 1.2)",
    )
    parser.add_argument("--page", type=Path, metavar="HTML", help="write a page with the chart to this file")


def _latency(arguments: Namespace) -> int:
    from nextvec.cli.latency import latency

    return latency(arguments)


DEMO = Verb(
    "demo",
    "make a bank, predict it, train a run and write a report, on text from Python's packages",
    "Reads the documentation inside Python's packages, makes a bank, predicts it with the weights of the package, trains a "
    f"run, and writes a report about both. {AGAIN}",
    "nextvec demo --out demo",
    _demo_arguments,
    _demo,
)

RUNS = (
    Verb(
        "train",
        "train a run on a bank with a recipe",
        "Reads a bank and writes a run: its settings, its history and its weights. After an interruption, run the same command "
        "again: it continues, and the weights are the same to the bit.",
        "nextvec train default runs/first --bank books.bank",
        _train_arguments,
        _train,
    ),
    Verb(
        "status",
        "show the state and the progress of a run",
        "Reads a run and prints its state, its updates and the remaining time. Writes nothing.",
        "nextvec status runs/first",
        _status_arguments,
        _status,
    ),
    Verb(
        "evaluate",
        "measure Hit@1, Hit@5 and Hit@10 of a run, or without training, and of every baseline",
        "Reads a run and its bank, ranks candidates for each scored row, and prints Hit@K with intervals for the model and "
        "every baseline. For a bank, the model has the weights of the package, in a space that is fitted to the training "
        "documents of the bank. States how well the probabilities of the answers agree with what came. Writes only --page.",
        "nextvec evaluate runs/first --context 500",
        _evaluate_arguments,
        _evaluate,
    ),
    Verb(
        "predict",
        "predict the next chunks of a text, or of every document of a file",
        "Reads text from standard input and prints the chunks that the model of a run expects next; for a bank, the model with "
        "the weights of the package, which needs no training. With --input it reads many "
        f"documents and writes a .parquet file of predictions. {AGAIN}",
        "nextvec predict books.bank -k 5 < chapter.txt",
        _predict_arguments,
        _predict,
    ),
    Verb(
        "surprise",
        "show how surprising every chunk of a document is",
        "Reads one document of a bank and prints the surprise of every chunk in bits: -log2 of the probability that the model "
        "gave it, among all chunks of the bank, after it had read the chunks before it. A high value marks a change of topic. "
        "Writes only --page.",
        "nextvec surprise books.bank --document emma.txt --page emma.html",
        _surprise_arguments,
        _surprise,
    ),
    Verb(
        "latency",
        "measure the latency of a prediction at several context lengths",
        "Reads a run and its bank, and measures on one thread the time to read one vector and to search. Prints the times and "
        "the limits of the machine. Writes only --page. The exit code is 1 if P95 is above the budget or the ratio.",
        "nextvec latency runs/first --contexts 10,100,1000 --candidates 100000",
        _latency_arguments,
        _latency,
    ),
)
