"""The verb that predicts for one text, or for every document of a file."""

import sys
from argparse import Namespace

from nextvec.bank.layout import MANIFEST
from nextvec.cli import show
from nextvec.cli.banks import open_bank, open_bank_of, open_engine, open_source
from nextvec.cli.output import as_json, facts
from nextvec.errors import DataError, SettingsError
from nextvec.ingestion.text import decode
from nextvec.runs import Source


def predict(arguments: Namespace) -> int:
    source = open_source(arguments.run, arguments)
    if arguments.input is not None:
        return _predict_many(source, arguments)
    bank = open_bank_of(source, arguments)
    if not bank.manifest.text:
        raise DataError("this bank holds vectors only; there are no chunks to print. Predict for files of vectors with --input")
    session = open_engine(source, bank, arguments).session()
    session.push_text(_standard_input())
    found = session.predict(arguments.k)
    if arguments.json:
        expected = [{"row": e.row, "score": e.score, "document": e.document, "text": e.text, "count": e.count} for e in found]
        return as_json({"context": session.length, "bank": bank.fingerprint, "expected": expected})
    for number, chunk in enumerate(found, 1):
        more = f" (and {chunk.count - 1:,} more rows)" if chunk.count > 1 else ""
        print(f"{number}. [{chunk.score:.3f}] {chunk.document}{more}\n{chunk.text}\n")
    return 0


def _predict_many(source: Source, arguments: Namespace) -> int:
    from nextvec.inference.batch import predict_file

    if arguments.output is None:
        raise SettingsError("--input needs --output: the Parquet file to write")
    engine = open_engine(source, open_bank_of(source, arguments), arguments)
    if (arguments.input / MANIFEST).exists():
        open_bank(arguments.input, arguments)  # verified before anything is written
    with show.Bars() as bars:
        written = predict_file(engine, arguments.input, arguments.output, arguments.k, arguments.at, arguments.vectors, bars)
    return facts({"file": str(arguments.output), **written, "bytes": arguments.output.stat().st_size}, arguments)


def _standard_input() -> str:
    return decode(sys.stdin.buffer.read(), "standard input")
