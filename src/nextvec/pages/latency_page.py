"""The page of a latency measurement: milliseconds by context, with re-reading the window and the limits of the machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nextvec.bank.layout import write_atomically
from nextvec.pages.charts import Curve, Point, line_chart
from nextvec.pages.templates import templates

Json = Mapping[str, Any]


def write_latency_page(path: Path, found: Json) -> None:
    """Write one self-contained page of the result of ``nextvec latency``."""
    last = max((at for at in found["contexts"] if at["reread"]), key=lambda at: at["context"], default=None)
    page = templates().get_template("latency.html")
    write_atomically(path, page.render(found=found, chart=latency_chart(found), reread=last, worst=_worst(found)))


def latency_chart(found: Json) -> Markup:
    """P95 of a step with search, of a step, and of reading the window again, by context; both axes logarithmic."""
    measured: Sequence[Json] = found["contexts"]
    limit = found["limits"]["weights_ms"] + found["limits"]["index_ms"]
    curves = [
        Curve("the machine's limit", "quiet", [Point(at["context"], limit) for at in measured]),
        Curve("reading the window again", "baseline", _points(measured, "reread"), labelled=True),
        Curve("step and search", "model", _points(measured, "both"), labelled=True),
    ]
    held = [curve for curve in curves if curve.points]
    return line_chart(held, "vectors of context", "P95 in ms (log scale)", log_x=True, log_y=True, percent=False)


def _points(measured: Sequence[Json], part: str) -> list[Point]:
    return [Point(at["context"], at[part]["p95_ms"]) for at in measured if at[part]]


def _worst(found: Json) -> Json:
    return max(found["contexts"], key=lambda at: at["both"]["p95_ms"])
