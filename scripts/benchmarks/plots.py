"""Line plots in SVG: five on a sheet, x logarithmic where it spans decades, y from zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.picture import FAINT, TEXT, document, line, text
from benchmarks.results import number
from benchmarks.scaling import Plot, Point

WIDTH, HEIGHT = 470, 290
"""Of one plot."""
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 48
"""Its margins."""
COLUMNS = 2
COLORS = {"mystfuse": "#1f5fa8", "fuse2fs": "#b5482f", "kernel": "#2f7d4f", "floor": "#7a7f87"}


def draw_plots(plots: Sequence[Plot], subtitle: str) -> str:
    """All plots on one sheet."""
    parts = [text(16, 28, "How it scales", 18), text(16, 48, subtitle, 12)]
    for index, plot in enumerate(plots):
        x, y = index % COLUMNS * WIDTH, 64 + index // COLUMNS * HEIGHT
        parts += [f"<g transform='translate({x} {y})'>", *_plot(plot), "</g>"]
    rows = math.ceil(len(plots) / COLUMNS)
    return document(COLUMNS * WIDTH, 64 + rows * HEIGHT, parts)


def _plot(plot: Plot) -> list[str]:
    points = [point for line_points in plot.lines.values() for point in line_points]
    xs = sorted({x for x, _ in points})
    top = _round_up(max(y for _, y in points))
    place = _Place(xs, top)
    parts = [text(16, 18, plot.title, 14)]
    for step in range(5):
        value = top * step / 4
        y = place.y(value)
        parts += [line(LEFT, y, WIDTH - RIGHT, y, FAINT, 0.7), text(LEFT - 6, y + 4, number(value), 11, "end")]
    parts += [text(place.x(x), HEIGHT - BOTTOM + 18, number(x), 11, "middle") for x in xs]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 36, plot.x_label, 12, "middle"))
    parts.append(text(LEFT - 6, TOP - 10, plot.y_label, 12, "end"))
    legend = LEFT + 4.0
    for name, line_points in plot.lines.items():
        color = COLORS.get(name, TEXT)
        parts += _polyline([(place.x(x), place.y(y)) for x, y in line_points], color)
        parts += [line(legend, TOP - 14, legend + 16, TOP - 14, color, 2.5), text(legend + 20, TOP - 10, name, 11)]
        legend += 34 + 7 * len(name)
    return parts


class _Place:
    """Where values are on a plot."""

    def __init__(self, xs: Sequence[float], top: float) -> None:
        self._is_logarithmic = xs[0] > 0 and xs[-1] / xs[0] > 10
        self._first, self._last = self._transform(xs[0]), self._transform(xs[-1])
        self._top = top

    def _transform(self, x: float) -> float:
        return math.log(x) if self._is_logarithmic else x

    def x(self, value: float) -> float:
        part = (self._transform(value) - self._first) / ((self._last - self._first) or 1)
        return LEFT + part * (WIDTH - RIGHT - LEFT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self._top * (HEIGHT - BOTTOM - TOP)


def _polyline(points: Sequence[Point], color: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'/>" for x, y in points]
    return [f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='2'/>", *dots]


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 times a power of ten."""
    if value <= 0:
        return 1
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power >= value)
