"""Named settings. A recipe is a function of the bank's size, so that size and updates fit what there is to learn from.

The predecessor's phases are here in two forms. ``phase3`` is ours: its context,
our model, every position a target, thousands of negatives. ``phase3-published``
is how it was done: one target a window, the other targets of the physical batch
as the only negatives, no warm-up. Both are of one width at one bank.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import ceil

from nextvec.errors import SettingsError, did_you_mean
from nextvec.runs import TrainSettings

Recipe = Callable[[int], TrainSettings]

POSITIONS = 2048  # an update of ours reads so many vectors, whatever the context
PUBLISHED_WIDTH = 768
EFFECTIVE_BATCH = 256


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


def ours(rows: int, context: int) -> TrainSettings:
    """The default recipe on another context: as many vectors an update, in fewer, longer passages."""
    return replace(default(rows), context=context, batch=max(1, round(POSITIONS / context)))


def published(rows: int, context: int, batch: int, lr: float = 1e-4, alpha: float = 0.03) -> TrainSettings:
    """The predecessor's training, at the width that ``default`` has on this bank.

    One target a window, windows overlap by half and run across documents; loss
    0.5 (1 - cosine) + MSE averaged over 768 dimensions + alpha InfoNCE at
    temperature 0.07 among the ``batch`` targets computed at once, which
    accumulation to 256 does not enlarge; AdamW, cosine decay over 50 epochs,
    patience 3. Source: its ``train_final.py`` (repository TrentCarter/lnsp-phase-4).
    """
    windows = max(1, round(2 * 0.65 * rows / context))
    an_epoch = ceil(windows / EFFECTIVE_BATCH)
    return TrainSettings(
        model="published",
        hidden=default(rows).hidden,
        layers=4,
        dropout=0.1,
        context=context,
        supervision="last",
        across=True,
        coherence=0.2,
        alpha=alpha,
        cosine=0.5,
        mse=1 / PUBLISHED_WIDTH,
        learn_temperature=False,
        cached=False,
        batch=batch,
        accumulate=EFFECTIVE_BATCH // batch,
        updates=50 * an_epoch,
        lr=lr,
        faster=1.0,
        warmup=0,
        weight_decay=1e-4,
        evaluate_every=5 * an_epoch,
        stop_on="hit@5",
        patience=3,
    )


# The four fixes, each by what is set when it is off.
FIXES: Mapping[str, Mapping[str, object]] = {
    "A": {"stop_on": "cosine"},  # early stopping on Hit@5
    "B": {"loss_on": "delta"},  # normalise before the losses, reconstruct before scoring
    "C": {"alpha": 0.1, "cosine": 0.0, "mse": 1.0, "lr": 5e-4},  # balance of the losses
    "D": {"coherence": -1.0},  # a gate on the data that never looks at the target
}


def phase1(rows: int) -> TrainSettings:
    """100 vectors of context."""
    return ours(rows, 100)


def phase1_published(rows: int) -> TrainSettings:
    """100 vectors of context, as published."""
    return published(rows, 100, 32, lr=5e-4, alpha=0.05)


def broken(rows: int) -> TrainSettings:
    """Phase 1 before the four fixes, in our form; B has none to be off, ours predicts no difference."""
    off = {name: value for fix in ("A", "C", "D") for name, value in FIXES[fix].items()}
    return replace(phase1(rows), **off)  # type: ignore[arg-type]


def without(fixes: str, rows: int) -> TrainSettings:
    """Phase 1 as published, some of the four fixes off."""
    off = {name: value for fix in fixes for name, value in FIXES[fix].items()}
    return replace(phase1_published(rows), **off)  # type: ignore[arg-type]


RECIPES: Mapping[str, Recipe] = {
    "default": default,
    "broken": broken,
    "phase1": phase1,
    "phase2": partial(ours, context=500),
    "phase2b": lambda rows: replace(ours(rows, 500), alpha=0.05, cosine=0.5),
    "phase2c": lambda rows: replace(ours(rows, 500), hard=4),
    "phase3": partial(ours, context=1000),
    "phase3_5": partial(ours, context=2000),
    "phase4": lambda rows: replace(ours(rows, 1000), model="experts", top=2, gate_on="both", balance=0.01),
    "broken-published": partial(without, "ABCD"),
    "phase1-published": phase1_published,
    "phase2-published": partial(published, context=500, batch=16),
    "phase2b-published": partial(published, context=500, batch=16, alpha=0.05),
    "phase2c-published": lambda rows: replace(published(rows, 500, 16), hard=4, alpha=0.07),
    "phase3-published": partial(published, context=1000, batch=8),
    "phase3_5-published": partial(published, context=2000, batch=4),
    **{f"phase1-published-no-{fix}": partial(without, fix) for fix in FIXES},
}


def recipe(name: str, rows: int) -> TrainSettings:
    """The settings of recipe ``name`` for a bank of ``rows`` rows.

    Raises:
        SettingsError: no such recipe.
    """
    if name not in RECIPES:
        raise SettingsError(f"there is no recipe {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name](rows)


def _power_of_two(value: float, least: int, most: int) -> int:
    width = least
    while width * 2 <= min(value, most):
        width *= 2
    return width


def _rounded(value: float, least: int, most: int) -> int:
    """To a multiple of 20: how often training looks at the valid exam."""
    return int(min(max(round(value / 20) * 20, least), most))
