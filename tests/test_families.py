"""Model families and recipes: found by entry points, so that other packages can add them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextvec import recipes as recipes_module
from nextvec.errors import SettingsError
from nextvec.evaluation.runs import evaluate
from nextvec.models import GRU
from nextvec.recipes import recipe, recipes
from nextvec.runs import Run, TrainSettings, families, load_model
from nextvec.runs.core_models import GRU_FAMILY, LayerOptions
from nextvec.runs.families import Basis, ModelFamily, family, family_names
from nextvec.runs.settings import override
from nextvec.settings import bounded
from nextvec.training import begin, train
from tests.conftest import walk_bank


@dataclass(frozen=True, kw_only=True)
class ThirdOptions(LayerOptions):
    """Attributes:
    third: an option that only this family has.
    """

    third: int = bounded(3, 1, 9)


@dataclass(frozen=True, kw_only=True)
class Clashing(LayerOptions):
    context: int = 5


def _third(o: ThirdOptions, basis: Basis) -> GRU:
    return GRU(basis.centre, basis.decay, o.hidden, o.third, o.dropout)


THIRD = ModelFamily("third", ThirdOptions, _third)
CLASHING = ModelFamily("clashing", Clashing, lambda o, basis: _third(ThirdOptions(), basis))
RECIPES = {"third recipe": lambda rows: TrainSettings.of("third", hidden=8, updates=rows)}
TWICE = {"default": lambda rows: TrainSettings.of()}


class Installed:
    """Pretends that a package with entry points is installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def add(self, group: str, name: str, attribute: str) -> None:
        point = EntryPoint(name, f"{__name__}:{attribute}", group)
        module: Any = families if group == families.GROUP else recipes_module
        before = module.entry_points
        found = lambda group: [*before(group=group), *([point] if group == point.group else [])]  # noqa: E731
        self.monkeypatch.setattr(module, "entry_points", found)
        forget()


def forget() -> None:
    families._installed.cache_clear()
    recipes.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    yield Installed(monkeypatch)
    monkeypatch.undo()
    forget()


def test_a_family_of_another_package_is_trained_examined_and_opened_again(installed: Installed, tmp_path: Path) -> None:
    installed.add(families.GROUP, "third", "THIRD")
    assert "third" in family_names()
    bank = walk_bank(documents=20)
    settings = override(TrainSettings.of(context=20, updates=2, pool=30, hidden=8), ["third=2", "model=third"])
    run = begin(tmp_path / "run", "test", settings, bank)
    list(train(run, bank))
    opened = Run.open(tmp_path / "run")
    assert opened.settings == run.settings
    assert opened.settings.options == ThirdOptions(hidden=8, third=2)
    model = load_model(opened)
    assert isinstance(model, GRU)
    assert model.recurrence.num_layers == 2
    assert np.isfinite(evaluate(opened, bank, pool=30).ranks.hit(5).value)


def test_a_run_of_a_family_that_is_not_installed_is_refused(installed: Installed, tmp_path: Path) -> None:
    installed.add(families.GROUP, "third", "THIRD")
    begin(tmp_path / "run", "test", TrainSettings.of("third", context=20, pool=30), walk_bank(documents=20))
    installed.monkeypatch.undo()
    forget()
    with pytest.raises(Exception, match="model=third: must be one of"):
        Run.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "attribute", "message"),
    [
        ("gru", "THIRD", "model gru is provided twice"),
        ("other", "THIRD", "not a ModelFamily of this name"),
        ("third", "RECIPES", "not a ModelFamily of this name"),
        ("third", "NOWHERE", "cannot be imported"),
        ("clashing", "CLASHING", "has an option 'context', which is the name of another setting"),
    ],
)
def test_an_entry_point_that_is_no_family_is_named(name: str, attribute: str, message: str, installed: Installed) -> None:
    installed.add(families.GROUP, name, attribute)
    with pytest.raises(SettingsError, match=message):
        TrainSettings.of(name)


def test_recipes_of_another_package_come_after_ours(installed: Installed) -> None:
    before = [*recipes()]
    installed.add(families.GROUP, "third", "THIRD")
    installed.add(recipes_module.GROUP, "a package", "RECIPES")
    assert [*recipes()] == [*before, "third recipe"]
    assert recipe("third recipe", 7).optimizer.updates == 7
    assert before[0] == "default"


def test_a_recipe_that_is_provided_twice_is_named(installed: Installed) -> None:
    installed.add(recipes_module.GROUP, "a package", "TWICE")
    with pytest.raises(SettingsError, match="recipe default is provided twice"):
        recipe("default", 10)


def test_every_family_builds_from_its_defaults_and_has_its_entry_point_s_name() -> None:
    for name in family_names():
        assert family(name).name == name
        assert family(name).options() == TrainSettings.of(name).options
    assert family("gru") is GRU_FAMILY


def test_the_core_loads_without_the_reproduction() -> None:
    """Only entry points know it: no module below imports it."""
    code = "import sys, nextvec.training, nextvec.experiments.sweep; print('nextvec.reproduction' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
