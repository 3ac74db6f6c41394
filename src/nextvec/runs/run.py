"""A run: one directory with the settings, the origin, the history and the weights of one training."""

# Axes: M documents.

import fcntl
import json
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nextvec import settings as frozen
from nextvec.bank import Bank
from nextvec.bank.layout import read_json, write_atomically
from nextvec.bank.moments import Moments
from nextvec.confidence import Calibration
from nextvec.errors import DataError, RunError, SettingsError
from nextvec.lanes import Anchors
from nextvec.runs.origin import PARTS, Origin
from nextvec.runs.records import History, Timing
from nextvec.runs.settings import TrainSettings
from nextvec.windows import Split

FORMAT = 3
PATIENCE_SECONDS = 1.0  # `status` holds the lock for a moment
RUN, HISTORY, TIMING, LOCK = "run.json", "training_history.json", "timing.json", "run.lock"
CALIBRATION = "calibration.json"  # written at the end of training
CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
MOMENTS, ANCHORS, START = "moments.safetensors", "anchors.safetensors", "start.safetensors"  # what begin() found


@dataclass(frozen=True)
class Run:
    """A run directory, opened.

    Attributes:
        path: the directory.
        recipe: the name its settings came from.
        settings: all of them, resolved.
        origin: what it was trained on.
    """

    path: Path
    recipe: str
    settings: TrainSettings
    origin: Origin

    @staticmethod
    def create(path: str | Path, recipe: str, settings: TrainSettings, origin: Origin) -> "Run":
        """Make the directory of a new run.

        Raises:
            RunError: the directory holds something else.
        """
        run = Run(Path(path), recipe, settings, origin)
        if run.path.exists() and (
            not run.path.is_dir() or any(not entry.name.endswith(".tmp") for entry in run.path.iterdir())
        ):
            raise RunError(f"{path} exists and is not a run; choose another name")
        run.path.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "recipe": recipe,
            "settings": frozen.to_json(settings),
            "origin": frozen.to_json(origin),
        }
        write_atomically(run.path / RUN, json.dumps(content, indent=1) + "\n")
        return run

    def begun_with(self, settings: TrainSettings, bank: Bank) -> "Run":
        """This run, if it was begun with exactly these settings and this bank.

        Raises:
            RunError: it was not.
        """
        if self.settings != settings or self.origin.bank != bank.fingerprint:
            what = "another bank" if self.settings == settings else "other settings"
            raise RunError(f"{self.path} was begun with {what}; choose another name, or delete it to start over")
        return self

    @staticmethod
    def open(path: str | Path) -> "Run":
        """
        Raises:
            RunError: no run there, or another format.
        """
        file = Path(path) / RUN
        if not file.is_file():
            raise RunError(f"{path} is not a run: it has no {RUN}")
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise RunError(f"{file} has format {content['format']}; this version reads format {FORMAT}")
            settings = TrainSettings.from_json(content["settings"])
            origin = frozen.from_json(Origin, content["origin"])
            if set(origin.parts) != set(PARTS):
                raise ValueError(f"parts are {sorted(origin.parts)}")
            return Run(Path(path), content["recipe"], settings, origin)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file} is damaged: {error!r}") from None
        except SettingsError as error:
            raise RunError(f"{file} is damaged, or of another version: {error}") from None

    @property
    def name(self) -> str:
        return self.path.name

    def history(self) -> list[dict[str, Any]]:
        """One record per validation, without clock times, so that it can be compared bit for bit."""
        return list(History.read(self.path / HISTORY).evaluations)

    @property
    def best_hit5(self) -> float | None:
        """Hit@5 on the valid exam at the validation whose weights are kept."""
        return History.read(self.path / HISTORY).best_hit5

    def alarms(self) -> list[str]:
        """What makes the figures of this run doubtful; each begins with a name of :mod:`nextvec.training.alarms`."""
        return list(History.read(self.path / HISTORY).alarms)

    @property
    def finished(self) -> str | None:
        """Why training ended; None if it has not."""
        return History.read(self.path / HISTORY).finished

    def record(self, evaluations: Sequence[dict[str, Any]], finished: str | None, alarms: Sequence[str] = ()) -> None:
        """Replace the history."""
        History(tuple(evaluations), finished, tuple(alarms)).write(self.path / HISTORY)

    def timing(self) -> Timing:
        """The time until each validation; in a file beside the history, which holds no times."""
        return Timing.read(self.path / TIMING)

    def record_timing(self, timing: Timing) -> None:
        """Replace the timing."""
        timing.write(self.path / TIMING)

    def seconds(self) -> float:
        """Seconds of training, over all processes that trained the run."""
        return self.timing().seconds

    def eta(self) -> float | None:
        """Wall seconds until all updates are made; None before the first update and after the end of training."""
        o = self.settings.optimizer
        return None if self.finished else self.timing().remaining(o.updates, o.seconds)

    def save(self, name: str, tensors: dict[str, Tensor], update: int) -> None:
        """Write tensors to one file, completely or not at all."""
        held = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        write_atomically(self.path / name, save(held, {"update": str(update)}))

    def load(self, name: str) -> tuple[dict[str, Tensor], int]:
        """The tensors of a file, and the update that they were saved at.

        Raises:
            RunError: the file is missing or damaged.
        """
        file = self.path / name
        if not file.is_file():
            raise RunError(f"{self.path} has no {name}; has it been trained?")
        try:
            data = file.read_bytes()
            return load(data), int(_metadata(data)["update"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{file} is damaged: {error}") from None

    def save_moments(self, found: Moments) -> None:
        """Keep the moments of the training rows: baselines on another bank need them, too."""
        held = {"mean": torch.from_numpy(found.mean), "covariance": torch.from_numpy(found.covariance)}
        write_atomically(self.path / MOMENTS, save({**held, "rows": torch.tensor(found.rows)}, {"update": "0"}))

    def moments(self) -> Moments:
        """The mean and covariance of the training rows.

        Raises:
            RunError: the file is missing or damaged.
        """
        tensors, _ = self.load(MOMENTS)
        try:
            return Moments(tensors["mean"].numpy(), tensors["covariance"].numpy(), int(tensors["rows"]))
        except KeyError as error:
            raise RunError(f"{self.path / MOMENTS} is damaged: it has no {error}") from None

    def save_anchors(self, anchors: Anchors) -> None:
        """Keep the anchors of the model's lanes: their source may be gone when training is resumed."""
        held = {"vectors": torch.from_numpy(anchors.vectors), "prices": torch.from_numpy(anchors.prices)}
        held["temperature"] = torch.tensor(anchors.temperature, dtype=torch.float64)
        write_atomically(self.path / ANCHORS, save(held, {"update": "0", "names": json.dumps(anchors.names)}))

    def anchors(self) -> Anchors | None:
        """The anchors of the model's lanes; None if none were saved.

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / ANCHORS
        if not file.is_file():
            return None
        tensors, _ = self.load(ANCHORS)
        try:
            names = tuple(map(str, json.loads(_metadata(file.read_bytes())["names"])))
            vectors, prices = tensors["vectors"].numpy(), tensors["prices"].numpy()
            return Anchors(names, vectors, prices, float(tensors["temperature"]))
        except (KeyError, ValueError) as error:
            raise RunError(f"{file} is damaged: {error}") from None

    def save_calibration(self, calibration: Calibration) -> None:
        """Keep the calibration of the best weights."""
        write_atomically(self.path / CALIBRATION, json.dumps(frozen.to_json(calibration), indent=1) + "\n")

    def calibration(self) -> Calibration | None:
        """The calibration of the best weights; None for a run whose training has not ended, or ended before there was one.

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / CALIBRATION
        if not file.is_file():
            return None
        try:
            return frozen.from_json(Calibration, read_json(file))
        except (DataError, SettingsError, TypeError) as error:
            raise RunError(f"{file} is damaged: {error}") from None

    def split(self, bank: Bank) -> Split:
        """The documents of each part, as they were when training began.

        Raises:
            RunError: the bank is another one.
        """
        return self.origin.split(bank, str(self.path))

    def unseen(self, bank: Bank) -> Int64[np.ndarray, " M"]:
        """The documents of any bank whose rows this run was not trained on."""
        return self.origin.unseen(bank)

    @contextmanager
    def training(self) -> Generator[None]:
        """Hold the lock of the run while it is trained; the kernel releases it when the process dies.

        Raises:
            RunError: another process is training it.
        """
        with open(self.path / LOCK, "w") as lock:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not _locked(lock):
                if time.monotonic() > deadline:
                    raise RunError(f"{self.path} is being trained by another process")
                time.sleep(0.05)
            yield

    @property
    def is_training(self) -> bool:
        """Whether a process is training it."""
        file = self.path / LOCK
        if not file.exists():
            return False
        with open(file) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def _metadata(data: bytes) -> dict[str, str]:
    """The header of a safetensors file: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
