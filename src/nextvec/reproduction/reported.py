"""The predecessor's phases: their names and order, and the figures that it reported for them."""

import re
from collections.abc import Mapping

Pool = int | None  # candidates per scored row; None for the whole bank

ORDER = ("broken", "phase1", "phase2", "phase2b", "phase2c", "phase3", "phase3_5", "phase4")
PLANNED = ("phase4",)  # planned by the predecessor, never built
FORMS = ("ours", "published")
RECIPES = (
    *ORDER,
    *(f"{phase}-published" for phase in ORDER if phase not in PLANNED),
    *(f"phase1-published-no-{fix}" for fix in "ABCD"),
)
POOLS: tuple[Pool, ...] = (58, 115, 230, 1000, 1148, None)
FIXED_POOL = 1000

# Reported Hit@5, and the number of candidates: the predecessor's own validation targets. It never ran Phase 2C.
REPORTED: Mapping[str, tuple[float, int]] = {
    "broken": (0.3699, 1149),
    "phase1": (0.5932, 1148),
    "phase2": (0.6652, 230),
    "phase2b": (0.6652, 230),
    "phase3": (0.7565, 115),
    "phase3_5": (0.6207, 58),
}
SOURCE = "reported in the public repository TrentCarter/lnsp-phase-4, training_history.json; among its own validation targets"
# Phase, context, and the candidates that were left at this context.
SHRINKING = (("phase1", 100, 1148), ("phase2", 500, 230), ("phase3", 1000, 115), ("phase3_5", 2000, 58))


def parts_of(recipe: str) -> tuple[str, str, str | None]:
    """Phase, form and the fix that is off, from the name of a recipe."""
    found = re.fullmatch(r"(.+?)(-published)?(?:-no-([A-D]))?", recipe)
    assert found
    return found[1], FORMS[1] if found[2] else FORMS[0], found[3]


def reported(recipe: str) -> dict[str, float | int] | None:
    """The Hit@5 that the predecessor reported for a recipe, and its number of candidates; None without a report."""
    phase, _, without = parts_of(recipe)
    if without or phase not in REPORTED:
        return None
    hit5, candidates = REPORTED[phase]
    return {"hit@5": hit5, "candidates": candidates}
