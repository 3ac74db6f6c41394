"""Named settings. A recipe is a function of the number of rows of the bank, so that model size and updates fit the data.

Packages add recipes by an entry point of the group ``nextvec.recipes``. Its value is the import path of a mapping from names
to recipes::

    [project.entry-points."nextvec.recipes"]
    core = "nextvec.recipes:RECIPES"
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points

from nextvec.errors import SettingsError, did_you_mean
from nextvec.runs import TrainSettings

Recipe = Callable[[int], TrainSettings]

GROUP = "nextvec.recipes"
OWN = "nextvec."  # the recipes of this package come first
POSITIONS = 2048  # vectors that an update of our recipes reads, at every context


def default(rows: int) -> TrainSettings:  # noqa: ARG001 - a recipe
    """The mixture of the context without content, in a space fitted to the bank; ``nextvec demo`` trains it.

    It has 976 weights, so that its size and its updates need not grow with the rows: an update reads eight
    passages and scores 32 rows of each among 1,000 rows of as many documents as an exam has.
    """
    return TrainSettings.of(
        "pooled",
        space="fitted",
        start="shipped",
        alpha=0.0,
        misses=1.0,
        temperature=0.035,
        in_batch=False,
        negatives=1000,
        targets=32,
        batch=8,
        updates=200,
        lr=2e-3,
        vector_lr_multiplier=10.0,
        weight_decay=0.1,
    )


def memory(rows: int) -> TrainSettings:
    """The memory-augmented GRU on passages of 256 vectors of raw rows.

    Hidden width and updates grow with the square root of the rows: 10,000 rows train in about a minute on one core, and
    ten times the rows need three times the updates. On banks of 10,000 and 45,000 rows, a larger width or a higher
    learning rate overfitted.
    """
    growth = (max(rows, 1_000) / 10_000) ** 0.5
    return TrainSettings.of(
        hidden=_power_of_two(64 * growth, 32, 512),
        updates=_rounded(200 * growth, 60, 4_000),
        batch=8,
        lr=5e-4,
        negatives=1024,
    )


def ours(rows: int, context: int) -> TrainSettings:
    """The memory GRU with another context. An update reads the same number of vectors, in fewer or more passages."""
    return memory(rows).replaced(context=context, batch=max(1, round(POSITIONS / context)))


RECIPES: Mapping[str, Recipe] = {"default": default, "memory": memory}


def recipe(name: str, rows: int) -> TrainSettings:
    """The settings of recipe ``name`` for a bank of ``rows`` rows.

    Raises:
        SettingsError: no such recipe.
    """
    known = recipes()
    if name not in known:
        raise SettingsError(f"there is no recipe {name!r}; {did_you_mean(name, known)}")
    return known[name](rows)


@cache
def recipes() -> Mapping[str, Recipe]:
    """Every installed recipe by name. The recipes of this package come first; each package keeps its own order.

    Raises:
        SettingsError: two recipes of one name, or an entry point that cannot be imported.
    """
    found: dict[str, Recipe] = {}
    for point in sorted(set(entry_points(group=GROUP)), key=lambda point: (not point.value.startswith(OWN), point.name)):
        try:
            added: Mapping[str, Recipe] = point.load()
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"recipes {point.name}: {point.value} cannot be imported: {error}") from error
        if twice := found.keys() & added.keys():
            raise SettingsError(f"recipe {min(twice)} is provided twice, the second time by {point.value}")
        found |= added
    return found


def _power_of_two(value: float, least: int, most: int) -> int:
    width = least
    while width * 2 <= min(value, most):
        width *= 2
    return width


def _rounded(value: float, least: int, most: int) -> int:
    """Rounded to a multiple of 20, the updates between two validations."""
    return int(min(max(round(value / 20) * 20, least), most))
