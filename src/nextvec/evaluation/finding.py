"""The result of one check of an audit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """The result of one check of a bank.

    Attributes:
        passed: whether the check finds no reason to doubt figures that are measured on the bank.
        says: one sentence for the reader.
        figures: the measured values.
    """

    passed: bool
    says: str
    figures: Mapping[str, float | int | str]

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "says": self.says, **self.figures}
