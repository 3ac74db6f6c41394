"""The bank of a run, opened for predictions."""

from pathlib import Path

from nextvec.bank import Bank
from nextvec.bank.layout import MANIFEST
from nextvec.bank.verification import Verify
from nextvec.errors import RunError
from nextvec.progress import Progress, silent
from nextvec.runs import Run


def bank_of(run: Run, given: Path | None = None, verify: Verify = "once", progress: Progress = silent) -> Bank:
    """The given bank, or the bank that a run was trained on.

    Args:
        given: may be another bank than the run's.
        verify: as in :meth:`~nextvec.bank.Bank.open`.

    Raises:
        RunError: no bank is given, and the run's own was removed or replaced.
        DataError: the content of the bank was changed.
    """
    path = given or Path(run.origin.bank_path)
    if given is None and not (run.origin.bank_path and (path / MANIFEST).exists()):
        raise RunError(f"the bank of {run.path} is no longer at {path}; name it with --bank")
    bank = Bank.open(path, verify, progress)
    if given is None and bank.fingerprint != run.origin.bank:
        raise RunError(
            f"{run.path} was trained on bank {run.origin.bank[:12]}, but {path} now holds bank {bank.fingerprint[:12]}; "
            f"put its bank back, or use another on purpose: --bank PATH"
        )
    return bank
