"""What predicts: a trained run, or a bank, whose rows the weights of the package predict without training."""

from pathlib import Path

from nextvec.bank import Bank
from nextvec.bank.layout import MANIFEST
from nextvec.bank.verification import Verify
from nextvec.errors import RunError, SettingsError
from nextvec.progress import Progress, silent
from nextvec.runs.run import RUN, Run

Source = Run | Bank
SUFFIX = ".bank"


def is_bank(folder: Path) -> bool:
    """Whether a folder is a bank, and not a run. Its manifest decides, and not its name.

    Raises:
        RunError: it is neither.
    """
    if (folder / RUN).is_file():
        return False
    if not (folder / MANIFEST).is_file():
        raise RunError(f"{folder} is neither a run (it has no {RUN}) nor a bank (it has no {MANIFEST})")
    return True


def open_source(path: str | Path, verify: Verify = "once", progress: Progress = silent) -> Source:
    """The run or the bank in a folder.

    Args:
        verify: of a bank, as in :meth:`~nextvec.bank.Bank.open`.

    Raises:
        RunError: the folder is neither, or a damaged run.
        DataError: a damaged bank.
    """
    folder = Path(path)
    return Bank.open(folder, verify, progress) if is_bank(folder) else Run.open(folder)


def bank_of(source: Source, given: Path | None = None, verify: Verify = "once", progress: Progress = silent) -> Bank:
    """The bank whose rows are predicted: of a run the given one, or the one that it was trained on; a bank is its own.

    Args:
        given: may be another bank than the run's.
        verify: as in :meth:`~nextvec.bank.Bank.open`.

    Raises:
        RunError: no bank is given, and the run's own was removed or replaced.
        SettingsError: a bank is given for a bank.
        DataError: the content of the bank was changed.
    """
    if isinstance(source, Bank):
        if given is not None and (source.path is None or given.resolve() != source.path.resolve()):
            raise SettingsError(
                f"{source.path} is a bank and predicts its own rows, not those of {given}; another bank goes with a run"
            )
        return source
    path = given or Path(source.origin.bank_path)
    if given is None and not (source.origin.bank_path and (path / MANIFEST).exists()):
        raise RunError(f"the bank of {source.path} is no longer at {path}; name it with --bank")
    bank = Bank.open(path, verify, progress)
    if given is None and bank.fingerprint != source.origin.bank:
        raise RunError(
            f"{source.path} was trained on bank {source.origin.bank[:12]}, but {path} now holds bank {bank.fingerprint[:12]}; "
            f"put its bank back, or use another on purpose: --bank PATH"
        )
    return bank


def served_name(path: Path) -> str:
    """The name under which a folder is served: that of the folder, of a bank without the ending ``.bank``."""
    name = path.resolve().name
    return name.removesuffix(SUFFIX) if name.endswith(SUFFIX) and is_bank(path) else name
