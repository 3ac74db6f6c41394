"""The verb that predicts for one text, or for every document of a file."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from nextvec.bank.layout import MANIFEST
from nextvec.cli import show
from nextvec.cli.banks import open_bank, open_bank_of, open_engine, open_source
from nextvec.cli.output import as_json, facts
from nextvec.errors import DataError, SettingsError
from nextvec.evaluation.calibration import UNCALIBRATED
from nextvec.inference import Expected, joint_probability
from nextvec.inference.because import check_because
from nextvec.ingestion.text import decode
from nextvec.runs import Source


def predict(arguments: Namespace) -> int:
    source = open_source(arguments.run, arguments)
    if arguments.input is not None:
        return _predict_many(source, arguments)
    bank = open_bank_of(source, arguments)
    if not bank.manifest.text:
        raise DataError("this bank holds vectors only; there are no chunks to print. Predict for files of vectors with --input")
    engine = open_engine(source, bank, arguments)
    check_because(arguments.because, engine.names_rows)
    session, chunks = engine.session(), engine.cut(_standard_input())
    session.push_many(engine.encode_chunks(chunks))
    found = session.predict(arguments.k, because=arguments.because)
    if arguments.json:
        expected = [_to_json(chunk, chunks) for chunk in found]
        about = {"context": session.length, "bank": bank.fingerprint, "probability": joint_probability(found)}
        return as_json({**about, "expected": expected})
    for number, chunk in enumerate(found, 1):
        more = f" (and {chunk.count - 1:,} more rows)" if chunk.count > 1 else ""
        likely = "" if chunk.probability is None else f"{chunk.probability:.1%}, "
        print(f"{number}. [{likely}score {chunk.score:.3f}] {chunk.document}{more}\n{chunk.text}\n")
        if chunk.because is not None:
            show.because_table(chunk.because, chunks)
    print(_among(joint_probability(found)))
    return 0


def _among(probability: float | None) -> str:
    """The probability of the whole answer, in words."""
    if probability is None:
        return f"No probabilities: {UNCALIBRATED}."
    return f"If the next chunk is in the bank, it is one of these with a probability of {probability:.1%}."


def _to_json(chunk: Expected, context: Sequence[str]) -> dict[str, Any]:
    """A predicted chunk, with the chunks of the context that it comes from if they were asked for."""
    expected: dict[str, Any] = {
        "row": chunk.row,
        "score": chunk.score,
        "probability": chunk.probability,
        "document": chunk.document,
        "text": chunk.text,
        "count": chunk.count,
    }
    if chunk.item is not None:
        expected["item"] = chunk.item
    if chunk.because is None:
        return expected
    rows = [{"position": row.position, "part": row.part, "text": context[row.position]} for row in chunk.because.rows]
    return {**expected, "because": {"rows": rows, "others": chunk.because.others, "learned": chunk.because.learned}}


def _predict_many(source: Source, arguments: Namespace) -> int:
    from nextvec.inference.batch import predict_file

    if arguments.output is None:
        raise SettingsError("--input needs --output: the Parquet file to write")
    if arguments.because:
        raise SettingsError("--because names chunks of the text on standard input; leave it out with --input")
    engine = open_engine(source, open_bank_of(source, arguments), arguments)
    if (arguments.input / MANIFEST).exists():
        open_bank(arguments.input, arguments)  # verified before anything is written
    with show.Bars() as bars:
        written = predict_file(engine, arguments.input, arguments.output, arguments.k, arguments.at, arguments.vectors, bars)
    return facts({"file": str(arguments.output), **written, "bytes": arguments.output.stat().st_size}, arguments)


def _standard_input() -> str:
    return decode(sys.stdin.buffer.read(), "standard input")
