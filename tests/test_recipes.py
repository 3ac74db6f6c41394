"""Recipes: what each of them is, and that each of them trains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import SettingsError
from nextvec.evaluation.runs import evaluate
from nextvec.recipes import EFFECTIVE_BATCH, FIXES, RECIPES, recipe
from nextvec.training import Finished, begin, train
from tests.conftest import walk_bank

PHASES = {"phase1": 100, "phase2": 500, "phase2b": 500, "phase2c": 500, "phase3": 1000, "phase3_5": 2000}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_can_be_examined(name: str, tmp_path: Path) -> None:
    bank = walk_bank(documents=16, length=40)
    settings = replace(recipe(name, len(bank)), updates=2, evaluate_every=2, context=12, hidden=8, slots=8, pool=30)
    run = begin(tmp_path / "run", name, replace(settings, coherence=min(settings.coherence, 0.0)), bank)
    events = list(train(run, bank))
    assert isinstance(events[-1], Finished)
    pulls = {name: term["gradient"] for name, term in run.history()[-1]["terms"].items()}
    assert pulls.pop("balance", None) is None  # it pulls at the gate, not at the predictions
    assert all(np.isfinite(pull) for pull in pulls.values())
    assert 0 <= evaluate(run, bank, "test", pool=30).ranks.hit(5).value <= 1


@pytest.mark.parametrize(("phase", "context"), PHASES.items())
def test_both_forms_of_a_phase_read_the_same_context_at_the_same_width(phase: str, context: int) -> None:
    ours, published = recipe(phase, 45_000), recipe(f"{phase}-published", 45_000)
    assert ours.context == published.context == context
    assert ours.hidden == published.hidden
    assert published.batch * published.accumulate == EFFECTIVE_BATCH
    assert (published.supervision, published.cached, published.warmup, published.model) == ("last", False, 0, "published")
    assert (ours.supervision, ours.across) == ("every", False)


def test_phase_3_as_published_is_what_was_published() -> None:
    s = recipe("phase3-published", 45_000)
    assert (s.batch, s.accumulate, s.lr, s.weight_decay) == (8, 32, 1e-4, 1e-4)
    assert (s.alpha, s.temperature, s.learn_temperature, s.patience) == (0.03, 0.07, False, 3)
    assert (s.cosine, s.mse * 768) == (0.5, pytest.approx(1.0))


@pytest.mark.parametrize("fix", FIXES)
def test_an_ablation_differs_in_its_fix_alone(fix: str) -> None:
    whole, without = recipe("phase1-published", 45_000), recipe(f"phase1-published-no-{fix}", 45_000)
    assert without != whole
    assert replace(whole, **FIXES[fix]) == without


def test_broken_lacks_every_fix() -> None:
    broken = recipe("broken-published", 45_000)
    for off in FIXES.values():
        assert all(getattr(broken, name) == value for name, value in off.items())


@given(st.integers(1, 10_000_000), st.integers(1, 10_000_000))
def test_recipes_grow_with_the_bank(a: int, b: int) -> None:
    small, large = sorted((a, b))
    for name in RECIPES:
        few, many = recipe(name, small), recipe(name, large)
        assert few.hidden <= many.hidden
        assert few.updates <= many.updates


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'phase3_5-published'"):
        recipe("phase35-published", 10)
    with pytest.raises(SettingsError, match="known: default, broken"):
        recipe("xyz", 10)
