"""Verbs that make a bank, look into it, or write it elsewhere."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nextvec.cli.arguments import add_refit, add_verify, positive, whole
from nextvec.cli.verb import Verb

SOURCE = (
    "a folder of .txt, .md, .markdown or .rst files, of Parquet or Arrow files, or of a saved dataset; or one file of the "
    "kinds .txt, .md, .jsonl, .parquet, .arrow, or .npz with vectors and lengths"
)
AGAIN = "After an interruption, run the same command again, and it continues."


def _ingest_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=SOURCE)
    parser.add_argument("bank", type=Path, help="the folder of the new bank")
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="encoder of the texts: all-MiniLM-L6-v2 (default; works offline), all-MiniLM-L6-v2-int8 (the same model in int8, "
        "faster), static or static:FOLDER (vectors of tokens, fastest, less accurate), or any sentence-transformers model",
    )
    parser.add_argument("--encoder-name", metavar="NAME", help="encoder that made ready vectors, if the file does not name it")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read, and list them")
    parser.add_argument(
        "--size", type=positive, default=300, help="largest size of a chunk (default: 300); less if the encoder reads less"
    )
    parser.add_argument(
        "--unit",
        choices=("characters", "tokens"),
        default="characters",
        help="unit of --size and --overlap (default: characters); tokens are those of the encoder",
    )
    parser.add_argument(
        "--overlap", type=whole, default=0, help="length of the end of a chunk that the next chunk repeats (default: 0)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="number format of the rows (default: float16, or the format of the bank that the file was exported from)",
    )


def _ingest(arguments: Namespace) -> int:
    from nextvec.cli.ingestion import ingest

    return ingest(arguments)


def _inspect_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a bank or a run")
    add_verify(parser)


def _inspect(arguments: Namespace) -> int:
    from nextvec.cli.inspection import inspect

    return inspect(arguments)


def _audit_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="the bank to check")


def _audit(arguments: Namespace) -> int:
    from nextvec.cli.inspection import audit

    return audit(arguments)


def _index_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="the bank to index")
    parser.add_argument("index", type=Path, help="the path of the new index; it refers to the rows of the bank")
    parser.add_argument(
        "--kind",
        choices=("exact", "approximate"),
        default="exact",
        help="kind of search (default: exact); approximate needs faiss",
    )
    parser.add_argument(
        "--format", choices=("float32", "float16", "int8"), help="number format of the index (default: the format of the bank)"
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN|BANK",
        help="index the rows as the model of this run compares them, which a run needs that was trained with space=fitted; or, "
        "if the bank itself is given, as the weights of the package compare them",
    )
    add_refit(parser)
    add_verify(parser)


def _index(arguments: Namespace) -> int:
    from nextvec.cli.index import index

    return index(arguments)


def _lanes_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="the bank whose chunks get lanes")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="read the lanes from a .toml file: [[lane]] with name, description and examples",
    )
    how.add_argument("--clusters", type=positive, metavar="N", help="use N clusters of the vectors as lanes; needs no text")
    how.add_argument("--random", type=positive, metavar="N", help="assign documents at random to N lanes, as a control")
    how.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="read the lanes from a .csv file of document,lane; other documents get the nearest lane",
    )
    parser.add_argument("--balanced", action="store_true", help="make clusters of equal size; needs --clusters")
    parser.add_argument("--seed", type=whole, help="random seed of --clusters and --random (default: 0)")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="report the agreement with a .csv file of document,lane, and calibrate the confidence with it",
    )
    parser.add_argument(
        "--needed",
        type=whole,
        default=1_000,
        metavar="ROWS",
        help="rows that a lane needs; a lane with fewer rows is reported as starved (default: 1000)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the lanes to this folder, outside the bank")
    add_verify(parser)


def _lanes(arguments: Namespace) -> int:
    from nextvec.cli.lanes import lanes

    return lanes(arguments)


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="RUN|BANK", help="a bank or a finished run")
    parser.add_argument(
        "out",
        type=Path,
        help="the folder for a run; for a bank a .parquet or .npz file, or a folder for the weights of the package",
    )
    parser.add_argument(
        "--context", type=positive, default=100, help="number of vectors in a window of a .npz file (default: 100)"
    )
    parser.add_argument(
        "--bank", type=Path, help="bank whose rows check an exported run (default: the bank that the run was trained on)"
    )
    add_verify(parser)


def _export(arguments: Namespace) -> int:
    from nextvec.cli.export import export

    return export(arguments)


BANKS = (
    Verb(
        "ingest",
        "make a bank from text or from ready vectors",
        f"Reads text or ready vectors, encodes the text chunk by chunk, and writes a bank: a folder of vectors. {AGAIN}",
        "nextvec ingest books/ books.bank",
        _ingest_arguments,
        _ingest,
    ),
    Verb(
        "inspect",
        "show the contents of a bank or a run",
        "Reads a bank and prints its size, encoder and duplicates; or reads a run and prints its state. Writes nothing.",
        "nextvec inspect books.bank",
        _inspect_arguments,
        _inspect,
    ),
    Verb(
        "audit",
        "check a bank for faults that make results wrong",
        "Reads a bank, looks for leakage, duplicates, shuffled rows and other faults, and prints the result of each check. "
        "Writes nothing. The exit code is 1 if a check fails.",
        "nextvec audit books.bank",
        _audit_arguments,
        _audit,
    ),
    Verb(
        "index",
        "make a search index of a bank",
        "Reads a bank and writes an index of its distinct vectors. An exact index finds the true nearest vectors in every "
        "number format. An approximate index searches a graph; the command prints its recall. With --run the index is of the "
        "rows as the model of that run maps them.",
        "nextvec index books.bank books.index --format int8",
        _index_arguments,
        _index,
    ),
    Verb(
        "lanes",
        "assign a lane, such as a topic, to each chunk of a bank",
        "Reads a bank, assigns a lane to each chunk, and prints the sizes of the lanes. With --out it writes the lanes. By "
        "default the lanes are 16 domains with descriptions.",
        "nextvec lanes books.bank --clusters 16 --balanced --out books.lanes",
        _lanes_arguments,
        _lanes,
    ),
    Verb(
        "export",
        "write a bank as Parquet or windows, or a model as ONNX",
        "Reads a bank and writes a .parquet file, or a .npz file of windows in the format of the published predecessor system. "
        "Or reads a run and writes a folder that predicts with only ONNX Runtime and NumPy; of a bank, such a folder has the "
        "weights of the package. Before it finishes, it compares the exported model with the original.",
        "nextvec export runs/first first.onnx",
        _export_arguments,
        _export,
    ),
)
