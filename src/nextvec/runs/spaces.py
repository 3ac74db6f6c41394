"""The space of all rows of a bank, which is kept beside the rows."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nextvec.bank import Bank
from nextvec.bank.layout import keep
from nextvec.bank.moments import moments
from nextvec.models.space import FLOOR, Space
from nextvec.progress import Progress, silent

FORMAT = 1


def space_of(bank: Bank, power: float, progress: Progress = silent) -> Space:
    """The space that is fitted to all rows of a bank. It needs neither labels nor the order of the rows.

    A bank on disk keeps it beside its rows, if its folder can be written. So every
    process that opens the bank, or a copy of its folder, has the same space to the
    bit: another number of threads or another processor can change the last bits of
    a fit. If the kept space is damaged or belongs to other rows, it is fitted again.
    """
    kept = bank.path / f"space-{power:g}.safetensors" if bank.path is not None else None
    found = _read(kept, bank, power) if kept is not None else None
    if found is not None:
        return found
    fit = moments(bank, progress=progress)
    space = Space.fitted(fit.mean, fit.covariance, power, fit.rows)
    if kept is not None:
        keep(kept, save(dict(space.state_dict()), {**_facts(bank, power), "sha256": _sha256(space)}))
    return space


def _read(kept: Path, bank: Bank, power: float) -> Space | None:
    """The space that was kept for this content; None if it is missing or damaged."""
    try:
        with safe_open(kept, "pt") as file:
            facts: dict[str, str] = file.metadata() or {}
            space = Space(file.get_tensor("mean"), file.get_tensor("matrix"))
    except (OSError, SafetensorError):
        return None
    return space if facts == {**_facts(bank, power), "sha256": _sha256(space)} else None


def _facts(bank: Bank, power: float) -> dict[str, str]:
    return {"format": str(FORMAT), "bank": bank.fingerprint, "power": repr(power), "floor": repr(FLOOR)}


def _sha256(space: Space) -> str:
    digest = hashlib.sha256()
    for tensor in (space.mean, space.matrix):
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
