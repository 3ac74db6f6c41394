"""Where a run begins: the split, the strongest mean to start from, the untrained model."""

# Axes: M documents, D width.

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nextvec.bank import Bank
from nextvec.errors import DataError, ExamError, RunError, SettingsError, did_you_mean
from nextvec.evaluation.exam import Exam
from nextvec.evaluation.report import strongest_decay
from nextvec.lanes import Anchors, Lanes, cluster_anchors, description_anchors
from nextvec.models import ExpertGRU
from nextvec.runs.loading import build
from nextvec.runs.run import BEST, RUN, START, Origin, Run, document_sketch
from nextvec.runs.settings import TrainSettings
from nextvec.training.support import check_computes
from nextvec.windows import Split, Windows, coherent, last_windows, rows_of, split, training_windows

VALID_ROWS = 1000
Device = Literal["auto", "cpu", "cuda", "mps"]


def begin(path: str | Path, recipe: str, settings: TrainSettings, bank: Bank) -> Run:
    """Create a run on a bank, or open it again: splits the bank and finds where training starts.

    Raises:
        RunError: the path holds something else.
        SettingsError: a device that this machine does not have, or a model that it does not compute with these settings.
        DataError: the bank cannot be split, or no passage fits the settings.
        ExamError: it is too small to hold an exam.
    """
    settings = replace(settings, device=present(settings.device))
    if (Path(path) / RUN).exists():
        return Run.open(path).begun_with(settings, bank)
    parts = split(bank, settings.valid, settings.test)
    if settings.only:
        parts = _in_lane(parts, settings, bank)
    _check_pool(bank, parts, settings.pool)
    exam = Exam.over(bank, parts.train, "train", None, VALID_ROWS)
    centre = centre_of(bank, parts.train)
    # No figure is taken from this exam: one long training document must not forbid the pool of the others.
    decay = strongest_decay(exam.among(settings.pool and min(settings.pool, exam.largest_pool)), centre)
    # What cannot be built or read is refused before anything is written.
    model = build(settings, centre, decay, anchors := anchors_of(settings, bank, parts.train))
    start = _start(settings, bank) if settings.start else None
    if start is not None:
        take_over(model, start, settings.start)
    check_computes(model, settings, bank.dim)
    epoch(settings, bank, parts.train, np.random.default_rng(0))
    ids = bank.ids
    named = {name: [ids[m] for m in parts.part(name)] for name in ("train", "valid", "test")}
    hashes = [document_sketch(bank, int(m)) for m in parts.train]
    where = str(bank.path.resolve()) if bank.path else ""
    origin = Origin(bank.fingerprint, where, bank.dim, bank.manifest.encoder_fingerprint, named, hashes, decay)
    run = Run.create(path, recipe, settings, origin)
    if anchors is not None:
        run.save_anchors(anchors)
    if start is not None:
        run.save(START, start, 0)
    return run


def _check_pool(bank: Bank, parts: Split, pool: int | None) -> None:
    """
    Raises:
        ExamError: the valid or test documents are too few to score, or one of their rows has fewer candidates than ``pool``.
    """
    # All rows, not a sample: a later exam may score any of them.
    exams = [Exam.over(bank, parts.part(part), part, None, len(bank)) for part in ("valid", "test")]
    most = min(exam.largest_pool for exam in exams)
    if pool is not None and pool > most:
        raise ExamError(
            f"pool {pool:,}: every scored row must have that many candidates; the largest pool that works for the valid and "
            f"test documents of this bank is {most:,}: --set pool={most}, or a larger bank"
        )


def _in_lane(parts: Split, settings: TrainSettings, bank: Bank) -> Split:
    """The training and valid documents of one lane; the test documents of all, so that every expert sits the same exam."""
    lanes = Lanes.open(settings.lanes, bank)
    if settings.only not in lanes.names:
        raise SettingsError(f"{settings.lanes} has no lane {settings.only!r}; {did_you_mean(settings.only, lanes.names)}")
    inside = lanes.of_documents(bank)[0] == lanes.names.index(settings.only)
    return Split(parts.train[inside[parts.train]], parts.valid[inside[parts.valid]], parts.test)


def _start(settings: TrainSettings, bank: Bank) -> dict[str, Tensor]:
    """The weights that a run begins with, and its temperature.

    Raises:
        RunError: no trained run, or one of another encoder.
    """
    run = Run.open(settings.start)
    if (run.origin.encoder, run.origin.dim) != (bank.manifest.encoder_fingerprint, bank.dim):
        raise RunError(
            f"{settings.start} was trained on vectors of {run.origin.encoder}, {run.origin.dim} wide, not this bank's"
        )
    tensors, _ = run.load(BEST)
    del tensors["centre"]
    return tensors


def take_over(model: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load the weights of another run; those of a memory GRU into the experts' shared one.

    Raises:
        RunError: they are of another model or other sizes.
    """
    held = {key: tensor for key, tensor in tensors.items() if key != "log_temperature"}
    into = model.shared if isinstance(model, ExpertGRU) and "trunk.centre" in held else model
    try:
        into.load_state_dict(held)
    except RuntimeError as error:
        raise RunError(f"start={name}: not of the same model and sizes: {str(error).splitlines()[-1].strip()}") from None


def present(device: Device) -> Device:
    """The device itself, or the best there is for ``auto``.

    Raises:
        SettingsError: this machine does not have it.
    """
    there: dict[Device, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    best: Device = next(name for name, here in there.items() if here)
    if device == "auto":
        return best
    if not there[device]:
        raise SettingsError(f"device={device}: this machine has none that PyTorch can use; the nearest right one is {best}")
    return device


def centre_of(bank: Bank, documents: Int64[np.ndarray, " M"]) -> Float[Tensor, " D"]:
    """Mean row of some documents, float32."""
    total = np.zeros(bank.dim, dtype=np.float64)
    for m in documents:
        total += bank.document(int(m)).astype(np.float64).sum(0)
    return torch.from_numpy((total / max(1, int(bank.lengths[documents].sum()))).astype(np.float32))


def epoch(settings: TrainSettings, bank: Bank, documents: Int64[np.ndarray, " M"], rng: np.random.Generator) -> Windows:
    """The passages of one epoch, shuffled.

    Raises:
        DataError: no document is long enough, or none coherent enough.
    """
    s = settings
    if s.supervision == "last":
        windows = last_windows(bank, documents, s.context, s.across, rng)
    else:
        windows = training_windows(bank, documents, s.context, rng)
    kept = coherent(bank, windows, s.coherence)
    if not len(kept):
        raise DataError(f"coherence={s.coherence}: none of {len(windows):,} passages is that coherent; lower it")
    return kept


def anchors_of(settings: TrainSettings, bank: Bank, documents: Int64[np.ndarray, " M"]) -> Anchors | None:
    """What the experts' lanes lie at, found in the training documents; None where none are needed.

    Raises:
        SettingsError: as many lanes as ``experts`` cannot be had.
        DataError: a folder that holds no lanes of this bank, or an encoder that is not there.
    """
    s = settings
    if s.model != "experts" or s.experts == 1 or s.lanes == "random":
        return None
    if s.lanes in ("clusters", "balanced"):
        return cluster_anchors(bank.rows[rows_of(bank, documents)], s.experts, s.seed, s.lanes == "balanced")
    anchors = description_anchors(bank) if s.lanes == "descriptions" else Lanes.open(s.lanes, bank).anchors
    if len(anchors.names) != s.experts:
        count = len(anchors.names)
        raise SettingsError(f"experts={s.experts}: lanes={s.lanes} are {count}; the nearest right one is {count}")
    return anchors
