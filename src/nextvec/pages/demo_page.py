"""The page of a demo: its figures, how they were measured, and predictions shown as text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextvec.bank.layout import write_atomically
from nextvec.pages.charts import Curve, Point, interval, line_chart
from nextvec.pages.confidence_part import confidence_part
from nextvec.pages.report_page import predictor_rows
from nextvec.pages.templates import templates

Json = Mapping[str, Any]


def write_demo_page(path: Path, report: Json) -> None:
    """Write one self-contained page of a demo's ``report.json``."""
    rows = predictor_rows(report, "nextvec, trained")
    rows.insert(1, {**report["shipped"], "name": "weights of the package, before training", "kind": "quiet"})
    page = (
        templates()
        .get_template("demo.html")
        .render(
            report=report,
            rows=rows,
            confidence=confidence_part(report["confidence"]),
            context_chart=_context_chart(report["curve"]),
            training_chart=_training_chart(report["training"]["history"]),
            loss_chart=_loss_chart(report["training"]["history"]),
            bar=interval,
        )
    )
    write_atomically(path, page)


def _context_chart(curve: list[Json]) -> str:
    model = [Point(p["context"], p["hit@5"]["value"], p["hit@5"]["low"], p["hit@5"]["high"]) for p in curve]
    best = [Point(p["context"], p["baseline_hit@5"]["value"]) for p in curve]
    return line_chart(
        [Curve("best baseline", "baseline", best), Curve("nextvec", "model", model)],
        "vectors of context (log scale)",
        "Hit@5",
        log_x=True,
    )


def _training_chart(history: list[Json]) -> str:
    hits = [Point(e["update"], e["valid"]["hit@5"]) for e in history]
    start = [Point(hits[0].x, hits[0].y), Point(hits[-1].x, hits[0].y)]
    return line_chart(
        [Curve("before training", "baseline", start), Curve("valid Hit@5", "model", hits)], "updates", "Hit@5 on valid"
    )


def _loss_chart(history: list[Json]) -> str:
    losses = [Point(e["update"], e["loss"]) for e in history if e["loss"] is not None]
    return line_chart([Curve("loss", "model", losses)], "updates", "training loss", percent=False) if losses else ""
