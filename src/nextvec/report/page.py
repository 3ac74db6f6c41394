"""The report page: figures first, then where they come from, then what the model expects in words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nextvec.bank.layout import write_atomically
from nextvec.ranks import candidates_in_words
from nextvec.report.charts import Curve, Point, interval, line_chart

Json = Mapping[str, Any]


def write_page(path: Path, report: Json) -> None:
    """Write one self-contained page of a demo's ``report.json``."""
    page = (
        templates()
        .get_template("page.html")
        .render(
            report=report,
            rows=_rows(report),
            context_chart=_context_chart(report["curve"]),
            training_chart=_training_chart(report["training"]["history"]),
            loss_chart=_loss_chart(report["training"]["history"]),
            bar=interval,
        )
    )
    write_atomically(path, page)


def templates() -> Environment:
    """The templates of all pages; a name that a page lacks is an error, never a blank."""
    environment = Environment(loader=PackageLoader("nextvec.report"), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(percent=_percent, points=_points, range=_range, candidates=candidates_in_words)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(lift: Json) -> str:
    return f"{100 * lift['value']:+.1f}"


def _range(rate: Json, sign: str = "") -> str:
    return f"{100 * rate['low']:{sign}.1f} to {100 * rate['high']:{sign}.1f}"


def _rows(report: Json) -> list[dict[str, Any]]:
    """The model, then baselines from the best down, then chance."""
    own = {"name": "nextvec", "kind": "model", **report["model"]}
    own["name"] = "nextvec, trained"
    rest = sorted(report["baselines"].items(), key=lambda item: -item[1]["hit@5"]["value"])
    best = report["lift"]["over"]
    return [own, *({"name": name, "kind": "baseline" if name == best else "quiet", **figures} for name, figures in rest)]


def _context_chart(curve: list[Json]) -> str:
    model = [Point(p["context"], p["hit@5"]["value"], p["hit@5"]["low"], p["hit@5"]["high"]) for p in curve]
    rival = [Point(p["context"], p["baseline_hit@5"]["value"]) for p in curve]
    return line_chart(
        [Curve("best baseline", "baseline", rival), Curve("nextvec", "model", model)],
        "vectors of context (log scale)",
        "Hit@5",
        log_x=True,
    )


def _training_chart(history: list[Json]) -> str:
    hits = [Point(e["update"], e["valid"]["hit@5"]) for e in history]
    start = [Point(hits[0].x, hits[0].y), Point(hits[-1].x, hits[0].y)]
    return line_chart([Curve("untrained", "baseline", start), Curve("valid Hit@5", "model", hits)], "updates", "Hit@5 on valid")


def _loss_chart(history: list[Json]) -> str:
    losses = [Point(e["update"], e["loss"]) for e in history if e["loss"] is not None]
    return line_chart([Curve("loss", "model", losses)], "updates", "training loss", percent=False) if losses else ""
