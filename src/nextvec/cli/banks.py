"""Opening of runs and banks for the verbs: with verification and progress."""

import sys
from argparse import Namespace
from pathlib import Path

from nextvec.bank import Bank
from nextvec.bank.verification import Verify
from nextvec.cli import show
from nextvec.inference import Engine
from nextvec.runs import Run, Source, bank_of
from nextvec.runs import open_source as open_folder


def open_bank(path: Path, arguments: Namespace) -> Bank:
    """The bank at ``path``; with ``--verify`` its content is always hashed."""
    with show.Bars() as bars:
        return Bank.open(path, _verify(arguments), bars)


def open_source(path: Path, arguments: Namespace) -> Source:
    """The run or the bank at ``path``: its manifest decides which."""
    with show.Bars() as bars:
        return open_folder(path, _verify(arguments), bars)


def open_bank_of(source: Source, arguments: Namespace) -> Bank:
    """The bank whose rows ``source`` predicts: itself, that of ``--bank``, or that of the run.

    Where a run predicts the rows of another bank than its own, a line on standard error says it.
    """
    with show.Bars() as bars:
        bank = bank_of(source, arguments.bank, _verify(arguments), bars)
    if isinstance(source, Run):
        say_foreign(source, bank.path, bank.fingerprint, getattr(arguments, "refit", None))
    return bank


def open_engine(source: Source, bank: Bank, arguments: Namespace) -> Engine:
    """The engine of ``source`` with the rows of ``bank`` as candidates; ``--refit`` fits the space of a run to them."""
    with show.Bars() as bars:
        return Engine.open(source, bank, refit=arguments.refit, progress=bars)


def say_foreign(run: Run, path: Path | None, fingerprint: str, refit: bool | None) -> None:
    """A line on standard error if a run predicts the rows of another bank, and which rows its space is fitted to then.

    Args:
        refit: whether it is fitted to the other bank; None if the verb cannot do so.
    """
    if fingerprint == run.origin.bank:
        return
    said = f"using bank {fingerprint[:12]} at {path}; {run.path} was trained on bank {run.origin.bank[:12]}"
    if run.origin.power is not None and refit:
        said += ", and its space is fitted to the rows of this bank"
    elif run.origin.power is not None:
        said += ", and its space stays that of its training rows, which lowers Hit@K on other banks"
        said += "; --refit fits it to this bank" if refit is False else ""
    print(f"nextvec: {said}", file=sys.stderr)


def _verify(arguments: Namespace) -> Verify:
    return "always" if arguments.verify else "once"
