"""Verbs that make a bank, look into it, or write it elsewhere."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nextvec.cli.arguments import add_verify, positive, whole
from nextvec.cli.verb import Verb

SOURCE = (
    "a folder of .txt, .md, .markdown or .rst files, of Parquet or Arrow files, or of a saved dataset; or one file: .jsonl, "
    ".parquet, .arrow, or .npz with vectors and lengths"
)
AGAIN = "After a crash, run the same command again: it continues."


def _ingest_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=SOURCE)
    parser.add_argument("bank", type=Path, help="the bank to make")
    parser.add_argument(
        "--encoder", help="encoder of the texts: all-MiniLM-L6-v2 (default; works offline) or any sentence-transformers model"
    )
    parser.add_argument("--encoder-name", metavar="NAME", help="for ready vectors: what made them, if the file does not say it")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read, and list them")
    parser.add_argument(
        "--size", type=positive, default=300, help="largest chunk (default: 300); smaller where the encoder reads less"
    )
    parser.add_argument(
        "--unit",
        choices=("characters", "tokens"),
        default="characters",
        help="what --size and --overlap count (default: characters); tokens are those of the encoder",
    )
    parser.add_argument("--overlap", type=whole, default=0, help="how much of a chunk the next chunk repeats (default: 0)")
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="number format of the rows (default: float16, or that of the bank that the file was exported from)",
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
    parser.add_argument("index", type=Path, help="the index to make; it refers to the rows of the bank")
    parser.add_argument(
        "--kind", choices=("exact", "approximate"), default="exact", help="default: exact; approximate needs faiss"
    )
    parser.add_argument(
        "--format", choices=("float32", "float16", "int8"), help="number format that a search reads (default: that of the bank)"
    )
    add_verify(parser)


def _index(arguments: Namespace) -> int:
    from nextvec.cli.index import index

    return index(arguments)


def _lanes_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("bank", type=Path, help="the bank whose chunks get lanes")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--table", type=Path, metavar="FILE", help="lanes of a .toml file: [[lane]] with name, description and examples"
    )
    how.add_argument("--clusters", type=positive, metavar="N", help="N clusters of the vectors; needs no text")
    how.add_argument("--random", type=positive, metavar="N", help="N lanes to which documents are dealt by chance: the control")
    how.add_argument(
        "--labels", type=Path, metavar="FILE", help="lanes of a .csv file of document,lane; other documents join the nearest"
    )
    parser.add_argument("--balanced", action="store_true", help="with --clusters: clusters of equal size")
    parser.add_argument("--seed", type=whole, help="seed of --clusters and --random (default: 0)")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="a .csv file of document,lane: report the agreement, calibrate confidence"
    )
    parser.add_argument(
        "--needed",
        type=whole,
        default=1_000,
        metavar="ROWS",
        help="a lane with fewer rows counts as starved (default: 1000)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the lanes to this folder, outside the bank")
    add_verify(parser)


def _lanes(arguments: Namespace) -> int:
    from nextvec.cli.lanes import lanes

    return lanes(arguments)


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a bank or a finished run")
    parser.add_argument("out", type=Path, help="for a bank: the .parquet or .npz file to write; for a run: the folder to write")
    parser.add_argument("--context", type=positive, default=100, help="for .npz: vectors of a window (default: 100)")
    parser.add_argument(
        "--bank", type=Path, help="for a run: the bank whose rows the exported model is checked on (default: that of the run)"
    )
    add_verify(parser)


def _export(arguments: Namespace) -> int:
    from nextvec.cli.export import export

    return export(arguments)


BANKS = (
    Verb(
        "ingest",
        "make a bank of text or of ready vectors",
        f"Reads text or ready vectors, encodes the text chunk by chunk, and writes a bank: a folder of vectors. {AGAIN}",
        "nextvec ingest books/ books.bank",
        _ingest_arguments,
        _ingest,
    ),
    Verb(
        "inspect",
        "show what a bank or a run holds",
        "Reads a bank or a run and prints its size, encoder, duplicates or state. Writes nothing.",
        "nextvec inspect books.bank",
        _inspect_arguments,
        _inspect,
    ),
    Verb(
        "audit",
        "check a bank for faults that make figures wrong",
        "Reads a bank, looks for leakage, duplicates, shuffled rows and other faults, and prints what each check found. "
        "Writes nothing. Exit code 1 when a check fails.",
        "nextvec audit books.bank",
        _audit_arguments,
        _audit,
    ),
    Verb(
        "index",
        "make an index of a bank for fast search",
        "Reads a bank and writes an index of its distinct vectors. An exact index finds the nearest vectors in every number "
        "format; an approximate index searches a graph, and states its recall.",
        "nextvec index books.bank books.index --format int8",
        _index_arguments,
        _index,
    ),
    Verb(
        "lanes",
        "give each chunk of a bank a lane, which is a topic",
        "Reads a bank, gives each chunk a lane, and prints how even the lanes are; with --out it writes them. By default the "
        "lanes are 16 domains with descriptions.",
        "nextvec lanes books.bank --clusters 16 --balanced --out books.lanes",
        _lanes_arguments,
        _lanes,
    ),
    Verb(
        "export",
        "write a bank as Parquet or windows, or a run as ONNX",
        "Reads a bank and writes a .parquet file, or windows as a .npz file of the predecessor's form. Reads a run and writes "
        "a folder that predicts with ONNX Runtime and NumPy alone; the exported model is compared with the run first.",
        "nextvec export runs/first first.onnx",
        _export_arguments,
        _export,
    ),
)
