"""The begin of a run: the split of its bank, the exponential mean that training starts from, the checks."""

# Axes: M documents.

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.bank.moments import Moments, moments
from nextvec.errors import ExamError, RunError, SettingsError, did_you_mean
from nextvec.evaluation.baselines import strongest_decay, strongest_start
from nextvec.evaluation.exam import Exam, largest_pool
from nextvec.lanes import Anchors, Lanes
from nextvec.models import Recurrent
from nextvec.models.space import POWERS, Space
from nextvec.runs.families import Basis, family
from nextvec.runs.groups import Device, SourceSettings
from nextvec.runs.loading import build
from nextvec.runs.origin import Origin, document_sketch
from nextvec.runs.run import BEST, MOMENTS, RUN, START, Run
from nextvec.runs.settings import TrainSettings
from nextvec.runs.shipped import SHIPPED, shipped_weights
from nextvec.training.folds import deal
from nextvec.training.order import epoch
from nextvec.training.support import check_computes
from nextvec.windows import Split, split

VALID_ROWS = 1000


def begin(path: str | Path, recipe: str, settings: TrainSettings, bank: Bank) -> Run:
    """Create a run on a bank, or open it again. Splits the bank and finds the exponential mean that training starts from.

    Raises:
        RunError: the path holds something else.
        SettingsError: a device that this machine does not have, or a model that it cannot compute with these settings.
        DataError: the bank cannot be split, or no passage fits the settings.
        ExamError: the bank is too small for an exam.
    """
    settings = settings.replaced(device=present(settings.compute.device))
    if (Path(path) / RUN).exists():
        return Run.open(path).begun_with(settings, bank)
    pool, source = settings.validation.pool, settings.source
    parts = split(bank, settings.split.valid, settings.split.test)
    if source.lane_filter:
        parts = _in_lane(parts, source, bank)
    _check_pool(bank, parts, pool)
    found = moments(bank, parts.train)
    power, decay = _start_of(settings, bank, parts, found)
    # The model, its start and its passages are made before anything is written, so that an error leaves no run behind.
    anchors = family(settings.model).find_anchors(settings.options, bank, parts.train, settings.seed)
    model = build(settings, basis_of(found, power, decay, anchors))
    start = _start(source.start, bank) if source.start else None
    if start is not None:
        take_over(model, start, source.start)
    check_computes(model, settings, bank.dim)
    epoch(settings.passages, bank, parts.train, np.random.default_rng(0))
    ids = bank.ids
    named = {name: [ids[m] for m in parts.part(name)] for name in ("train", "valid", "test")}
    hashes = [document_sketch(bank, int(m)) for m in parts.train]
    where = str(bank.path.resolve()) if bank.path else ""
    origin = Origin(bank.fingerprint, where, bank.dim, bank.manifest.encoder_fingerprint, named, hashes, decay, power)
    run = Run.create(path, recipe, settings, origin)
    run.save_moments(found)
    if anchors is not None:
        run.save_anchors(anchors)
    if start is not None:
        run.save(START, start, 0)
    return run


