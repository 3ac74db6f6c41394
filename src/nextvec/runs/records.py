"""The files of a run that training writes again and again: its history and its timing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec import settings as frozen
from nextvec.bank.layout import read_json, write_atomically
from nextvec.errors import RunError

# The parts of each file that this code reads, with their types.
HISTORY_FORM = {"best_hit5": float | None, "finished": str | None, "alarms": list[str], "evaluations": list[dict[str, Any]]}
EVALUATION_FORM = {"update": int, "valid": dict[str, float], "best": bool}
TIMING_FORM = {"validations": list[tuple[float, float, float]]}


@dataclass(frozen=True)
class History:
    """What training recorded, without clock times, so that two histories can be compared bit for bit.

    Attributes:
        evaluations: one record per validation.
        finished: why training ended; None if it has not.
        alarms: what makes the figures of the run doubtful; each begins with a name of :mod:`nextvec.training.alarms`.
    """

    evaluations: tuple[dict[str, Any], ...] = ()
    finished: str | None = None
    alarms: tuple[str, ...] = ()

    @property
    def best_hit5(self) -> float | None:
        """Hit@5 at the validation whose weights are kept."""
        return next((float(e["valid"]["hit@5"]) for e in reversed(self.evaluations) if e["best"]), None)

    def write(self, file: Path) -> None:
        content = {
            "best_hit5": self.best_hit5,
            "finished": self.finished,
            "alarms": list(self.alarms),
            "evaluations": list(self.evaluations),
        }
        write_atomically(file, json.dumps(content, indent=1) + "\n")

    @staticmethod
    def read(file: Path) -> "History":
        """The history of a file; an empty one if there is no file.

        Raises:
            RunError: the file is damaged.
        """
        if not file.exists():
            return History()
        content = _read(file, HISTORY_FORM)
        for evaluation in content["evaluations"]:
            _check(file, evaluation, EVALUATION_FORM)
            _check(file, evaluation["valid"], {"hit@5": float})
        return History(tuple(content["evaluations"]), content["finished"], tuple(content["alarms"]))


@dataclass(frozen=True)
class Timing:
    """The time until each validation.

    Attributes:
        validations: (update, seconds of training, wall seconds) of each. Seconds of training are processor time if the
            model computes on the processor, so that other work on the machine is not counted, else wall time.
    """

    validations: tuple[tuple[int, float, float], ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of training, over all processes that trained the run."""
        return self.validations[-1][1] if self.validations else 0.0

    @property
    def clock(self) -> list[tuple[int, float]]:
        """(update, seconds of training) of every validation."""
        return [(update, seconds) for update, seconds, _ in self.validations]

    def remaining(self, updates: int, limit: float | None) -> float | None:
        """Wall seconds until all updates are made, at the present speed; None before the first update.

        Args:
            updates: at the end of training.
            limit: seconds of training after which it ends; None for no limit.
        """
        if not self.validations or not self.validations[-1][0]:
            return None
        update, seconds, wall = self.validations[-1]
        left = (updates - update) / update
        if limit:
            left = min(left, max(0.0, limit / seconds - 1))
        return left * wall

    def remaining_error(self) -> float | None:
        """The relative error of the remaining time predicted after a quarter of the validations; None before four.

        The prediction is compared with the time of the updates that were made, so that an early stop is no error.
        """
        made = [(update, wall) for update, _, wall in self.validations if update]
        if len(made) < 4:
            return None
        (early, at_early), (last, at_last) = made[len(made) // 4], made[-1]
        predicted = at_early / early * (last - early)
        return predicted / (at_last - at_early) - 1

    def write(self, file: Path) -> None:
        write_atomically(file, json.dumps({"validations": list(self.validations)}))

    @staticmethod
    def read(file: Path) -> "Timing":
        """The timing of a file; an empty one if there is no file.

        Raises:
            RunError: the file is damaged.
        """
        if not file.exists():
            return Timing()
        found = _read(file, TIMING_FORM)["validations"]
        return Timing(tuple((int(update), float(seconds), float(wall)) for update, seconds, wall in found))


def _read(file: Path, form: Mapping[str, Any]) -> dict[str, Any]:
    content = read_json(file)
    _check(file, content, form)
    return content


def _check(file: Path, content: Any, form: Mapping[str, Any]) -> None:
    for name, hint in form.items():
        if not isinstance(content, dict) or name not in content or not frozen.fits(hint, content[name]):
            raise RunError(
                f"{file} is damaged, or of another version: it has no {name!r} that can be read; train the run again"
            )
