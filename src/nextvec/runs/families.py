"""Model families: what a run needs to know of a model. Packages add families by entry points, so this code names none.

A package adds a model by an entry point of the group ``nextvec.models``. Its name is the model's name, its value the
place of a :class:`ModelFamily`::

    [project.entry-points."nextvec.models"]
    gru = "nextvec.runs.core_models:GRU_FAMILY"
"""

# Axes: D width, M documents.

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.errors import SettingsError
from nextvec.lanes import Anchors
from nextvec.models import Recurrent
from nextvec.models.space import Space
from nextvec.runs.groups import ComputeSettings, OptimizerSettings

GROUP = "nextvec.models"
O = TypeVar("O")  # noqa: E741 - the options


@dataclass(frozen=True, eq=False)
class Basis:
    """What training finds in the training documents before it builds the model.

    Attributes:
        centre: [D] mean of the training rows.
        decay: of the exponential mean that the model starts as.
        anchors: of the lanes that the model routes by; None if the family finds none, or before weights are loaded.
        space: that the model reads and ranks in, where ``centre`` is 0; None for the raw rows.
    """

    centre: Float[Tensor, " D"]
    decay: float
    anchors: Anchors | None = None
    space: Space | None = None


def _accept(options: Any, optimizer: OptimizerSettings, compute: ComputeSettings) -> None:
    """Every combination of settings is valid."""


def _no_anchors(options: Any, bank: Bank, documents: Int64[np.ndarray, " M"], seed: int) -> None:
    """The model routes by no lanes."""


@dataclass(frozen=True, eq=False)
class ModelFamily(Generic[O]):
    """One kind of model: its own options, and how it is built from them.

    Attributes:
        name: as in ``--set model=NAME``; the name of its entry point.
        options: frozen dataclass of the settings that only some models read, each with a default. An option that several
            families share has one meaning.
        build: the untrained model; its initial weights come from torch's global generator, which the caller seeds.
        check: raises SettingsError if options do not go together with the settings of all models.
        find_anchors: the anchors of the model's lanes, found in the training documents, or None; ``seed`` is the run's.
        raw_only: whether the model compares vectors with others of the bank's own space, so that ``space=fitted`` is refused.
        predicts_difference: whether the model has :meth:`~nextvec.models.Recurrent.difference`, which ``loss_on=delta`` needs.
    """

    name: str
    options: type[O]
    build: Callable[[O, Basis], Recurrent[Any]]
    check: Callable[[O, OptimizerSettings, ComputeSettings], None] = _accept
    find_anchors: Callable[[O, Bank, Int64[np.ndarray, " M"], int], Anchors | None] = _no_anchors
    predicts_difference: bool = False
    raw_only: bool = False

    @property
    def option_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in fields(self.options))  # type: ignore[arg-type]


def family(name: str) -> ModelFamily[Any]:
    """The installed family of this name.

    Raises:
        SettingsError: no such family, two of this name, or an entry point that is not a family of this name.
    """
    found = _installed()
    if name not in found:
        known = ", ".join(found) or "none is installed; install the package nextvec, whose entry points name them"
        raise SettingsError(f"model={name}: must be one of {known}")
    return _load(found[name])


def family_names() -> tuple[str, ...]:
    """The names of all installed families, sorted."""
    return tuple(_installed())


def families_that_read(option: str) -> tuple[str, ...]:
    """The names of the installed families that have this option."""
    return tuple(name for name in family_names() if option in family(name).option_names)


@cache
def _installed() -> Mapping[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name in found and found[point.name].value != point.value:
            raise SettingsError(f"model {point.name} is provided twice: by {found[point.name].value} and by {point.value}")
        found[point.name] = point
    return found


@cache
def _load(point: EntryPoint) -> ModelFamily[Any]:
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"model {point.name}: its entry point {point.value} cannot be imported: {error}") from error
    if not isinstance(loaded, ModelFamily) or loaded.name != point.name:
        raise SettingsError(f"model {point.name}: its entry point {point.value} is not a ModelFamily of this name")
    return loaded
