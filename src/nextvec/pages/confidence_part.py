"""The part of a page that shows how well probabilities agree with what came."""

from collections.abc import Mapping
from typing import Any

from nextvec.pages.charts import Curve, Point, line_chart

Json = Mapping[str, Any]
SHOWN_K = 5


def confidence_part(confidence: Json | None) -> dict[str, Any] | None:
    """What the template ``confidence.html`` shows of a report's ``confidence``; None without a calibration."""
    if confidence is None:
        return None
    found = next(answer for answer in confidence["answers"] if answer["k"] == SHOWN_K)
    shares = [(each["probability"], each["found"]) for each in found["bins"]]
    curve = [Point(probability, share["value"], share["low"], share["high"]) for probability, share in shares]
    ends = [Point(at, at) for at in (curve[0].x, curve[-1].x)]
    curves = [Curve("exactly right", "baseline", ends), Curve("found", "model", curve)]
    labels = {at: (f"{100 * at:.0f} %",) for at in _spread([point.x for point in curve])}
    chart = line_chart(curves, "probability of the answer", "share found", x_labels=labels)
    return {"answers": confidence["answers"], "shown": found, "calibration": confidence["calibration"], "chart": chart}


def _spread(places: list[float]) -> list[float]:
    """Places whose labels do not overlap."""
    least = (places[-1] - places[0]) / 12
    kept = places[:1]
    for place in places[1:]:
        if place - kept[-1] >= least:
            kept.append(place)
    return kept
