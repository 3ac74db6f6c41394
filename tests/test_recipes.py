"""Recipes: what each of them is, and that each of them trains."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.errors import SettingsError
from nextvec.evaluation.runs import evaluate
from nextvec.recipes import recipe, recipes
from nextvec.reproduction.recipes import EFFECTIVE_BATCH, FIXES
from nextvec.runs.settings import reads
from nextvec.training import Finished, begin, train
from tests.conftest import walk_bank

PHASES = {"phase1": 100, "phase2": 500, "phase2b": 500, "phase2c": 500, "phase3": 1000, "phase3_5": 2000}


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_trains_and_can_be_examined(name: str, tmp_path: Path) -> None:
    bank = walk_bank(documents=16, length=40)
    given = recipe(name, len(bank))
    sizes = {size: 8 for size in ("hidden", "slots") if reads(given.model, size)}
    settings = given.replaced(updates=2, evaluate_every=2, context=12, pool=30, **sizes)
    run = begin(tmp_path / "run", name, settings.replaced(coherence=min(settings.passages.coherence, 0.0)), bank)
    events = list(train(run, bank))
    assert isinstance(events[-1], Finished)
    norms = {name: term["gradient"] for name, term in run.history()[-1]["terms"].items()}
    assert norms.pop("balance", None) is None  # an auxiliary loss has no gradient at the predictions
    assert all(np.isfinite(norm) for norm in norms.values())
    assert 0 <= evaluate(run, bank, "test", pool=30).ranks.hit(5).value <= 1


@pytest.mark.parametrize(("phase", "context"), PHASES.items())
def test_both_forms_of_a_phase_read_the_same_context_at_the_same_width(phase: str, context: int) -> None:
    ours, published = recipe(phase, 45_000), recipe(f"{phase}-published", 45_000)
    assert ours.passages.context == published.passages.context == context
    assert ours.options.hidden == published.options.hidden
    assert published.optimizer.batch * published.optimizer.accumulate == EFFECTIVE_BATCH
    assert (published.passages.supervision, published.negatives.cached) == ("last", False)
    assert (published.optimizer.warmup, published.model) == (0, "published")
    assert (ours.passages.supervision, ours.passages.across) == ("every", False)


def test_phase_3_as_published_is_what_was_published() -> None:
    settings = recipe("phase3-published", 45_000)
    s, o = settings.objective, settings.optimizer
    assert (o.batch, o.accumulate, o.lr, o.weight_decay) == (8, 32, 1e-4, 1e-4)
    assert (s.alpha, s.temperature, s.learn_temperature, settings.validation.patience) == (0.03, 0.07, False, 3)
    assert (s.cosine, s.mse * 768) == (0.5, pytest.approx(1.0))


@pytest.mark.parametrize("fix", FIXES)
def test_an_ablation_differs_in_its_fix_alone(fix: str) -> None:
    whole, without = recipe("phase1-published", 45_000), recipe(f"phase1-published-no-{fix}", 45_000)
    assert without != whole
    assert whole.replaced(**FIXES[fix]) == without


def test_broken_lacks_every_fix() -> None:
    broken = recipe("broken-published", 45_000)
    for off in FIXES.values():
        assert all(broken.flat()[name] == value for name, value in off.items())


@given(st.integers(1, 10_000_000), st.integers(1, 10_000_000))
def test_recipes_grow_with_the_bank(a: int, b: int) -> None:
    small, large = sorted((a, b))
    for name in recipes():
        few, many = recipe(name, small), recipe(name, large)
        assert few.flat().get("hidden", 0) <= many.flat().get("hidden", 0)
        assert few.optimizer.updates <= many.optimizer.updates


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'phase3_5-published'"):
        recipe("phase35-published", 10)
    with pytest.raises(SettingsError, match="known: default, memory, broken"):
        recipe("xyz", 10)
