"""The verb that predicts for one text, or for every document of a file."""

import sys
from argparse import Namespace

from nextvec.bank.layout import MANIFEST
from nextvec.cli import show
from nextvec.cli.banks import open_bank, open_bank_of
from nextvec.cli.output import as_json, facts
from nextvec.errors import DataError, SettingsError
from nextvec.inference import Engine, joint_probability
from nextvec.ingestion.text import decode
from nextvec.runs import Run


def predict(arguments: Namespace) -> int:
    run = Run.open(arguments.run)
    if arguments.input is not None:
        return _predict_many(run, arguments)
    engine = Engine.open(run, open_bank_of(run, arguments))
    if not engine.bank.manifest.text:
        raise DataError("this bank holds vectors only; there are no chunks to print")
    session = engine.session()
    session.push_text(_standard_input())
    found = session.predict(arguments.k)
    if arguments.json:
        expected = [
            {
                "row": e.row,
                "score": e.score,
                "probability": e.probability,
                "document": e.document,
                "text": e.text,
                "count": e.count,
            }
            for e in found
        ]
        about = {"context": session.length, "bank": engine.bank.fingerprint, "probability": joint_probability(found)}
        return as_json({**about, "expected": expected})
    for number, chunk in enumerate(found, 1):
        more = f" (and {chunk.count - 1:,} more rows)" if chunk.count > 1 else ""
        value = f"score {chunk.score:.3f}" if chunk.probability is None else f"{chunk.probability:.1%}"
        print(f"{number}. [{value}] {chunk.document}{more}\n{chunk.text}\n")
    print(_among(joint_probability(found)))
    return 0


def _among(probability: float | None) -> str:
    """What the whole answer is worth, in words."""
    if probability is None:
        return "The run has no calibration, so the answer has no probabilities."
    return f"If the next chunk is in the bank, it is one of these with a probability of {probability:.1%}."


def _predict_many(run: Run, arguments: Namespace) -> int:
    from nextvec.inference.batch import predict_file

    if arguments.output is None:
        raise SettingsError("--input needs --output: the Parquet file to write")
    engine = Engine.open(run, open_bank_of(run, arguments))
    if (arguments.input / MANIFEST).exists():
        open_bank(arguments.input, arguments)  # verified before anything is written
    with show.Bars() as bars:
        written = predict_file(engine, arguments.input, arguments.output, arguments.k, arguments.at, arguments.vectors, bars)
    return facts({"file": str(arguments.output), **written, "bytes": arguments.output.stat().st_size}, arguments)


def _standard_input() -> str:
    return decode(sys.stdin.buffer.read(), "standard input")
