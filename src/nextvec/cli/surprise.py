"""The verb that says how surprising every chunk of a document is."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from nextvec.bank import Bank
from nextvec.bank.moments import moments
from nextvec.cli import show
from nextvec.cli.banks import open_bank, open_bank_of
from nextvec.cli.output import as_json
from nextvec.cli.show_confidence import surprise_table
from nextvec.confidence import Calibration
from nextvec.errors import DataError, RunError, SettingsError
from nextvec.evaluation.bank_calibration import bank_calibration
from nextvec.evaluation.surprise import Surprise
from nextvec.evaluation.surprise import surprise as surprise_along
from nextvec.models import Recurrent
from nextvec.models.space import Space
from nextvec.pages.surprise_page import write_surprise_page
from nextvec.runs import Run, load_model
from nextvec.runs.loading import check_encoder
from nextvec.runs.run import RUN
from nextvec.runs.shipped import POWER, SHIPPED, shipped_model


def surprise(arguments: Namespace) -> int:
    model, calibration, bank, name = _opened(arguments.path, arguments)
    m = _document(bank, arguments.document)
    first, last = int(bank.offsets[m]), int(bank.offsets[m + 1])
    with show.Bars() as bars:
        found = surprise_along(model, calibration, bank, np.arange(first, last), bars)
    if not np.isfinite(found.bits).any():
        raise DataError(f"document {bank.ids[m]!r} has no chunk that a context predicts; name another with --document")
    content = _to_json(found, bank, m, name)
    if arguments.page is not None:
        write_surprise_page(arguments.page, content)
    if arguments.json:
        return as_json(content)
    surprise_table(content, arguments.top)
    return 0


def _opened(path: Path, arguments: Namespace) -> tuple[Recurrent[Any], Calibration, Bank, str]:
    """The model of a run, or the weights of the package in the space of a bank; their calibration, bank and name."""
    if not (path / RUN).is_file():
        if arguments.bank is not None:
            raise SettingsError(f"--bank: {path} is a bank itself, and its own chunks are read; --bank goes with a run")
        bank = open_bank(path, arguments)
        of = moments(bank, np.arange(bank.num_documents))
        model = shipped_model(Space.fitted(of.mean, of.covariance, POWER))
        with show.Bars() as bars:
            return model, bank_calibration(bank, bars), bank, SHIPPED
    run = Run.open(path)
    bank = open_bank_of(run, arguments)
    check_encoder(run, bank)
    calibration = run.calibration()
    if calibration is None:
        raise RunError(f"{path} has no calibration: its training has not ended, or it was trained before there was one")
    return load_model(run), calibration, bank, run.name


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
