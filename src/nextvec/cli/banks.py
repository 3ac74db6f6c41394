"""Opening of banks for the verbs: with verification and progress."""

import sys
from argparse import Namespace
from pathlib import Path

from nextvec.bank import Bank
from nextvec.bank.verification import Verify
from nextvec.cli import show
from nextvec.inference import bank_of
from nextvec.runs import Run


def open_bank(path: Path, arguments: Namespace) -> Bank:
    """The bank at ``path``; with ``--verify`` its content is always hashed."""
    with show.Bars() as bars:
        return Bank.open(path, _verify(arguments), bars)


def open_bank_of(run: Run, arguments: Namespace) -> Bank:
    """The bank of ``run``, or that of ``--bank``; where these differ, a line on standard error says it."""
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
