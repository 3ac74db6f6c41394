"""A run: one directory that holds all there is to know of one training."""

import fcntl
import hashlib
import json
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
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
from nextvec.bank import Bank, row_hashes
from nextvec.bank.layout import read_json, write_atomically
from nextvec.errors import RunError, SettingsError
from nextvec.lanes import Anchors
from nextvec.runs.settings import TrainSettings
from nextvec.windows import Split

FORMAT, SKETCH = 1, 16
PATIENCE_SECONDS = 1.0  # `status` holds the lock for a moment
RUN, HISTORY, TIMING, LOCK = "run.json", "training_history.json", "timing.json", "run.lock"
CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
ANCHORS, START = "anchors.safetensors", "start.safetensors"

# What files of a run hold, as far as anybody reads it.
PAST = {"best_hit5": float | None, "finished": str | None, "alarms": list[str], "evaluations": list[dict[str, Any]]}
LOOK = {"update": int, "valid": dict[str, float], "best": bool}
LOOKS = {"looks": list[tuple[float, float, float]]}


@dataclass(frozen=True)
class Origin:
    """Where a run's data came from, enough to refuse other data.

    Attributes:
        bank: fingerprint; bank_path: where it lay.
        encoder: fingerprint of what made the vectors.
        parts: document ids of train, valid and test.
        trained_on: a sketch of the rows of every training document; a document that
            holds half of one is not examined.
        decay: of the exponential mean that training started from.
    """

    bank: str
    bank_path: str
    dim: int
    encoder: str
    parts: dict[str, list[str]]
    trained_on: list[list[str]]
    decay: float


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
            settings = frozen.from_json(TrainSettings, content["settings"])
            origin = frozen.from_json(Origin, content["origin"])
            if set(origin.parts) != {"train", "valid", "test"}:
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
        """One record per look at the valid exam; free of clock times, so that it can be compared bit for bit."""
        return list(self._read_history()["evaluations"])

    @property
    def best_hit5(self) -> float | None:
        """Hit@5 on the valid exam at the look whose weights are kept."""
        best = self._read_history()["best_hit5"]
        return None if best is None else float(best)

    def alarms(self) -> list[str]:
        """What makes this run's figures doubtful, each line begun by a name of :mod:`nextvec.training.alarms`."""
        return list(self._read_history()["alarms"])

    @property
    def finished(self) -> str | None:
        """Why training ended, or None if it has not."""
        return self._read_history()["finished"]

    def record(self, evaluations: Sequence[dict[str, Any]], finished: str | None, alarms: Sequence[str] = ()) -> None:
        """Write the history anew."""
        best = next((e["valid"]["hit@5"] for e in reversed(evaluations) if e["best"]), None)
        content = {"best_hit5": best, "finished": finished, "alarms": list(alarms), "evaluations": list(evaluations)}
        write_atomically(self.path / HISTORY, json.dumps(content, indent=1) + "\n")

    def looks(self) -> list[tuple[int, float, float]]:
        """(update, seconds of training, seconds of the wall) until every look; apart from the history, which holds no times.

        Seconds of training are the processor's where a processor computes, so
        that what else a machine does is not counted, else the wall's.
        """
        file = self.path / TIMING
        if not file.exists():
            return []
        looks = self._sound(TIMING, LOOKS)["looks"]
        return [(int(update), float(seconds), float(wall)) for update, seconds, wall in looks]

    def clock(self) -> list[tuple[int, float]]:
        """(update, seconds of training) until every look."""
        return [(update, seconds) for update, seconds, _ in self.looks()]

    def seconds(self) -> float:
        """Seconds of training, over all sittings."""
        return self.clock()[-1][1] if self.clock() else 0.0

    def record_clock(self, looks: Sequence[tuple[int, float, float]]) -> None:
        write_atomically(self.path / TIMING, json.dumps({"looks": list(looks)}))

    def eta(self) -> float | None:
        """Seconds of the wall until all updates are made, at the pace so far; None before any, and when training ended."""
        looks = self.looks()
        if self.finished or not looks or not looks[-1][0]:
            return None
        update, seconds, wall = looks[-1]
        left = (self.settings.updates - update) / update
        if self.settings.seconds:
            left = min(left, max(0.0, self.settings.seconds / seconds - 1))
        return left * wall

    def eta_error(self) -> float | None:
        """By how much the remaining time foretold after a quarter of the looks was off, as a share of what it became.

        Measured against the time the updates that were made truly took, so that
        an early stop is no error.
        """
        looks = [(update, wall) for update, _, wall in self.looks() if update]
        if len(looks) < 4:
            return None
        (early, at_early), (last, at_last) = looks[len(looks) // 4], looks[-1]
        foretold = at_early / early * (last - early)
        return foretold / (at_last - at_early) - 1

    def save(self, name: str, tensors: dict[str, Tensor], update: int) -> None:
        """Write tensors to one file, whole or not at all."""
        held = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        write_atomically(self.path / name, save(held, {"update": str(update)}))

    def load(self, name: str) -> tuple[dict[str, Tensor], int]:
        """
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

    def save_anchors(self, anchors: Anchors) -> None:
        """Keep where the experts' lanes lie: what gave them may be gone when training goes on."""
        held = {"vectors": torch.from_numpy(anchors.vectors), "prices": torch.from_numpy(anchors.prices)}
        held["temperature"] = torch.tensor(anchors.temperature, dtype=torch.float64)
        write_atomically(self.path / ANCHORS, save(held, {"update": "0", "names": json.dumps(anchors.names)}))

    def anchors(self) -> Anchors | None:
        """Where the experts' lanes lie; None where nothing was kept.

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

    def split(self, bank: Bank) -> Split:
        """The documents of each part, as they were when training began.

        Raises:
            RunError: the bank is another one.
        """
        if bank.fingerprint != self.origin.bank:
            raise RunError(
                f"{bank.path or 'this bank'} is bank {bank.fingerprint[:12]}, {self.path} was trained on bank "
                f"{self.origin.bank[:12]}; evaluate another bank whole, with --split all"
            )
        index = {name: m for m, name in enumerate(bank.ids)}
        if foreign := [name for part in self.origin.parts.values() for name in part if name not in index]:
            raise RunError(f"{self.path / RUN} is damaged: its bank has no document {foreign[0]!r}")
        train, valid, test = (
            np.array(sorted(index[name] for name in self.origin.parts[part]), dtype=np.int64)
            for part in ("train", "valid", "test")
        )
        return Split(train, valid, test)

    def unseen(self, bank: Bank) -> Int64[np.ndarray, " M"]:
        """Documents of any bank whose rows this run was not trained on."""
        known = {name: n for n, sketch in enumerate(self.origin.trained_on) for name in sketch}
        return np.array([m for m in range(bank.num_documents) if not self._trained_on(bank, m, known)], dtype=np.int64)

    def _trained_on(self, bank: Bank, m: int, known: dict[str, int]) -> bool:
        met = Counter(known[name] for name in set(_row_names(bank, m)) if name in known)
        return any(2 * count >= len(self.origin.trained_on[n]) for n, count in met.items())

    @contextmanager
    def training(self) -> Generator[None]:
        """Hold the run while it is trained; the kernel lets go of it when the process dies.

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
        file = self.path / LOCK
        if not file.exists():
            return False
        with open(file) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _read_history(self) -> dict[str, Any]:
        file = self.path / HISTORY
        if not file.exists():
            return {"best_hit5": None, "finished": None, "alarms": [], "evaluations": []}
        content = self._sound(HISTORY, PAST)
        for look in content["evaluations"]:
            _check(file, look, LOOK)
        return content

    def _sound(self, name: str, form: Mapping[str, Any]) -> dict[str, Any]:
        content = read_json(self.path / name)
        _check(self.path / name, content, form)
        return content


def _check(file: Path, content: Any, form: Mapping[str, Any]) -> None:
    for name, hint in form.items():
        if not isinstance(content, dict) or name not in content or not frozen.fits(hint, content[name]):
            raise RunError(
                f"{file} is damaged, or of another version: it has no {name!r} that can be read; train the run again"
            )


def _metadata(data: bytes) -> dict[str, str]:
    """The header of a safetensors file: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def document_sketch(bank: Bank, m: int) -> list[str]:
    """What a document says, whatever it is called or stored as: its smallest row hashes (Broder 1997)."""
    return sorted(set(_row_names(bank, m)))[:SKETCH]


def _row_names(bank: Bank, m: int) -> list[str]:
    return [f"{h:016x}" for h in row_hashes(bank.document(m).astype(np.float16)).tolist()]


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def generator_seed(*parts: int) -> int:
    """One seed per (seed, purpose, number): order, dropout and negatives never depend on what ran before."""
    name = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1


__all__ = ["BEST", "CHECKPOINT", "Origin", "Run", "document_sketch", "generator_seed"]
