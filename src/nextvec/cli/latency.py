"""The verb that measures the time of an answer, and checks it against a budget."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.candidate_map import CandidateMap, index_of
from nextvec.cli import show
from nextvec.cli.banks import open_bank_of
from nextvec.cli.output import as_json
from nextvec.errors import DataError
from nextvec.index import ExactIndex
from nextvec.inference import Engine
from nextvec.inference.latency import AnswerLatency, answers, candidates_of, cold_start, gates, limits, to_json
from nextvec.models.packed import weight_bytes
from nextvec.pages.latency_page import write_latency_page
from nextvec.runs import Run, load_model


def latency(arguments: Namespace) -> int:
    run = Run.open(arguments.run)
    bank = open_bank_of(run, arguments)
    if bank.path is None:
        raise DataError("the bank must lie on disk, so that a fresh process can open it")
    candidates = candidates_of(bank, arguments.candidates)
    model = load_model(run)
    index = index_of(candidates, CandidateMap.of(model), arguments.format)
    engine = Engine.open(run, candidates, index, arguments.weights)
    vectors = bank.rows[: max(arguments.contexts)]
    with show.Bars() as bars:
        found = answers(engine, arguments.contexts, vectors, model, progress=bars)
        other = _other(arguments, candidates, index, vectors) if arguments.against else None
    read = weight_bytes(engine.model)
    row_bytes = index.dim * {"float32": 4, "float16": 2, "int8": 1}[index.form]
    limit = limits(read, index.searched * row_bytes)
    judged = gates(found, arguments.budget, other, arguments.ratio)
    facts: dict[str, Any] = {
        "kind": "latency",
        "run": str(run.path),
        "model": run.settings.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": {"format": engine.weights, "bytes": read},
        "index": {
            "format": index.form,
            "rows": len(index.distinct),
            "bytes": index.searched * row_bytes,
            "of_the_bank": min(len(bank.distinct), len(index.distinct)),
        },
        "k": 10,
        "cold": cold_start(run.path, bank.path, engine.weights),
        "gates": [{"says": gate.says, "passed": gate.passed} for gate in judged],
        "passed": all(gate.passed for gate in judged),
        "notes": _notes(bank, len(index.distinct)),
    }
    result = to_json(found, limit, facts)
    if arguments.page:
        write_latency_page(arguments.page, result)
    if arguments.json:
        as_json(result)
    else:
        show.latency_table(result)
        if arguments.page:
            print(f"\nThe page: {Path(arguments.page).resolve()}")
    return 0 if result["passed"] else 1


def _other(arguments: Namespace, candidates: Bank, index: ExactIndex, vectors: np.ndarray) -> list[AnswerLatency]:
    run = Run.open(arguments.against)
    own = CandidateMap.of(load_model(run))
    if index.map_digest != ("" if own is None else own.digest):
        index = index_of(candidates, own, arguments.format)
    engine = Engine.open(run, candidates, index, arguments.weights)
    return answers(engine, arguments.contexts, vectors)


def _notes(bank: Bank, rows: int) -> list[str]:
    if rows <= len(bank.distinct):
        return []
    own = f"The bank has {len(bank.distinct):,} distinct vectors"
    return [f"{own}; the other candidates were made of them, each at cosine 0.9 from one."]
