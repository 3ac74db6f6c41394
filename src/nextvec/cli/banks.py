"""Banks as the verbs open them: their content verified, with progress."""

import sys
from argparse import Namespace
from pathlib import Path

from nextvec.bank import Bank
from nextvec.bank.verification import Verify
from nextvec.cli import show
from nextvec.inference import bank_of
from nextvec.runs import Run


def open_bank(path: Path, arguments: Namespace) -> Bank:
    """The bank at ``path``; with ``--verify`` its content is hashed whatever was remembered."""
    with show.Bars() as bars:
        return Bank.open(path, _verify(arguments), bars)


def open_bank_of(run: Run, arguments: Namespace) -> Bank:
    """The bank of ``run``, or the one of ``--bank``; another than the run's is named on standard error."""
    with show.Bars() as bars:
        bank = bank_of(run, arguments.bank, _verify(arguments), bars)
    if bank.fingerprint != run.origin.bank:
        print(
            f"nextvec: using bank {bank.fingerprint[:12]} at {bank.path}; "
            f"{run.path} was trained on bank {run.origin.bank[:12]}",
            file=sys.stderr,
        )
    return bank


def _verify(arguments: Namespace) -> Verify:
    return "always" if arguments.verify else "once"
