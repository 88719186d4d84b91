"""Line charts as SVG, readable on light and dark pages, alone and inside of a page. No drawing library."""

import math
from collections.abc import Sequence
from html import escape

import msgspec

Point = tuple[float, float]

_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 20.0, 58.0, 40.0
_MOST_DOTS = 24
"""Points of a line that are few enough to be shown one by one."""

STYLE = """
.chart{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#5b6570}
.chart .name{font-size:14px;font-weight:600;fill:#1b1f24}
.chart .grid{stroke:#d9dee3;stroke-width:1}
.chart .axis{stroke:#aab3bc;stroke-width:1}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .first{stroke:#2f6feb}.chart .first-fill{fill:#2f6feb}
.chart .second{stroke:#c2620a}.chart .second-fill{fill:#c2620a}
.chart .best{fill:none;stroke:#1a7f37;stroke-width:2}.chart .best-text{fill:#1a7f37;font-weight:600}
@media (prefers-color-scheme:dark){
.chart{fill:#9aa4ae}.chart .name{fill:#e6e8eb}.chart .grid{stroke:#2c333a}.chart .axis{stroke:#56616c}
.chart .first{stroke:#6ea0ff}.chart .first-fill{fill:#6ea0ff}
.chart .second{stroke:#f0a35e}.chart .second-fill{fill:#f0a35e}
.chart .best{stroke:#57c46f}.chart .best-text{fill:#57c46f}}
"""
_ALONE = ".chart .back{fill:#fff}@media (prefers-color-scheme:dark){.chart .back{fill:#15191e}}"
"""A picture of its own has a background: whoever shows it may not know of dark pages."""


class Line(msgspec.Struct, frozen=True):
    """One line: its name and its points from left to right. Points that are not finite are gaps."""

    name: str
    points: Sequence[Point]


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """Up to two lines over one x axis. `best` is a point to be marked, and what is said about it."""

    title: str
    lines: Sequence[Line]
    x_name: str
    best: Point | None = None
    best_says: str = ""


def picture(charts: Sequence[Chart], *, width: int = 560, height: int = 320) -> str:
    """Return charts side by side as one SVG document."""
    whole = width * len(charts)
    drawn = [f'<g transform="translate({width * n} 0)">{_drawn(c, width, height)}</g>' for n, c in enumerate(charts)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {whole} {height}" width="{whole}" '
        f'height="{height}" role="img"><title>{escape(", ".join(c.title for c in charts))}</title>'
        f"<style>{STYLE}{_ALONE}</style>"
        f'<rect class="back" width="{whole}" height="{height}"/>{"".join(drawn)}</svg>\n'
    )


def inline(chart: Chart, *, width: int = 560, height: int = 320) -> str:
    """Return a chart as an SVG element for a page that has `STYLE`."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(_said(chart))}">'
        f"{_drawn(chart, width, height)}</svg>"
    )


def _said(chart: Chart) -> str:
    """Return the chart for those who can't see it."""
    parts = []
    for line in chart.lines:
        known = _finite(line.points)
        if known:
            parts.append(f"{line.name} from {_short(known[0][1])} to {_short(known[-1][1])}")
    return f"{chart.title}: {', '.join(parts) or 'no values'}" + (f"; {chart.best_says}" if chart.best_says else "")


def _drawn(chart: Chart, width: int, height: int) -> str:
    points = [point for line in chart.lines for point in _finite(line.points)]
    head = f'<text class="name" x="{_LEFT:g}" y="22">{escape(chart.title)}</text>'
    if not points:
        return f'{head}<text x="{_LEFT:g}" y="{height / 2:g}">no finite values</text>'
    space = _Space(points, width, height)
    return head + _legend(chart) + space.axes(chart.x_name) + _lines(chart, space) + _best(chart, space)


