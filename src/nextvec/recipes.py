"""Named settings. A recipe is a function of the bank's size, so that size and updates fit what there is to learn from."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from nextvec.errors import SettingsError
from nextvec.training import TrainSettings

Recipe = Callable[[int], TrainSettings]


def default(rows: int) -> TrainSettings:
    """The memory-augmented GRU on passages of 256 vectors; what ``nextvec demo`` trains.

    Hidden width and updates grow with the square root of the rows: 10,000 rows
    train in about a minute on one core, and ten times the rows in three times
    the updates. Measured on banks of 10,000 and 45,000 rows; more width only
    learned those banks by heart, and a higher rate did so sooner.
    """
    growth = (max(rows, 1_000) / 10_000) ** 0.5
    return TrainSettings(
        hidden=_power_of_two(64 * growth, 32, 512),
        updates=_rounded(200 * growth, 60, 4_000),
        batch=8,
        lr=5e-4,
        negatives=1024,
    )


def phase1(rows: int) -> TrainSettings:
    """The predecessor's phase 1: 100 vectors of context."""
    return replace(default(rows), context=100, batch=20)


RECIPES: Mapping[str, Recipe] = {"default": default, "phase1": phase1}


def recipe(name: str, rows: int) -> TrainSettings:
    """The settings of recipe ``name`` for a bank of ``rows`` rows.

    Raises:
        SettingsError: no such recipe.
    """
    if name not in RECIPES:
        raise SettingsError(f"there is no recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name](rows)


def _power_of_two(value: float, least: int, most: int) -> int:
    width = least
    while width * 2 <= min(value, most):
        width *= 2
    return width


def _rounded(value: float, least: int, most: int) -> int:
    """To a multiple of 20: how often training looks at the valid exam."""
    return int(min(max(round(value / 20) * 20, least), most))
