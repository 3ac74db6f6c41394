"""The page of the phases: every phase of the predecessor on one exam, and the effect of its shrinking pool."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nextvec.bank.layout import write_atomically
from nextvec.pages.charts import Curve, Point, change, change_kind, change_scale, line_chart
from nextvec.pages.templates import templates

Json = Mapping[str, Any]
FORMS = {"ours": "Our runs", "published": "Runs as published"}


def write_phases_page(path: Path, found: Json) -> None:
    """Write one self-contained page of a ``phases.json``."""
    table, steps = found["phases"], found["illusion"]["steps"]
    page = templates("nextvec.reproduction").get_template("phases.html")
    write_atomically(
        path,
        page.render(
            found=found,
            groups=_groups(table),
            steps=steps,
            climb=_climb(steps) if steps else None,
            charts=_illusion_charts(steps),
            best=max(table, key=lambda phase: phase["hit@5"]["value"]),
            lifts=change_scale([phase["lift"] for phase in table]),
            title=phase_title,
            kind=change_kind,
            change=change,
        ),
    )


def phase_title(row: Json) -> str:
    """The title of a phase: ``phase3_5`` is Phase 3.5."""
    name = row["phase"].replace("_", ".")
    title = f"Phase {name[5:].upper()}" if name.startswith("phase") else name.capitalize()
    return f"{title}, without fix {row['without']}" if row.get("without") else title


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
    charts = [("Untrained predictor", _illusion(steps, [step["untrained"] for step in steps]))]
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
