"""Pages of experiments: the predecessor's phases on one exam, and what context is worth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nextvec.bank.layout import write_atomically
from nextvec.report.charts import Curve, Point, change, interval, line_chart
from nextvec.report.page import templates

Json = Mapping[str, Any]
FORMS = {"ours": "Our runs", "published": "Runs as published"}


def write_phases_page(path: Path, found: Json) -> None:
    """Write one self-contained page of a ``phases.json``."""
    table, steps = found["phases"], found["illusion"]["steps"]
    page = templates().get_template("phases.html")
    write_atomically(
        path,
        page.render(
            found=found,
            groups=_groups(table),
            steps=steps,
            climb=_climb(steps) if steps else None,
            charts=_illusion_charts(steps),
            best=max(table, key=lambda phase: phase["hit@5"]["value"]),
            lifts=_scale([phase["lift"] for phase in table]),
            title=phase_title,
            kind=kind_of,
            change=change,
        ),
    )


def write_context_page(path: Path, found: Json) -> None:
    """Write one self-contained page of a ``context.json``."""
    effects = [*found["trained"], *found["truncated"], *found["disturbed"]["effects"]]
    page = templates().get_template("context.html")
    write_atomically(
        path,
        page.render(
            found=found,
            verdicts=_judged(found),
            tables=_context_tables(found),
            trained_chart=_trained_chart(found["trained"]),
            truncated_chart=_truncated_chart(found["truncated"]),
            most=max(effect["hit@5"]["high"] for effect in effects) * 1.05,
            restricted=any(effect["full"] for effect in effects),
            bar=interval,
            change=change,
        ),
    )


def phase_title(row: Json) -> str:
    """A phase as a reader calls it: ``phase3_5`` is Phase 3.5."""
    name = row["phase"].replace("_", ".")
    title = f"Phase {name[5:].upper()}" if name.startswith("phase") else name.capitalize()
    return f"{title}, without fix {row['without']}" if row.get("without") else title


def kind_of(rate: Json) -> str:
    """The style class of a change: whether its interval lies above zero, below it, or around it."""
    return "model" if rate["low"] > 0 else "baseline" if rate["high"] < 0 else "quiet"


def _groups(table: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    """The rows under headings: ours, as published, as published with one fix off."""
    named = {
        "Ours": [row for row in table if row["form"] == "ours"],
        "As published": [row for row in table if row["form"] == "published" and not row["without"]],
        "As published, each of its four fixes off in turn": [row for row in table if row["without"]],
    }
    return [(name, rows) for name, rows in named.items() if rows]


def _climb(steps: Sequence[Json]) -> dict[str, Any]:
    """From the first step to the one of the predecessor's best report: points by pool alone, and by context alone."""
    first, last = steps[0], max(steps[1:], key=lambda step: step["reported"]["hit@5"])
    own = {line: last["untrained"][line]["value"] - first["untrained"][line]["value"] for line in ("shrinking", "fixed")}
    return {"first": first, "last": last, **own, "reported": last["reported"]["hit@5"] - first["reported"]["hit@5"]}


def _illusion_charts(steps: Sequence[Json]) -> list[tuple[str, Markup]]:
    if not steps:
        return []
    charts = [("A predictor that learns nothing", _illusion(steps, [step["untrained"] for step in steps]))]
    for form, name in FORMS.items():
        held = [step for step in steps if form in step["runs"]]
        if len(held) > 1:
            charts.append((name, _illusion(held, [step["runs"][form] for step in held])))
    return charts


def _illusion(steps: Sequence[Json], rates: Sequence[Json]) -> Markup:
    labels = {
        float(n): (phase_title(step), f"{step['context']:,} vectors", f"{step['pool']:,} candidates")
        for n, step in enumerate(steps)
    }
    reported = [Point(float(n), step["reported"]["hit@5"]) for n, step in enumerate(steps)]
    curves = [
        Curve("reported", "quiet", reported),
        Curve("pool shrinks", "baseline", _points([rate["shrinking"] for rate in rates]), labelled=True),
        Curve("one pool", "model", _points([rate["fixed"] for rate in rates]), labelled=True),
    ]
    return line_chart(curves, "", "Hit@5 by phase", x_labels=labels)


def _points(rates: Sequence[Json]) -> list[Point]:
    return [Point(float(n), rate["value"], rate["low"], rate["high"]) for n, rate in enumerate(rates)]


def _scale(rates: Sequence[Json]) -> tuple[float, float]:
    """One scale for a column of changes, with zero on it."""
    return min(0.0, *(rate["low"] for rate in rates)) - 0.002, max(0.0, *(rate["high"] for rate in rates)) + 0.002


def _judged(found: Json) -> list[tuple[str, str]]:
    """Every verdict with its style class: those on trained contexts first, then the one on the far part."""
    kinds = [kind_of(row["change"]) for row in found["trained"][1:]]
    hurt = any(effect["change"]["high"] < 0 for effect in found["disturbed"]["effects"])
    return list(zip(found["verdicts"], [*kinds, "model" if hurt else "quiet"], strict=True))


def _context_tables(found: Json) -> list[dict[str, Any]]:
    shortest, longest, near = found["trained"][0]["name"], f"{found['longest']:,}", found["disturbed"]["near"]
    tables: list[dict[str, Any]] = [
        {
            "title": "Trained with more context",
            "says": f"Every run reads what it was trained with. Change: to the runs trained with {shortest}.",
            "column": "trained with",
            "rows": found["trained"],
        },
        {
            "title": f"The model trained with {longest}, given less to read",
            "says": f"The same weights. Change: to all {longest}.",
            "column": "may read",
            "rows": found["truncated"],
        },
        {
            "title": "Is the far part read, and in order?",
            "says": f"The same weights; of {longest} vectors the last {near:,} stay. Change: to the intact context.",
            "column": "what is read",
            "rows": found["disturbed"]["effects"],
        },
    ]
    return [{**table, "scale": _scale([row["change"] for row in table["rows"]])} for table in tables]


def _trained_chart(trained: Sequence[Json]) -> Markup:
    own = [Point(float(row["context"]), row["hit@5"]["value"], row["hit@5"]["low"], row["hit@5"]["high"]) for row in trained]
    rival = [Point(float(row["context"]), row["baseline"]["hit@5"]["value"]) for row in trained]
    labels = {float(row["context"]): (row["name"],) for row in trained}
    curves = [Curve("best baseline", "baseline", rival, labelled=True), Curve("trained", "model", own, labelled=True)]
    return line_chart(curves, "vectors of context in training and exam (log scale)", "Hit@5", log_x=True, x_labels=labels)


def _truncated_chart(truncated: Sequence[Json]) -> Markup:
    lengths = [float(row["name"].replace(",", "")) for row in truncated]
    rates = [row["hit@5"] for row in truncated]
    own = [Point(x, rate["value"], rate["low"], rate["high"]) for x, rate in zip(lengths, rates, strict=True)]
    labels = {x: (row["name"],) for x, row in zip(lengths, truncated, strict=True)}
    curves = [Curve("longest", "model", own)]
    return line_chart(curves, "vectors it may read (log scale)", "Hit@5", log_x=True, x_labels=labels)
