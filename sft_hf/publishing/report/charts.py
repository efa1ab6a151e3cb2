"""Charts as inline SVG: sized for a phone, coloured by the page's style sheet, with a text description.

Panels have a fixed size of 400 x 210 units, so that their text keeps its size in a column of a page. Strips have
positions in percent of the available width, and heights in pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from sft_hf.publishing.numbers import axis_percent, decimal, percent
from sft_hf.publishing.report.pages import legible, wording

WIDTH, HEIGHT = 400, 210
MOST_POINTS = 400  # points of a line
LABEL_HEIGHT = 15  # pixels for the label at the end of a line

Point = tuple[float, float | None]
"""x and y; the line is interrupted where y is None."""


@dataclass(frozen=True)
class Line:
    """One line of a panel. `style` is a class of the style sheet; `dots` marks its points."""

    label: str
    points: Sequence[Point]
    style: str = "own"
    dots: bool = False


@dataclass(frozen=True)
class Strip:
    """One value on a scale, with an optional interval. `style` is a class of the style sheet."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    style: str = "own"


@dataclass(frozen=True)
class _Frame:
    """Maps x and y to positions in a panel."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 40
    right: float = 10
    top: float = 10
    bottom: float = 24
    height: float = HEIGHT

    def at_x(self, value: float) -> float:
        return round(self.left + (WIDTH - self.left - self.right) * _part(value, self.x), 1)

    def at_y(self, value: float) -> float:
        return round(self.height - self.bottom - (self.height - self.top - self.bottom) * _part(value, self.y), 1)


def _part(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


def ticks(low: float, high: float, target: int = 4) -> list[float]:
    """Return about `target` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`.

    >>> ticks(0, 652)
    [0.0, 200.0, 400.0, 600.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.75)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(body: str, title: str, description: str, *, height: float = HEIGHT, style: str = "panel") -> Markup:
    """Return a chart with a title and a description for screen readers."""
    number = hashlib.sha256(f"{title}\0{description}\0{body}".encode("utf-8", "replace")).hexdigest()[:8]
    size = f'viewBox="0 0 {WIDTH} {height:g}"' if style == "panel" else f'width="100%" height="{height:g}"'
    return Markup(  # noqa: S704 - of this module's own elements, with every text escaped
        f'<svg class="chart {style}" {size} role="img" aria-labelledby="chart-{number}-title chart-{number}-text">'
        f'<title id="chart-{number}-title">{_escape(title)}</title>'
        f'<desc id="chart-{number}-text">{_escape(description)}</desc>{body}</svg>'
    )


def _escape(text: str) -> Markup:
    return escape(legible(text))


def _text(x: float | str, y: float, text: str, style: str = "", anchor: str = "start", shift: float = 0) -> str:
    moved = f' dx="{shift:g}"' if shift else ""
    return f'<text x="{x}" y="{y:g}" class="{style}" text-anchor="{anchor}"{moved}>{_escape(text)}</text>'


def _axes(
    frame: _Frame,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
) -> str:
    parts = []
    for value in y_ticks:
        y = frame.at_y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{WIDTH - frame.right:g}" y1="{y}" y2="{y}"/>')
        parts.append(_text(frame.left - 6, y + 4, y_format(value), "tick", "end"))
    base = frame.height - frame.bottom
    for value in x_ticks:
        x = frame.at_x(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{base:g}" y2="{base + 4:g}"/>')
        anchor = "end" if x > WIDTH - 24 else "middle"
        parts.append(_text(x, base + 17, x_format(value), "tick", anchor))
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{WIDTH - frame.right:g}" y1="{base:g}" y2="{base:g}"/>')
    return "".join(parts)


def line_panel(
    title: str,
    description: str,
    lines: Sequence[Line],
    x_range: tuple[float, float],
    *,
    from_zero: bool = True,
    mark: tuple[float, str] | None = None,
    x_format: Callable[[float], str] = lambda value: f"{value:,.10g}",
    y_format: Callable[[float], str] = decimal,
    y_range: tuple[float, float] | None = None,
    height: float = HEIGHT,
    right: float = 80,
) -> Markup | None:
    """Return lines over a common x axis, each labelled at its end; None if no line has a point.

    Args:
        title, description: for screen readers.
        lines: the lines; points with y None or not finite interrupt a line.
        x_range: lowest and highest x, the same for all panels of a row.
        from_zero: whether the y axis starts at 0.
        mark: an x to mark, and its label.
        x_format, y_format: functions that format axis labels.
        y_range: lowest and highest y; None: determined by the points.
        height: height of the panel.
        right: space for the labels at the ends of the lines.
    """
    values = [y for line in lines for _, y in line.points if y is not None and math.isfinite(y)]
    if not values:
        return None
    most = 1.0 if y_format is axis_percent else math.inf
    frame = _Frame(x_range, y_range or _y_range(values, from_zero, most), 50, right, 22 if mark else 10, height=height)
    body = _axes(frame, ticks(*x_range), ticks(*frame.y), x_format, y_format)
    if mark:
        x = frame.at_x(mark[0])
        body += f'<line class="mark" x1="{x}" x2="{x}" y1="{frame.top:g}" y2="{height - frame.bottom:g}"/>'
        middle = min(max(x, frame.left + 66), WIDTH - 70)
        body += _text(middle, frame.top - 8, mark[1], "marked", "middle")
    body += "".join(_line(line, frame) for line in lines) + _end_labels(lines, frame)
    return svg(body, title, description, height=height)


def _y_range(values: Sequence[float], from_zero: bool, most: float) -> tuple[float, float]:
    """Return the ends of an axis. It ends at `most`, unless a value is higher."""
    low, high = min(values), max(values)
    if from_zero and low >= 0:
        return 0.0, high * 1.05 or 1.0
    margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    return low - margin if low < 0 else max(low - margin, 0.0), min(high + margin, max(high, most))


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Reduce the number of points without visible change: the lowest and highest of each interval are kept."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = [point for point in points[start : start + stretch] if point[1] is not None]
        if not part:
            kept.append((points[start][0], None))
            continue
        ends = {min(part, key=lambda point: point[1] or 0.0), max(part, key=lambda point: point[1] or 0.0)}
        kept += sorted(ends, key=lambda point: point[0])
    return kept


def _line(line: Line, frame: _Frame) -> str:
    pieces: list[list[str]] = [[]]
    dots = []
    for x, y in thinned(line.points):
        if y is None or not math.isfinite(y):
            pieces.append([])
            continue
        pieces[-1].append(f"{frame.at_x(x)},{frame.at_y(y)}")
        dots.append((frame.at_x(x), frame.at_y(y)))
    drawn = "".join(
        f'<polyline class="line {line.style}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1
    )
    alone = {piece[0] for piece in pieces if len(piece) == 1}
    for x, y in dots:
        if (line.dots and len(dots) <= 40) or f"{x},{y}" in alone:
            drawn += f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="3"/>'
    return drawn


def _end_labels(lines: Sequence[Line], frame: _Frame) -> str:
    """Return labels at the ends of lines, moved apart if they would overlap."""
    wanted = []
    for line in lines:
        ends = [(x, y) for x, y in line.points if y is not None and math.isfinite(y)]
        if line.label and ends:
            wanted.append((frame.at_y(ends[-1][1]), frame.at_x(ends[-1][0]), line))
    wanted.sort(key=lambda item: item[0])
    places, edge = [y for y, _, _ in wanted], max((x for _, x, _ in wanted), default=0.0)
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + LABEL_HEIGHT)
    lowest = frame.height - frame.bottom + 2
    for index in reversed(range(len(places))):
        places[index] = min(places[index], lowest - LABEL_HEIGHT * (len(places) - 1 - index))
    return "".join(
        _text(edge + 8, y + 4, line.label, f"name {line.style}") for y, (_, _, line) in zip(places, wanted, strict=True)
    )


def bar_panel(
    title: str,
    description: str,
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    x_format: Callable[[float], str] = lambda value: f"{value:,.10g}",
    height: float = 170,
) -> Markup:
    """Return a histogram; `edges` has one more item than `counts`, and is formatted by `x_format`."""
    frame = _Frame((edges[0], edges[-1]), (0.0, max([*counts, 1]) * 1.05), left=46, height=height)
    body = _axes(frame, ticks(*frame.x), _whole(ticks(*frame.y, 3)), x_format, lambda value: f"{value:,.0f}")
    base = frame.at_y(0)
    for low, high, number in zip(edges[:-1], edges[1:], counts, strict=True):
        left, right, top = frame.at_x(low), frame.at_x(high), frame.at_y(number)
        if number:
            body += f'<rect class="bar" x="{left + 0.5:.1f}" y="{min(top, base - 1):.1f}" '
            body += f'width="{max(right - left - 1, 1):.1f}" height="{max(base - top, 1):.1f}"/>'
    return svg(body, title, description, height=height)


def _whole(values: Sequence[float]) -> list[float]:
    return [value for value in values if value == round(value)]


def reliability_panel(title: str, description: str, bins: Sequence[tuple[float, float, int]]) -> Markup:
    """Return a reliability diagram of (mean confidence, accuracy, rows) per bin; larger dots are more rows."""
    frame = _Frame((0.0, 1.0), (0.0, 1.0), left=46, right=14, top=14, bottom=30, height=320)
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    body = _axes(frame, quarters, quarters, axis_percent, axis_percent)
    ends = f'x1="{frame.at_x(0)}" y1="{frame.at_y(0)}" x2="{frame.at_x(1)}" y2="{frame.at_y(1)}"'
    body += f'<line class="ideal" {ends}/>'
    most = max((rows for _, _, rows in bins), default=1)
    for confidence, share, rows in bins:
        x, y, ideal = frame.at_x(confidence), frame.at_y(share), frame.at_y(confidence)
        size = math.sqrt(rows / most)
        body += f'<line class="gap" x1="{x}" x2="{x}" y1="{y}" y2="{ideal}" stroke-width="{1 + 2 * size:.1f}"/>'
        body += f'<circle class="dot own" cx="{x}" cy="{y}" r="{3 + 7 * size:.1f}"/>'
    body += _text(frame.at_x(0.03), frame.at_y(0.93), "right more often than claimed", "note")
    body += _text(frame.at_x(0.97), frame.at_y(0.05), "right less often than claimed", "note", "end")
    return svg(body, title, description, height=320)


def scatter_panel(title: str, description: str, points: Sequence[tuple[float, float]]) -> Markup:
    """Return predictions (y) against references (x) on the same scale, with the identity line."""
    ends = [value for point in points for value in point]
    scale = _around(min(ends), max(ends))
    frame = _Frame(scale, scale, left=54, right=14, top=14, bottom=30, height=320)
    marks = ticks(*scale)
    body = _axes(frame, marks, marks, decimal, decimal)
    ends_of_line = f'x1="{frame.at_x(scale[0])}" y1="{frame.at_y(scale[0])}" x2="{frame.at_x(scale[1])}"'
    body += f'<line class="ideal" {ends_of_line} y2="{frame.at_y(scale[1])}"/>'
    radius = 3 if len(points) <= 200 else 2
    for reference, prediction in points:
        body += f'<circle class="dot own" cx="{frame.at_x(reference)}" cy="{frame.at_y(prediction)}" r="{radius}"/>'
    body += _text(WIDTH - 18, 306, "reference", "note", "end") + _text(frame.left + 6, 24, "prediction", "note")
    return svg(body, title, description, height=320)


def _around(low: float, high: float) -> tuple[float, float]:
    """Return a scale with a margin on both sides, also for a single value."""
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def interval_strips(
    title: str,
    description: str,
    strips: Sequence[Strip],
    scale: tuple[float, float],
    *,
    form: Callable[[float], str] = percent,
    axis: Callable[[float], str] = axis_percent,
) -> Markup:
    """Return values with their intervals on one scale, each below its name.

    `form` formats a value, and `axis` a number of the scale; by default both are percentages.
    """

    def at(value: float) -> str:
        return f"{100 * _part(value, scale):.2f}%"

    row, height = 60, 60 * len(strips) + 30
    marks = ticks(*scale)
    body = ""
    for value in marks:
        body += f'<line class="grid" x1="{at(value)}" x2="{at(value)}" y1="0" y2="{height - 22}"/>'
        part = _part(value, scale)
        anchor = "start" if part < 0.04 else "end" if part > 0.96 else "middle"
        body += _text(at(value), height - 6, axis(value), "tick", anchor)
    for index, strip in enumerate(strips):
        y = row * index + 40
        body += f'<line class="axis" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        if strip.interval:
            low, high = (100 * _part(end, scale) for end in strip.interval)
            body += f'<rect class="interval {strip.style}" x="{low:.2f}%" width="{max(high - low, 0.2):.2f}%" '
            body += f'y="{y - 6}" height="12" rx="2"/>'
        place = at(strip.value)
        body += f'<line class="needle {strip.style}" x1="{place}" x2="{place}" y1="{y - 11}" y2="{y + 11}"/>'
        body += _text("0", y - 17, wording(strip.label, 26), f"name {strip.style}")
        body += (
            f'<text x="100%" y="{y - 17}" text-anchor="end" class="value {strip.style}">{_escape(form(strip.value))}'
        )
        if strip.interval:
            start, end = (_escape(form(value).removesuffix("\u00a0%")) for value in strip.interval)
            body += f'<tspan class="range" dx="7">{start} to {end}</tspan>'
        body += "</text>"
    return svg(body, title, description, height=height, style="strips")


def small_bar(part: float | None, style: str = "bar") -> Markup:
    """Return a bar for a table cell, next to its number."""
    width = 100 * _part(part or 0.0, (0.0, 1.0))
    return Markup(  # noqa: S704 - as above
        f'<svg class="small" aria-hidden="true" width="100%" height="10"><rect class="track" width="100%" height="10"/>'
        f'<rect class="{escape(style)}" width="{width:.1f}%" height="10"/></svg>'
    )
