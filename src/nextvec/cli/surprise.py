"""The verb that says how surprising every chunk of a document is."""

import math
from argparse import Namespace
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.cli import show
from nextvec.cli.banks import open_bank_of, open_source
from nextvec.cli.output import as_json
from nextvec.cli.show_confidence import surprise_table
from nextvec.errors import DataError, SettingsError
from nextvec.evaluation.calibration import UNCALIBRATED, calibration_of
from nextvec.evaluation.surprise import Surprise
from nextvec.evaluation.surprise import surprise as surprise_along
from nextvec.pages.surprise_page import write_surprise_page
from nextvec.runs import load


def surprise(arguments: Namespace) -> int:
    source = open_source(arguments.run, arguments)
    bank = open_bank_of(source, arguments)
    m = _document(bank, arguments.document)
    with show.Bars() as bars:
        loaded = load(source, bank, progress=bars)
        calibration = calibration_of(source, bank, progress=bars)
        if calibration is None:
            raise DataError(f"{arguments.run}: {UNCALIBRATED}; a bank needs at least three documents")
        rows = np.arange(bank.offsets[m], bank.offsets[m + 1])
        found = surprise_along(loaded.model, calibration, bank, rows, bars)
    if not np.isfinite(found.bits).any():
        raise DataError(f"document {bank.ids[m]!r} has no chunk that a context predicts; name another with --document")
    content = _to_json(found, bank, m, loaded.name)
    if arguments.page is not None:
        write_surprise_page(arguments.page, content)
    if arguments.json:
        return as_json(content)
    surprise_table(content, arguments.top)
    return 0


def _document(bank: Bank, wanted: str | None) -> int:
    """The number of a document by its id or its title; the first without one.

    Raises:
        SettingsError: no such document, or several with this title.
    """
    if wanted is None:
        return 0
    ids = bank.ids
    if wanted in ids:
        return ids.index(wanted)
    named = [m for m, (_, title) in enumerate(bank.documents) if title == wanted]
    if len(named) != 1:
        many = f"{len(named)} documents have this title; give the id" if named else f"the bank has {len(ids)} documents"
        raise SettingsError(f"--document {wanted!r}: {many}, such as {ids[named[0] if named else 0]!r}")
    return named[0]


def _to_json(found: Surprise, bank: Bank, m: int, name: str) -> dict[str, Any]:
    first = int(bank.offsets[m])
    chunks = [
        {"index": n, "row": first + n, "bits": _number(bits), "rank": _number(rank), "text": bank.text(first + n)}
        for n, (bits, rank) in enumerate(zip(found.bits.tolist(), found.ranks.tolist(), strict=True))
    ]
    return {
        "model": name,
        "bank": bank.fingerprint,
        "document": {"id": bank.ids[m], "title": bank.documents[m][1]},
        "candidates": len(bank.distinct),
        "mean_bits": float(np.nanmean(found.bits)),
        "chunks": chunks,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
