"""The recipes of the predecessor's phases, each in two forms, and its four fixes.

``phase3`` is our form: its context, our model, every position a target, thousands of negatives. ``phase3-published`` is the
predecessor's form: one target a window, the other targets of the physical batch as the only negatives, no warm-up. On one
bank both have the same hidden width.
"""

from collections.abc import Mapping
from functools import partial
from math import ceil
from typing import Any

from nextvec.recipes import Recipe, memory, ours
from nextvec.runs import TrainSettings

PUBLISHED_WIDTH = 768
EFFECTIVE_BATCH = 256


def published(rows: int, context: int, batch: int, lr: float = 1e-4, alpha: float = 0.03) -> TrainSettings:
    """The predecessor's training, at the width that ``memory`` has on this bank.

    One target a window. Windows overlap by half and cross documents. The loss is 0.5 (1 - cosine) + MSE averaged over 768
    dimensions + alpha InfoNCE at temperature 0.07 among the ``batch`` targets computed at once; accumulation to 256 adds
    no negatives. AdamW, cosine decay over 50 epochs, patience 3. Source: its ``train_final.py`` (repository
    TrentCarter/lnsp-phase-4).
    """
    windows = max(1, round(2 * 0.65 * rows / context))
    an_epoch = ceil(windows / EFFECTIVE_BATCH)
    return TrainSettings.of(
        model="published",
        hidden=memory(rows).options.hidden,
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
        vector_lr_multiplier=1.0,
        warmup=0,
        weight_decay=1e-4,
        evaluate_every=5 * an_epoch,
        stop_on="hit@5",
        patience=3,
    )


# The four fixes, each by the settings that take it away.
FIXES: Mapping[str, Mapping[str, Any]] = {
    "A": {"stop_on": "cosine"},  # early stopping on Hit@5
    "B": {"loss_on": "delta"},  # normalise before the losses, reconstruct before scoring
    "C": {"alpha": 0.1, "cosine": 0.0, "mse": 1.0, "lr": 5e-4},  # balance of the losses
    "D": {"coherence": -1.0},  # a filter of the data that does not read the target
}


def phase1(rows: int) -> TrainSettings:
    """100 vectors of context."""
    return ours(rows, 100)


def phase1_published(rows: int) -> TrainSettings:
    """100 vectors of context, as published."""
    return published(rows, 100, 32, lr=5e-4, alpha=0.05)


def broken(rows: int) -> TrainSettings:
    """Phase 1 without the four fixes, in our form; fix B does not apply, because our model predicts no difference."""
    off = {name: value for fix in ("A", "C", "D") for name, value in FIXES[fix].items()}
    return phase1(rows).replaced(**off)


def without(fixes: str, rows: int) -> TrainSettings:
    """Phase 1 as published, without some of the four fixes."""
    off = {name: value for fix in fixes for name, value in FIXES[fix].items()}
    return phase1_published(rows).replaced(**off)


RECIPES: Mapping[str, Recipe] = {
    "broken": broken,
    "phase1": phase1,
    "phase2": partial(ours, context=500),
    "phase2b": lambda rows: ours(rows, 500).replaced(alpha=0.05, cosine=0.5),
    "phase2c": lambda rows: ours(rows, 500).replaced(hard=4),
    "phase3": partial(ours, context=1000),
    "phase3_5": partial(ours, context=2000),
    "phase4": lambda rows: ours(rows, 1000).replaced(model="experts", top=2, gate_on="both", balance=0.01),
    "broken-published": partial(without, "ABCD"),
    "phase1-published": phase1_published,
    "phase2-published": partial(published, context=500, batch=16),
    "phase2b-published": partial(published, context=500, batch=16, alpha=0.05),
    "phase2c-published": lambda rows: published(rows, 500, 16).replaced(hard=4, alpha=0.07),
    "phase3-published": partial(published, context=1000, batch=8),
    "phase3_5-published": partial(published, context=2000, batch=4),
    **{f"phase1-published-no-{fix}": partial(without, fix) for fix in FIXES},
}
