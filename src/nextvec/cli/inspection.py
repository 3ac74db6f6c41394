"""The verbs that look into a bank or a run."""

from argparse import Namespace
from typing import Any

import numpy as np

from nextvec import settings as frozen
from nextvec.bank import Bank, census
from nextvec.bank.tokens import token_facts
from nextvec.cli.banks import open_source
from nextvec.cli.output import as_json, facts
from nextvec.cli.training import run_facts
from nextvec.evaluation.audit import audit as run_audit


def inspect(arguments: Namespace) -> int:
    source = open_source(arguments.path, arguments)
    if isinstance(source, Bank):
        return facts(bank_facts(source), arguments)
    return facts({**run_facts(source), "settings": frozen.to_json(source.settings)}, arguments)


def audit(arguments: Namespace) -> int:
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


def bank_facts(bank: Bank) -> dict[str, Any]:
    counted = census(bank)
    m = bank.manifest
    return {
        "kind": "bank",
        "rows": m.rows,
        **_item_facts(bank),
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


def _item_facts(bank: Bank) -> dict[str, Any]:
    """Figures of a bank of items alone."""
    ids = bank.sequences.ids
    return {} if ids is None else {"items": len(bank.table), "items_in_no_event": len(bank.table) - len(np.unique(ids))}


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
