"""What each chart shows, as options of ECharts: plain values, made without it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from argosy.web.history import EvidencePoint, Point, thinned
from argosy.web.page import look
from argosy.web.runs import Curve

DRAWN = 120
"""Points of a line that are drawn: with more, lines of single seconds are all noise."""
LEAST_S = 60.0
"""The shortest time that a chart shows: what has only just begun is not drawn in a corner."""
FLOOR, CEILING = 0.01, 1e4
"""Evidence beyond these is drawn at the edge: an E-value of 1e-30 says no more than one of 0.01."""
ENOUGH = 20.0
"""Evidence for a version that promotes it, see docs/decisions/0003-judge.md."""


class Drawn(NamedTuple):
    """One line of a chart."""

    name: str
    color: str
    dash: look.Dash
    points: list[tuple[float, float | None]]
    width: float = 2.0


class Bound(NamedTuple):
    """A line across the chart that decides something."""

    value: float
    says: str


def over_time(
    lines: Sequence[tuple[str, str, Sequence[Point]]], field: str, *, now: float, seconds: float, is_dark: bool
) -> dict[str, Any]:
    """Return a chart of one field of versions (ref, role, points) over the last `seconds`, or as long as was looked."""
    began = min((points[0].time for _, _, points in lines if points), default=now)
    seconds = min(seconds, max(LEAST_S, now - began))
    factor = 100.0 if field == "failed" else 1.0
    drawn = []
    for ref, role, points in lines:
        color, dash = look.line_of(role, is_dark=is_dark)
        found = [
            (1000 * p.time, None if getattr(p, field) is None else round(factor * getattr(p, field), 4))
            for p in thinned(points, now - seconds, DRAWN)
        ]
        drawn.append(Drawn(ref, color, dash, found))
    values = [y for line in drawn for _, y in line.points if y is not None]
    options = _options(drawn, is_dark=is_dark)
    options["xAxis"] |= {
        "type": "time",
        "min": 1000 * (now - seconds),
        "max": 1000 * now,
        "splitNumber": 3,
        "axisLabel": _label(is_dark=is_dark)
        | {"hideOverlap": True, "formatter": "{HH}:{mm}" if seconds > 240 else "{HH}:{mm}:{ss}"},
    }
    # An axis from nothing to nothing would have no scale; and a single failure in a thousand must not look like a wall.
    least = {"failed": 4.0, "per_s": 2.0}.get(field, 0.0)
    options["yAxis"] |= {"min": 0, "splitNumber": 3}
    if not values or max(values) < least:
        options["yAxis"] |= {"max": least or 2.0, "interval": (least or 2.0) / 2}
    return options


def growing(points: Sequence[EvidencePoint], side: str, *, threshold: float, is_dark: bool) -> dict[str, Any]:
    """Return the evidence of a rollout over time on a log axis: `against` the new version, or `good` for it."""
    names = list(dict.fromkeys(name for point in points for name in getattr(point, side)))
    drawn = []
    for place, name in enumerate(names):
        color, dash = look.metric_line(name, place, is_dark=is_dark)
        found = [(round(p.seconds, 1), _clipped(getattr(p, side).get(name))) for p in points]
        drawn.append(Drawn(look.words(name), color, dash, found))
    if side == "against" and len(names) > 1:
        total = [(round(p.seconds, 1), _clipped(p.total)) for p in points]
        drawn.append(Drawn("sum", "#e6e9ec" if is_dark else "#1b1f24", "solid", total, 3.0))
    bound = Bound(threshold, f"rolls back at {threshold:.0f}") if side == "against" else Bound(ENOUGH, "promotes at 20")
    options = _options(drawn, is_dark=is_dark, bound=bound, has_marks=len(points) < 3)
    last = points[-1].seconds if points else 0.0
    options["xAxis"] |= {"type": "value", "min": 0, "max": max(30.0, last), "splitNumber": 4}
    options["xAxis"]["axisLabel"] = _label(is_dark=is_dark) | {"formatter": "{value} s", "hideOverlap": True}
    top = max([10 * bound.value, *(y for line in drawn for _, y in line.points if y is not None)])
    options["yAxis"] |= {"type": "log", "logBase": 10, "min": FLOOR, "max": _power_above(top)}
    return options


def of_run(curve: Sequence[Curve], *, is_dark: bool) -> dict[str, Any]:
    """Return curves of a training that share a scale, such as the losses."""
    drawn = []
    for place, found in enumerate(curve):
        day, night = look.CURVES[place % len(look.CURVES)]
        dash: look.Dash = "solid" if place == 0 else [6, 3]
        drawn.append(Drawn(look.words(found.name), night if is_dark else day, dash, [*found.points]))
    options = _options(drawn, is_dark=is_dark, has_marks=all(len(c.points) < 40 for c in curve))
    options["xAxis"] |= {"type": "value", "min": "dataMin", "max": "dataMax", "splitNumber": 4, "minInterval": 1}
    options["yAxis"] |= {"scale": True, "splitNumber": 3}
    return options


def _clipped(value: float | None) -> float | None:
    return None if value is None else round(min(CEILING, max(FLOOR, value)), 4)


def _power_above(value: float) -> float:
    power = 100.0
    while power < min(value, CEILING):
        power *= 10
    return power


def _label(*, is_dark: bool) -> dict[str, Any]:
    return {"color": "#a3adb8" if is_dark else "#5b6570", "fontSize": 11}


def _options(
    lines: Sequence[Drawn], *, is_dark: bool, bound: Bound | None = None, has_marks: bool = False
) -> dict[str, Any]:
    grid = "#2c333b" if is_dark else "#e6eaee"
    text = "#e6e9ec" if is_dark else "#1b1f24"
    series: list[dict[str, Any]] = [
        {
            "type": "line",
            "name": line.name,
            "data": [list(point) for point in line.points],
            "showSymbol": has_marks,
            "symbolSize": 5,
            "connectNulls": False,
            "color": line.color,
            "lineStyle": {"width": line.width, "type": line.dash, "color": line.color},
        }
        for line in lines
    ]
    if bound is not None:
        red = "#ff8f8f" if is_dark else "#a3142a"
        mark = {
            "silent": True,
            "symbol": "none",
            "animation": False,
            "lineStyle": {
                "color": red if bound.says.startswith("rolls") else look.GREEN,
                "type": "dashed",
                "width": 1.5,
            },
            "label": {"formatter": bound.says, "position": "insideStartTop", "color": text, "fontSize": 11},
            "data": [{"yAxis": bound.value}],
        }
        series.append({"type": "line", "name": "", "data": [], "markLine": mark, "tooltip": {"show": False}})
    return {
        "animation": False,
        "aria": {"enabled": True},
        "grid": {"left": 4, "right": 16, "top": 10, "bottom": 2, "containLabel": True},
        "tooltip": {
            "trigger": "axis",
            "renderMode": "richText",
            "confine": True,
            "backgroundColor": "#1d2329" if is_dark else "#ffffff",
            "borderColor": grid,
            "textStyle": {"color": text, "fontSize": 12},
        },
        "xAxis": {
            "axisLine": {"lineStyle": {"color": grid}},
            "axisTick": {"show": False},
            "splitLine": {"show": False},
            "axisLabel": _label(is_dark=is_dark),
        },
        "yAxis": {"type": "value", "axisLabel": _label(is_dark=is_dark), "splitLine": {"lineStyle": {"color": grid}}},
        "series": series,
    }
