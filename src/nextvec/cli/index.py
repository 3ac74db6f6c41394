"""The verb that makes an index."""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from nextvec.bank import Bank
from nextvec.candidate_map import CandidateMap
from nextvec.cli import show
from nextvec.cli.banks import open_bank
from nextvec.cli.output import as_json
from nextvec.errors import DataError
from nextvec.index import Index
from nextvec.index.approximate import NEIGHBOURS, SAMPLE, predicted_like
from nextvec.index.open import KINDS
from nextvec.runs import bank_of, load, open_source


def index(arguments: Namespace) -> int:
    if arguments.index.exists():  # checked before the work, which may take an hour
        raise DataError(f"{arguments.index} already exists; choose another name or delete it first")
    bank = open_bank(arguments.bank, arguments)
    mapping = _map(arguments, bank)
    began = time.perf_counter()
    with show.Bars() as bars:
        made = KINDS[arguments.kind].build(bank, arguments.format, progress=bars, mapping=mapping)
    made.save(arguments.index)
    facts = {**_facts(made, bank, arguments.index, mapping), "seconds": round(time.perf_counter() - began, 2)}
    if arguments.json:
        return as_json(facts)
    show.pairs(facts)
    return 0


def _map(arguments: Namespace, bank: Bank) -> CandidateMap | None:
    """The map of candidates of ``--run``; None without it, or where its candidates are the rows of the bank."""
    if arguments.run is None:
        return None
    source = open_source(arguments.run)
    if isinstance(source, Bank):
        return CandidateMap.of(load(bank_of(source, arguments.bank)).model)
    return CandidateMap.of(load(source, bank, arguments.refit).model)


def _facts(made: Index, bank: Bank, folder: Path, mapping: CandidateMap | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "index": str(folder),
        "kind": made.kind,
        "format": made.form,
        "rows": len(made),
        "dim": made.dim,
        **({} if mapping is None else {"map": mapping.digest}),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }
    if not made.exact:
        return {**facts, **made.measured}
    asked = predicted_like(bank, SAMPLE)
    found = made.search(torch.from_numpy(asked if mapping is None else mapping(asked)), NEIGHBOURS)
    return {**facts, "rows_decided_per_query": round(found.decided / SAMPLE, 1)}
