"""One function a verb: arguments to the library, results to the terminal."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from nextvec import settings as frozen
from nextvec.bank import Bank, census
from nextvec.bank.exchange import write_parquet, write_windows
from nextvec.bank.layout import MANIFEST
from nextvec.bank.tokens import token_facts
from nextvec.cli import show
from nextvec.cli.banks import open_bank, open_bank_of
from nextvec.demo import demo as run_demo
from nextvec.errors import DataError, SettingsError
from nextvec.evaluation.audit import audit as run_audit
from nextvec.evaluation.results import OWN_CONTEXT
from nextvec.evaluation.runs import evaluate as run_evaluate
from nextvec.inference import Engine
from nextvec.inference.export import export as export_model
from nextvec.ingestion import Chunking
from nextvec.ingestion import ingest as run_ingest
from nextvec.ingestion.ingest import open_any
from nextvec.ingestion.text import decode
from nextvec.lanes import Lanes
from nextvec.recipes import recipe
from nextvec.runs import Run
from nextvec.settings import override
from nextvec.training import begin
from nextvec.training import train as run_train
from nextvec.windows import missed_shares

Arguments = Namespace


def demo(arguments: Arguments) -> int:
    with show.Bars() as bars:
        found = run_demo(arguments.out, arguments.size, bars, bars.event).to_json()
    if arguments.json:
        return as_json(found)
    show.report_table(found)
    show.curve_table(found["curve"])
    print()
    show.examples(found["examples"])
    print(f"\nThe whole report: {(arguments.out / 'report.html').resolve()}")
    return 0


def ingest(arguments: Arguments) -> int:
    chunking = Chunking(arguments.size, arguments.unit, arguments.overlap)
    with show.Bars() as bars:
        if arguments.bank.exists():
            raise DataError(f"{arguments.bank} already exists; choose another name or delete it first")
        source = open_any(arguments.source, arguments.bank, arguments.encoder_name, arguments.skip_unreadable, bars)
        bank = run_ingest(source, arguments.bank, arguments.encoder, chunking, arguments.dtype, bars)
    for note in source.unread.notes():
        print(f"nextvec: {arguments.source}: {note}", file=sys.stderr)
    left_out = source.unread.to_json()
    return _show({**_bank_facts(bank), **({"not_read": left_out} if left_out and arguments.json else {})}, arguments)


def inspect(arguments: Arguments) -> int:
    if (arguments.path / MANIFEST).exists():
        return _show(_bank_facts(open_bank(arguments.path, arguments)), arguments)
    if (arguments.path / "run.json").exists():
        run = Run.open(arguments.path)
        return _show({**_run_facts(run), "settings": frozen.to_json(run.settings)}, arguments)
    raise DataError(f"{arguments.path} is neither a bank nor a run")


def audit(arguments: Arguments) -> int:
    findings = run_audit(Bank.open(arguments.bank, "never"))  # what is wrong is a finding, not a refusal
    passed = all(finding.passed for finding in findings.values())
    if arguments.json:
        detectors = {name: finding.to_json() for name, finding in findings.items()}
        as_json({"passed": passed, "detectors": detectors})
    else:
        for name, finding in findings.items():
            figures = ", ".join(f"{k.replace('_', ' ')} {_figure(v)}" for k, v in finding.figures.items())
            print(f"{'pass' if finding.passed else 'FAIL'}  {name:<17} {finding.says} ({figures})")
    return 0 if passed else 1


def export(arguments: Arguments) -> int:
    if (arguments.source / "run.json").exists():
        return _export_model(arguments)
    if not (arguments.source / MANIFEST).exists():
        raise DataError(f"{arguments.source} is neither a bank nor a run")
    bank = open_bank(arguments.source, arguments)
    if arguments.out.suffix.lower() == ".parquet":
        with show.Bars() as bars:
            write_parquet(bank, arguments.out, bars)
        written = {"rows": len(bank)}
    elif arguments.out.suffix.lower() == ".npz":
        written = {"windows": write_windows(bank, arguments.out, arguments.context)}
    else:
        raise DataError(f"{arguments.out}: write .parquet or .npz")
    return _show({"file": str(arguments.out), **written, "bytes": arguments.out.stat().st_size}, arguments)


def _export_model(arguments: Arguments) -> int:
    run = Run.open(arguments.source)
    bank = open_bank_of(run, arguments) if arguments.bank else None
    manifest = export_model(run, arguments.out, bank)
    facts = {
        "folder": str(arguments.out),
        "model": manifest["model"],
        "bytes": sum(file.stat().st_size for file in arguments.out.iterdir()),
        "state_tensors": len(manifest["state"]),
        **{f"{part}_difference": float(f"{value:.1e}") for part, value in manifest["checked"]["largest_difference"].items()},
    }
    return _show(facts, arguments)


def train(arguments: Arguments) -> int:
    bank = open_bank(arguments.bank, arguments)
    settings = override(recipe(arguments.recipe, len(bank)), arguments.set)
    run = begin(arguments.run, arguments.recipe, settings, bank)
    with show.Bars() as bars:
        if not settings.only:
            for sentence in missed_shares(bank, run.split(bank), settings.valid, settings.test).values():
                bars.console.print(f"[dim]{sentence}[/dim]", highlight=False)
        for event in run_train(run, bank):
            bars.event(event)
    return _show(_run_facts(run), arguments)


def status(arguments: Arguments) -> int:
    return _show(_run_facts(Run.open(arguments.run)), arguments)


def evaluate(arguments: Arguments) -> int:
    run = Run.open(arguments.run)
    bank = open_bank_of(run, arguments)
    context = arguments.context or OWN_CONTEXT
    with show.Bars() as bars:
        lanes = Lanes.open(arguments.lanes, bank) if arguments.lanes else None
        report = run_evaluate(run, bank, arguments.split, context, arguments.pool, arguments.rows, bars, lanes).to_json()
    if arguments.json:
        return as_json(report)
    show.report_table(report)
    return 0


def predict(arguments: Arguments) -> int:
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
        expected = [{"row": e.row, "score": e.score, "document": e.document, "text": e.text, "count": e.count} for e in found]
        return as_json({"context": session.length, "bank": engine.bank.fingerprint, "expected": expected})
    for number, chunk in enumerate(found, 1):
        more = f" (and {chunk.count - 1:,} more rows)" if chunk.count > 1 else ""
        print(f"{number}. [{chunk.score:.3f}] {chunk.document}{more}\n{chunk.text}\n")
    return 0


def _predict_many(run: Run, arguments: Arguments) -> int:
    from nextvec.inference.batch import predict_file

    if arguments.output is None:
        raise SettingsError("--input needs --output: the Parquet file to write")
    engine = Engine.open(run, open_bank_of(run, arguments))
    if (arguments.input / MANIFEST).exists():
        open_bank(arguments.input, arguments)  # verified before anything is written
    with show.Bars() as bars:
        written = predict_file(engine, arguments.input, arguments.output, arguments.k, arguments.at, arguments.vectors, bars)
    return _show({"file": str(arguments.output), **written, "bytes": arguments.output.stat().st_size}, arguments)


def _standard_input() -> str:
    return decode(sys.stdin.buffer.read(), "standard input")


def _bank_facts(bank: Bank) -> dict[str, Any]:
    counted = census(bank)
    m = bank.manifest
    return {
        "kind": "bank",
        "rows": m.rows,
        "dim": m.dim,
        "documents": m.documents,
        "longest_document": int(bank.lengths.max()),
        "dtype": m.dtype,
        "encoder": m.encoder,
        "encoder_fingerprint": m.encoder_fingerprint,
        "fingerprint": m.fingerprint,
        "chunking": m.chunking,
        **token_facts(bank),
        "exact_duplicates": counted.exact_duplicates,
        "near_duplicates": counted.near_duplicates,
        "near_duplicate_document_groups": len(counted.document_groups),
        "format": m.format,
    }


def _run_facts(run: Run) -> dict[str, Any]:
    history = run.history()
    update = history[-1]["update"] if history else 0
    seconds = run.seconds()
    state = "training" if run.is_training else "finished" if run.finished else "stopped"
    eta, error = run.eta(), run.eta_error()
    return {
        "kind": "run",
        "state": state,
        "recipe": run.recipe,
        "update": update,
        "updates": run.settings.updates,
        "best_hit5": run.best_hit5,
        "finished": run.finished,
        "seconds": round(seconds, 1),
        "eta_seconds": None if eta is None else round(eta, 1),
        "eta_error": None if error is None else round(error, 3),
        "alarms": run.alarms(),
        "bank": run.origin.bank,
    }


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _show(values: Mapping[str, Any], arguments: Arguments) -> int:
    if arguments.json:
        return as_json(values)
    show.pairs(values)
    return 0


def as_json(value: Mapping[str, Any]) -> int:
    """Print one object; 0, as an exit code."""
    print(json.dumps(value))
    return 0
