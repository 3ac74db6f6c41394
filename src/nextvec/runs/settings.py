"""The settings of a training run: a model, its own options, and the groups that every model reads."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from nextvec import settings as frozen
from nextvec.errors import SettingsError, did_you_mean
from nextvec.runs.families import families_that_read, family, family_names
from nextvec.runs.groups import (
    ComputeSettings,
    NegativeSettings,
    ObjectiveSettings,
    OptimizerSettings,
    PassageSettings,
    SourceSettings,
    SpaceSettings,
    SplitSettings,
    ValidationSettings,
)
from nextvec.settings import bounded, check_bounds

DEFAULT_MODEL = "memory_gru"
MODEL, OPTIONS, SEED = "model", "options", "seed"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Every choice of a run, resolved and written into it.

    Each setting also has a flat name, its field's name in its group. Flat names are unique: ``--set name=value``,
    :meth:`of`, :meth:`replaced` and :meth:`flat` use them.

    Attributes:
        model: name of a model family (:mod:`nextvec.runs.families`).
        options: what only this family reads; an instance of its ``options``.
        seed: of the initial weights, the order of passages, dropout and the drawn negatives.

    Raises:
        SettingsError: values that are invalid by themselves or together.
    """

    model: str
    options: Any
    seed: int = bounded(0, 0, 2**62)
    source: SourceSettings = field(default_factory=SourceSettings)
    space: SpaceSettings = field(default_factory=SpaceSettings)
    passages: PassageSettings = field(default_factory=PassageSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    negatives: NegativeSettings = field(default_factory=NegativeSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    split: SplitSettings = field(default_factory=SplitSettings)

    def __post_init__(self) -> None:
        check_bounds(self)
        kind = family(self.model)
        if type(self.options) is not kind.options:
            raise SettingsError(
                f"options of model {self.model} must be {kind.options.__name__}, not {type(self.options).__name__}"
            )
        kind.check(self.options, self.optimizer, self.compute)
        if kind.raw_only and self.space.space != "raw":
            raise SettingsError(f"space={self.space.space}: model {self.model} reads raw rows only; choose space=raw")
        if self.objective.loss_on == "delta" and not kind.predicts_difference:
            able = ", ".join(name for name in family_names() if family(name).predicts_difference)
            raise SettingsError(f"loss_on=delta: {self.model} predicts no difference; these models do: {able}")

    @staticmethod
    def of(model: str = DEFAULT_MODEL, **values: Any) -> "TrainSettings":
        """The settings of a model from flat names; a setting that is not named has its default.

        Raises:
            SettingsError: no such model or setting, a setting that the model does not read, or an invalid value.
        """
        homes = _homes(model)
        given: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            given.setdefault(_home(homes, model, name, value), {})[name] = value
        groups = {group: kind(**given.get(group, {})) for group, kind in _group_types(model).items()}
        return TrainSettings(model=model, **groups, **given.get("", {}))

    def replaced(self, **changes: Any) -> "TrainSettings":
        """These settings with some changed by flat name. Another model keeps the options that it reads, too.

        Raises:
            SettingsError: as :meth:`of`.
        """
        model = changes.pop(MODEL, self.model)
        homes = _homes(model)
        kept = {name: value for name, value in self.flat().items() if name in homes and name not in changes}
        return TrainSettings.of(model, **kept, **changes)

    def flat(self) -> dict[str, Any]:
        """Every setting but ``model`` by its flat name."""
        values: dict[str, Any] = {SEED: self.seed}
        for group in _group_types(self.model):
            held = getattr(self, group)
            values |= {each.name: getattr(held, each.name) for each in dataclasses.fields(held)}
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "TrainSettings":
        """Read back what :func:`nextvec.settings.to_json` wrote.

        Raises:
            SettingsError: an unknown model, group or setting, or a value that is not of its type.
        """
        model = values.get(MODEL) if isinstance(values, Mapping) else None
        if not isinstance(model, str):
            raise SettingsError(f"settings are {values!r}; want a model and groups")
        groups = _group_types(model)
        if unknown := set(values) - {MODEL, SEED, *groups}:
            raise SettingsError(f"there is no group of settings {min(unknown)!r}; known: {', '.join(groups)}")
        read = {name: frozen.from_json(kind, values[name]) for name, kind in groups.items() if name in values}
        if not frozen.fits(int, seed := values.get(SEED, 0)):
            raise SettingsError(f"seed is {seed!r}; want int")
        return TrainSettings(model=model, seed=seed, **{OPTIONS: family(model).options(), **read})


def override(settings: TrainSettings, assignments: Iterable[str]) -> TrainSettings:
    """``settings`` with each ``name=value`` applied; ``model=NAME`` is applied first, wherever it stands.

    Raises:
        SettingsError: as :meth:`TrainSettings.of`, or an assignment that is not of this form.
    """
    texts: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment!r} is not of the form name=value")
        texts[name] = text
    model = texts.pop(MODEL, settings.model)
    homes, groups = _homes(model), _group_types(model)
    changes: dict[str, Any] = {}
    for name, text in texts.items():
        group = _home(homes, model, name, text)
        hints = get_type_hints(groups[group] if group else TrainSettings)
        changes[name] = frozen.parsed(hints[name], name, text)
    return settings.replaced(**{MODEL: model, **changes})


def reads(model: str, name: str) -> bool:
    """Whether a model's settings have this flat name."""
    return name == MODEL or name in _homes(model)


def _group_types(model: str) -> dict[str, type[Any]]:
    """The dataclass of each group, by the name of its field; ``options`` has the dataclass of the family."""
    shared = {
        each.name: each.default_factory for each in dataclasses.fields(TrainSettings) if isinstance(each.default_factory, type)
    }
    return {OPTIONS: family(model).options, **shared}


def _homes(model: str) -> dict[str, str]:
    """The group of every flat name of a model's settings; "" for those that are in no group.

    Raises:
        SettingsError: the family has an option with the name of a setting of all models.
    """
    homes = {SEED: ""}
    for group, kind in reversed(_group_types(model).items()):
        for each in dataclasses.fields(kind):
            if each.name in homes or each.name == MODEL:
                raise SettingsError(
                    f"model {model} has an option {each.name!r}, which is the name of another setting; rename it"
                )
            homes[each.name] = group
    return homes


def _home(homes: Mapping[str, str], model: str, name: str, value: object) -> str:
    if name in homes:
        return homes[name]
    if readers := families_that_read(name):
        raise SettingsError(f"{name}={value}: model {model} does not read {name}; these models do: {', '.join(readers)}")
    raise SettingsError(f"there is no setting {name!r}; {did_you_mean(name, [MODEL, *homes])}")