def _legend(chart: Chart) -> str:
    parts, x = [], _LEFT
    for line, style in zip(chart.lines, ("first", "second"), strict=False):
        parts.append(f'<line class="line {style}" x1="{x:g}" y1="38" x2="{x + 18:g}" y2="38"/>')
        parts.append(f'<text x="{x + 24:g}" y="42">{escape(line.name)}</text>')
        x += 44 + 6.6 * len(line.name)
    return "".join(parts)


def _lines(chart: Chart, space: "_Space") -> str:
    parts = []
    for line, style in zip(chart.lines, ("first", "second"), strict=False):
        for stretch in _stretches(line.points):
            places = [space.place(point) for point in stretch]
            if len(places) > 1:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
                parts.append(f'<polyline class="line {style}" points="{path}"/>')
            if len(places) <= _MOST_DOTS:
                parts += [f'<circle class="{style}-fill" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places]
    return "".join(parts)


def _best(chart: Chart, space: "_Space") -> str:
    if chart.best is None or not _finite([chart.best]):
        return ""
    x, y = space.place(chart.best)
    side = "end" if x > space.middle_x else "start"
    # Towards the middle, where there is room.
    text_x = x - 9 if side == "end" else x + 9
    text_y = y + 20 if y < space.middle_y else y - 12
    return (
        f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
        f'<text class="best-text" x="{text_x:.1f}" y="{text_y:.1f}" text-anchor="{side}">'
        f"{escape(chart.best_says)}</text>"
    )


class _Space:
    """From values to places on the paper."""

    def __init__(self, points: Sequence[Point], width: int, height: int) -> None:
        self._left, self._right = _LEFT, width - _RIGHT
        self._top, self._bottom = _TOP, height - _BOTTOM
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self._x = (min(0.0, *xs), max(xs) if max(xs) > min(0.0, *xs) else min(0.0, *xs) + 1)
        self._y_marks = marks(min(ys), max(ys))
        self._y = (self._y_marks[0], self._y_marks[-1])
        self.middle_x, self.middle_y = (self._left + self._right) / 2, (self._top + self._bottom) / 2

    def place(self, point: Point) -> Point:
        (x, y), (x0, x1), (y0, y1) = point, self._x, self._y
        return (
            self._left + (x - x0) / (x1 - x0) * (self._right - self._left),
            self._bottom - (y - y0) / (y1 - y0) * (self._bottom - self._top),
        )

    def axes(self, x_name: str) -> str:
        parts = []
        for value in self._y_marks:
            y = self.place((self._x[0], value))[1]
            parts.append(f'<line class="grid" x1="{self._left:g}" y1="{y:.1f}" x2="{self._right:g}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self._left - 8:g}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
        parts.append(
            f'<line class="axis" x1="{self._left:g}" y1="{self._bottom:g}" x2="{self._right:g}" y2="{self._bottom:g}"/>'
        )
        for value in marks(*self._x, most=7):
            if self._x[0] <= value <= self._x[1]:
                x = self.place((value, self._y[0]))[0]
                parts.append(f'<text x="{x:.1f}" y="{self._bottom + 17:g}" text-anchor="middle">{_short(value)}</text>')
        parts.append(f'<text x="{self._right:g}" y="{self._bottom + 33:g}" text-anchor="end">{escape(x_name)}</text>')
        return "".join(parts)


def marks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round values, 1, 2 or 5 times a power of ten apart, that enclose `low` to `high`.

    >>> marks(0.13, 0.92)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-9 * largest, 1e-300):
        # Values that differ by rounding only are one value, with room on both sides.
        room = max(0.1 * largest, 1e-9)
        low, high = low - room, high + room
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * n for n in (1, 2, 5) if power * n >= rough * (1 - 1e-9)), power * 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:.4g}"


def _finite(points: Sequence[Point]) -> list[Point]:
    # Beyond this differences overflow.
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and abs(y) < 1e300]


def _stretches(points: Sequence[Point]) -> list[list[Point]]:
    found: list[list[Point]] = [[]]
    for point in points:
        if _finite([point]):
            found[-1].append(point)
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]
