"""Charts as SVG text: intervals as bars, curves with bands. The style sheet of the page sets all colours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup, escape

Scale = Callable[[float], float]
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 40
LINE = 16  # height of a further line of tick labels


@dataclass(frozen=True)
class Point:
    """One measured place of a curve, with its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """A named line; ``kind`` is its style class: model, baseline or quiet; ``labelled`` writes its values at its dots."""

    name: str
    kind: str
    points: Sequence[Point]
    labelled: bool = False


def line_chart(
    curves: Sequence[Curve],
    x_title: str,
    y_title: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    percent: bool = True,
    x_labels: Mapping[float, Sequence[str]] | None = None,
) -> Markup:
    """Curves over a shared pair of axes; intervals as bands.

    Args:
        log_x, log_y: a logarithmic axis; all its values must be positive.
        x_labels: lines of text under some places, instead of their numbers.
    """
    labels = x_labels or {x: (f"{x:g}",) for x in _x_ticks(curves, log_x)}
    height = HEIGHT + LINE * (max(map(len, labels.values())) - 1)
    xs = [log10(p.x) if log_x else p.x for c in curves for p in c.points]
    ys = [v for c in curves for p in c.points for v in (p.y, p.low, p.high) if v is not None]
    y_ticks = _decades(min(ys), max(ys)) if log_y else _ticks(min(ys), max(ys))
    margin = (max(xs) - min(xs)) / 9 if x_labels else 0.0  # names are wider than numbers
    x_low, x_high, y_low, y_high = min(xs) - margin, max(xs) + margin, y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        place = log10(x) if log_x else x
        return LEFT + (place - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        share = log10(y / y_low) / (log10(y_high / y_low) or 1) if log_y else (y - y_low) / ((y_high - y_low) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(y_title)} by {escape(x_title)}">']
    parts += _grid(y_ticks, py, percent)
    for x, lines in labels.items():
        for n, text in enumerate(lines):
            y = HEIGHT - BOTTOM + 18 + LINE * n
            kind = "tick" if n == 0 else "tick further"
            parts.append(f'<text class="{kind}" x="{px(x):.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{height - 6}" text-anchor="middle">{escape(x_title)}</text>')
    for curve in curves:
        parts.append(_band(curve, px, py))
        path = " ".join(f"{px(p.x):.1f},{py(p.y):.1f}" for p in curve.points)
        parts.append(f'<polyline class="line {curve.kind}" points="{path}"/>')
        for p in curve.points:
            value = _value(p.y, percent)
            title = f"{escape(curve.name)}: {value} at {p.x:g}"
            parts.append(
                f'<circle class="dot {curve.kind}" cx="{px(p.x):.1f}" cy="{py(p.y):.1f}" r="3.5">'
                f"<title>{title}</title></circle>"
            )
            if curve.labelled:
                y = py(p.y) + (20 if _is_lower(p, curves) else -10)
                parts.append(
                    f'<text class="label {curve.kind}" x="{px(p.x):.1f}" y="{y:.1f}" text-anchor="middle">{value}</text>'
                )
    parts.append("</svg>")
    return Markup("".join(parts))


def _grid(ticks: Sequence[float], py: Scale, percent: bool) -> list[str]:
    """A horizontal line and its label for every tick of the vertical axis."""
    parts: list[str] = []
    for tick in ticks:
        label = f"{100 * tick:g} %" if percent else f"{tick:,g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{py(tick) + 4:.1f}" text-anchor="end">{label}</text>')
    return parts


def _value(y: float, percent: bool) -> str:
    return f"{100 * y:.1f} %" if percent else f"{y:,.0f}" if abs(y) >= 1000 else f"{y:.3g}"


def interval(value: float, low: float, high: float, most: float, kind: str) -> Markup:
    """One horizontal bar with its interval as a whisker, on a scale from 0 to ``most``."""
    scale = 100 / (most or 1)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="fill {kind}" x="0" y="2" width="{value * scale:.2f}" height="6" rx="1"/>'
        f'<line class="whisker" x1="{low * scale:.2f}" x2="{high * scale:.2f}" y1="5" y2="5"/></svg>'
    )


def change(value: float, low: float, high: float, least: float, most: float) -> Markup:
    """One change with its interval on a scale from ``least`` to ``most``, a line at zero; coloured where it excludes that."""
    span = (most - least) or 1.0

    def px(points: float) -> float:
        return 100 * (points - least) / span

    kind = change_kind({"low": low, "high": high})
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="zero" x1="{px(0.0):.2f}" x2="{px(0.0):.2f}" y1="0" y2="10"/>'
        f'<rect class="fill {kind}" x="{px(low):.2f}" y="3" width="{px(high) - px(low):.2f}" height="4" rx="1"/>'
        f'<line class="whisker" x1="{px(value):.2f}" x2="{px(value):.2f}" y1="1" y2="9"/></svg>'
    )


def change_kind(rate: Mapping[str, Any]) -> str:
    """The style class of a change: whether its interval lies above zero, below it, or around it."""
    return "model" if rate["low"] > 0 else "baseline" if rate["high"] < 0 else "quiet"


def change_scale(rates: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The ends of one scale for several changes; zero lies on it."""
    return min(0.0, *(rate["low"] for rate in rates)) - 0.002, max(0.0, *(rate["high"] for rate in rates)) + 0.002


def _is_lower(point: Point, curves: Sequence[Curve]) -> bool:
    """Whether another labelled curve runs above a point: its label then goes below it, clear of the other's."""
    return any(p.y > point.y for c in curves if c.labelled for p in c.points if p.x == point.x)


def _band(curve: Curve, px: Scale, py: Scale) -> str:
    edges = [(p.x, p.low, p.high) for p in curve.points if p.low is not None and p.high is not None]
    if len(edges) < 2:
        return ""
    above = [f"{px(x):.1f},{py(high):.1f}" for x, _, high in edges]
    below = [f"{px(x):.1f},{py(low):.1f}" for x, low, _ in reversed(edges)]
    return f'<polygon class="band {curve.kind}" points="{" ".join(above + below)}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers that enclose the values."""
    span = (high - low) or abs(high) or 1.0
    raw = span / 4
    magnitude = 10 ** floor(log10(raw))
    step = float(next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw))
    first = floor(low / step)
    ticks = [first * step]
    while ticks[-1] < high - 1e-12:
        ticks.append((first + len(ticks)) * step)
    return [round(tick, 10) for tick in ticks]


def _decades(low: float, high: float) -> list[float]:
    """The powers of ten that enclose positive values."""
    return [10.0**n for n in range(floor(log10(low)), ceil(log10(high)) + 1)]


def _x_ticks(curves: Sequence[Curve], log_x: bool) -> list[float]:
    xs = sorted({p.x for c in curves for p in c.points})
    if log_x or len(xs) <= 8:
        return xs
    return xs[:: -(-len(xs) // 7)]
