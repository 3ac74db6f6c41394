"""The page of the context experiment: the effect of every treatment of the context, with its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nextvec.bank.layout import write_atomically
from nextvec.pages.charts import Curve, Point, change, change_kind, change_scale, interval, line_chart
from nextvec.pages.templates import templates

Json = Mapping[str, Any]


def write_context_page(path: Path, found: Json) -> None:
    """Write one self-contained page of a ``context.json``."""
    effects = [*found["trained"], *found["truncated"], *found["disturbed"]["effects"]]
    page = templates().get_template("context.html")
    write_atomically(
        path,
        page.render(
            found=found,
            verdicts=_verdicts(found),
            tables=_context_tables(found),
            trained_chart=_trained_chart(found["trained"]),
            truncated_chart=_truncated_chart(found["truncated"]),
            most=max(effect["hit@5"]["high"] for effect in effects) * 1.05,
            restricted=any(effect["full"] for effect in effects),
            bar=interval,
            change=change,
        ),
    )


def _verdicts(found: Json) -> list[tuple[str, str]]:
    """Every verdict with its style class: first those on trained contexts, then the one on the far context."""
    kinds = [change_kind(row["change"]) for row in found["trained"][1:]]
    hurt = any(effect["change"]["high"] < 0 for effect in found["disturbed"]["effects"])
    return list(zip(found["verdicts"], [*kinds, "model" if hurt else "quiet"], strict=True))


def _context_tables(found: Json) -> list[dict[str, Any]]:
    shortest, longest, near = found["trained"][0]["name"], f"{found['longest']:,}", found["disturbed"]["near"]
    tables: list[dict[str, Any]] = [
        {
            "title": "Runs trained with different contexts",
            "says": f"Every run reads the context it was trained with. Change: against the context {shortest}.",
            "column": "trained with",
            "rows": found["trained"],
        },
        {
            "title": f"The runs trained with {longest}, with fewer vectors to read",
            "says": f"The same weights. Change: against all {longest}.",
            "column": "may read",
            "rows": found["truncated"],
        },
        {
            "title": "Disturbed far context",
            "says": f"The same weights; of {longest} vectors the last {near:,} stay intact. Change: against the intact one.",
            "column": "far context",
            "rows": found["disturbed"]["effects"],
        },
    ]
    return [{**table, "scale": change_scale([row["change"] for row in table["rows"]])} for table in tables]


def _trained_chart(trained: Sequence[Json]) -> Markup:
    own = [Point(float(row["context"]), row["hit@5"]["value"], row["hit@5"]["low"], row["hit@5"]["high"]) for row in trained]
    best = [Point(float(row["context"]), row["baseline"]["hit@5"]["value"]) for row in trained]
    labels = {float(row["context"]): (row["name"],) for row in trained}
    curves = [Curve("best baseline", "baseline", best, labelled=True), Curve("trained", "model", own, labelled=True)]
    return line_chart(curves, "vectors of context in training and exam (log scale)", "Hit@5", log_x=True, x_labels=labels)


def _truncated_chart(truncated: Sequence[Json]) -> Markup:
    lengths = [float(row["name"].replace(",", "")) for row in truncated]
    rates = [row["hit@5"] for row in truncated]
    own = [Point(x, rate["value"], rate["low"], rate["high"]) for x, rate in zip(lengths, rates, strict=True)]
    labels = {x: (row["name"],) for x, row in zip(lengths, truncated, strict=True)}
    curves = [Curve("longest", "model", own)]
    return line_chart(curves, "vectors it may read (log scale)", "Hit@5", log_x=True, x_labels=labels)