def _start_of(settings: TrainSettings, bank: Bank, parts: Split, found: Moments) -> tuple[float | None, float]:
    """The power of the space, None for the raw rows, and the decay of the exponential mean that training starts from.

    The decay of raw rows is found on training documents. The power and decay of a space are found on all documents but
    those of the test, each read in a space that was fitted without it.
    """
    s, pool = settings.space, settings.validation.pool
    if s.space == "raw":
        exam = Exam.over(bank, parts.train, "train", None, VALID_ROWS)
        # No figure comes from this exam, so a long training document may make its pool smaller.
        return None, strongest_decay(exam.among(pool and min(pool, exam.largest_pool)), found)
    held: list[tuple[Exam, Moments]] = [(Exam.over(bank, parts.valid, "valid", pool, VALID_ROWS), found)]
    if s.folds > 1:
        for inside, others in deal(settings, bank, parts.train):
            exam = Exam.over(bank, inside, "train", None, VALID_ROWS // s.folds)
            held.append((exam.among(pool and min(pool, exam.largest_pool)), others))
    powers = POWERS if s.power is None else (s.power,)
    return strongest_start(held, powers)


def _check_pool(bank: Bank, parts: Split, pool: int | None) -> None:
    """
    Raises:
        ExamError: the valid or test documents are too few to score, or one of their rows has fewer candidates than ``pool``.
    """
    # All rows are checked, because a later exam may score any of them.
    most = min(largest_pool(bank, parts.valid, "valid"), largest_pool(bank, parts.test, "test"))
    if pool is not None and pool > most:
        raise ExamError(
            f"pool {pool:,}: every scored row must have that many candidates; the largest pool that works for the valid and "
            f"test documents of this bank is {most:,}: --set pool={most}, or a larger bank"
        )


def _in_lane(parts: Split, source: SourceSettings, bank: Bank) -> Split:
    """The training and valid documents of one lane. The test documents are those of all lanes."""
    lanes = Lanes.open(source.lane_folder, bank)
    if source.lane_filter not in lanes.names:
        known = did_you_mean(source.lane_filter, lanes.names)
        raise SettingsError(f"{source.lane_folder} has no lane {source.lane_filter!r}; {known}")
    inside = lanes.of_documents(bank)[0] == lanes.names.index(source.lane_filter)
    return Split(parts.train[inside[parts.train]], parts.valid[inside[parts.valid]], parts.test)


def _start(path: str, bank: Bank) -> dict[str, Tensor]:
    """The weights of another run, or those of the package, and their temperature.

    Raises:
        RunError: no trained run, or one of another encoder.
    """
    if path == SHIPPED:
        return shipped_weights()
    run = Run.open(path)
    if (run.origin.encoder, run.origin.dim) != (bank.manifest.encoder_fingerprint, bank.dim):
        raise RunError(f"{path} was trained on vectors of {run.origin.encoder}, {run.origin.dim} wide, not this bank's")
    return run.load(BEST)[0]


def take_over(model: Recurrent[Any], tensors: dict[str, Tensor], name: str) -> None:
    """Load the weights of another run, called ``name``.

    Raises:
        RunError: they are of another model or other sizes.
    """
    held = {key: tensor for key, tensor in tensors.items() if key != "log_temperature"}
    try:
        model.take_over(held)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        if name == SHIPPED:
            raise RunError(
                f"start={name}: these weights are for the model pooled with its own options in a fitted space; "
                f"--set start= begins with new weights, and the recipe memory suits other models"
            ) from None
        raise RunError(f"start={name}: not of the same model and sizes: {why}") from None


def present(device: Device) -> Device:
    """The device itself, or the best of this machine for ``auto``.

    Raises:
        SettingsError: this machine does not have the device.
    """
    there: dict[Device, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    best: Device = next(name for name, here in there.items() if here)
    if device == "auto":
        return best
    if not there[device]:
        raise SettingsError(f"device={device}: this machine has none that PyTorch can use; the nearest right one is {best}")
    return device


def basis_of(found: Moments, power: float | None, decay: float, anchors: Anchors | None) -> Basis:
    """What a model is built from, of the moments of the training rows."""
    centre = torch.from_numpy(found.mean.astype(np.float32))
    if power is None:
        return Basis(centre, decay, anchors)
    space = Space.fitted(found.mean, found.covariance, power, found.rows)
    return Basis(torch.zeros_like(centre), decay, anchors, space)


def basis_of_run(run: Run, bank: Bank, documents: Int64[np.ndarray, " M"]) -> Basis:
    """What :func:`begin` found in the training documents.

    It is found again only if the process was killed before it was saved.
    """
    s = run.settings
    found = run.moments() if (run.path / MOMENTS).is_file() else moments(bank, documents)
    anchors = run.anchors() or family(s.model).find_anchors(s.options, bank, documents, s.seed)
    return basis_of(found, run.origin.power, run.origin.decay, anchors)
