"""The verb that measures the time of an answer, and checks it against a budget."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.candidate_map import CandidateMap, index_of
from nextvec.cli import show
from nextvec.cli.banks import open_bank_of, open_source
from nextvec.cli.output import as_json
from nextvec.confidence import USUAL
from nextvec.errors import DataError
from nextvec.index import ExactIndex
from nextvec.inference import Engine
from nextvec.inference.latency import AnswerLatency, answers, candidates_of, cold_start, gates, limits, to_json
from nextvec.models.packed import weight_bytes
from nextvec.pages.latency_page import write_latency_page
from nextvec.runs import load


def latency(arguments: Namespace) -> int:
    source = open_source(arguments.run, arguments)
    bank = open_bank_of(source, arguments)
    if bank.path is None:
        raise DataError("the bank must lie on disk, so that a fresh process can open it")
    candidates = candidates_of(bank, arguments.candidates)
    vectors = bank.rows[: max(arguments.contexts)]
    with show.Bars() as bars:
        loaded = load(source, bank, progress=bars)
        model = loaded.model
        index = index_of(candidates, CandidateMap.of(model), arguments.format, bars)
        # Any calibration: it takes part in the latency, and the probabilities are not read.
        engine = Engine.of(replace(loaded, bank=candidates), index, arguments.weights, calibration=USUAL)
        found = answers(engine, arguments.contexts, vectors, model, progress=bars)
        other = _other(arguments, candidates, index, vectors) if arguments.against else None
    read = weight_bytes(engine.model)
    row_bytes = index.dim * {"float32": 4, "float16": 2, "int8": 1}[index.form]
    limit = limits(read, index.searched * row_bytes)
    judged = gates(found, arguments.budget, other, arguments.ratio)
    facts: dict[str, Any] = {
        "kind": "latency",
        "run": str(arguments.run),
        "model": loaded.settings.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": {"format": engine.weights, "bytes": read},
        "index": {
            "format": index.form,
            "rows": len(index.distinct),
            "bytes": index.searched * row_bytes,
            "of_the_bank": min(len(bank.distinct), len(index.distinct)),
        },
        "k": 10,
        "cold": cold_start(arguments.run, bank.path, engine.weights),
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
    source = open_source(arguments.against, arguments)
    loaded = load(source, None if isinstance(source, Bank) else candidates)
    own = CandidateMap.of(loaded.model)
    if index.map_digest != ("" if own is None else own.digest):
        index = index_of(candidates, own, arguments.format)
    engine = Engine.of(replace(loaded, bank=candidates), index, arguments.weights, calibration=USUAL)
    return answers(engine, arguments.contexts, vectors)


def _notes(bank: Bank, rows: int) -> list[str]:
    if rows <= len(bank.distinct):
        return []
    own = f"The bank has {len(bank.distinct):,} distinct vectors"
    return [f"{own}; the other candidates were made of them, each at cosine 0.9 from one."]
