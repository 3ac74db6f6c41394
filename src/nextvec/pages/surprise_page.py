"""The page of the surprise along a document."""

from collections.abc import Mapping
from math import log2
from pathlib import Path
from typing import Any

from nextvec.bank.layout import write_atomically
from nextvec.pages.charts import Curve, Point, line_chart
from nextvec.pages.templates import templates

Json = Mapping[str, Any]
MOST = 20  # chunks in the table


def write_surprise_page(path: Path, found: Json) -> None:
    """Write one self-contained page of the result of ``nextvec surprise``."""
    scored = [chunk for chunk in found["chunks"] if chunk["bits"] is not None]
    points = [Point(float(chunk["index"] + 1), chunk["bits"]) for chunk in scored]
    level = log2(found["candidates"])
    chance = [Point(points[0].x, level), Point(points[-1].x, level)]
    curves = [Curve("chance", "baseline", chance), Curve("surprise", "model", points)]
    most = sorted(scored, key=lambda chunk: -chunk["bits"])[:MOST]
    page = templates().get_template("surprise.html")
    chart = line_chart(curves, "chunk of the document", "bits", percent=False)
    write_atomically(path, page.render(found=found, chart=chart, most=most, scored=len(scored), level=level))
