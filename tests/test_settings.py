"""Training settings: groups, flat names, bounds, and options that only some models read."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import SettingsError
from nextvec.runs import TrainSettings
from nextvec.runs.families import family, family_names
from nextvec.runs.settings import override, reads
from nextvec.settings import to_json
from tests.settings import fitting

GROUPS = ("source", "space", "passages", "objective", "negatives", "optimizer", "compute", "validation", "split")


@pytest.mark.parametrize(
    ("model", "assignment", "readers"),
    [
        ("memory_gru", "layers=3", "gru, hierarchical, linear, lstm, mixture, published, transformer"),
        ("gru", "window=3", "mixture, transformer"),
        ("memory_gru", "top=2", "experts"),
        ("lstm", "slots=0", "experts, memory_gru, published"),
    ],
)
def test_an_option_that_the_model_does_not_read_is_refused_with_the_models_that_read_it(
    model: str, assignment: str, readers: str
) -> None:
    name, _, value = assignment.partition("=")
    expected = f"{assignment}: model {model} does not read {name}; these models do: {readers}"
    with pytest.raises(SettingsError) as refused:
        override(TrainSettings.of(model), [assignment])
    assert str(refused.value) == expected
    with pytest.raises(SettingsError, match="does not read"):
        TrainSettings.of(model, **{name: int(value)})
    with pytest.raises(SettingsError, match="does not read"):
        TrainSettings.of(model).replaced(**{name: int(value)})


def test_the_model_is_set_first_wherever_it_stands() -> None:
    settings = override(TrainSettings.of(), ["layers=3", "model=gru"])
    assert (settings.model, settings.options.layers) == ("gru", 3)


def test_another_model_keeps_the_options_that_it_reads() -> None:
    settings = TrainSettings.of("gru", hidden=8, layers=3, dropout=0.1, lr=0.5)
    changed = settings.replaced(model="memory_gru")
    assert (changed.options.hidden, changed.options.dropout, changed.optimizer.lr) == (8, 0.1, 0.5)
    assert changed.options == TrainSettings.of("memory_gru", hidden=8, dropout=0.1).options


@pytest.mark.parametrize("model", family_names())
def test_flat_names_are_unique_and_reach_every_setting(model: str) -> None:
    settings = TrainSettings.of(model)
    held = [field.name for group in (*GROUPS, "options") for field in dataclasses.fields(getattr(settings, group))]
    assert len(held) == len(set(held))
    assert settings.flat().keys() == {"seed", *held}
    assert TrainSettings.of(model, **settings.flat()) == settings
    assert all(reads(model, name) for name in settings.flat())


@pytest.mark.parametrize("model", family_names())
def test_every_bound_is_held_in_both_directions(model: str) -> None:
    settings = TrainSettings.of(model)
    groups = [settings, *(getattr(settings, group) for group in (*GROUPS, "options"))]
    bounded = [field for group in groups for field in dataclasses.fields(group) if "least" in field.metadata]
    assert len(bounded) > 25
    for field in bounded:
        assert field.default is None or field.metadata["least"] <= field.default <= field.metadata["most"], field.name
        for value in (field.metadata["least"] - 1, field.metadata["most"] + 1):
            with pytest.raises(SettingsError, match=f"{field.name}=.*the nearest right one is"):
                override(settings, [f"{field.name}={value}"])


@given(st.sampled_from(family_names()), st.integers(1, 500), st.floats(1e-6, 1.0), st.integers(0, 2**40))
def test_settings_survive_json(model: str, hidden: int, lr: float, seed: int) -> None:
    settings = fitting(model, hidden=hidden, lr=lr, seed=seed, pool=None)
    content = json.loads(json.dumps(to_json(settings)))
    assert content.keys() == {"model", "options", "seed", *GROUPS}
    assert content["options"].keys() == set(family(model).option_names)
    assert TrainSettings.from_json(content) == settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gpt"}, "model=gpt: must be one of"),
        ({"model": 3}, "want a model and groups"),
        ({"router": {}}, "no group of settings 'router'"),
        ({"optimizer": {"lrr": 1.0}}, "did you mean 'lr'"),
        ({"optimizer": {"updates": "many"}}, "updates is 'many'; want int"),
        ({"options": {"layers": 2}}, "no setting 'layers'"),
        ({"seed": "one"}, "seed is 'one'; want int"),
    ],
)
def test_json_that_is_no_settings_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings.from_json({**to_json(TrainSettings.of()), **change})


@pytest.mark.parametrize("values", [{"lane_filter": "Law"}, {"lane_folder": "books.lanes"}])
def test_a_lane_and_its_folder_are_set_together(values: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="needs lane_"):
        TrainSettings.of(**values)
