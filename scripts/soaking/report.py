"""The verdict, the table and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.picture import FAINT, TEXT, document, line, text
from benchmarks.results import number
from rich.console import Console
from rich.table import Table

from soaking.daemon import Sample
from soaking.meter import Latency

MIB = 1 << 20
_GROWTH, _GROWTH_BYTES = 0.05, 8 * MIB
"""Of the memory, from the second quarter to the last one: below either it is flat."""
_SHORTEST = 180.0
"""Seconds of load below which memory has not come to rest, and is not judged."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 220, 84, 24, 40, 34
_MOST_POINTS = 600
_COLORS = ("#1f5fa8", "#b5482f", "#2f7d4f", "#7a7f87", "#8a5ba8", "#c08a1e")
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that was judged."""

    name: str
    is_right: bool
    said: str


def judge_memory(samples: Sequence[Sample], seconds: float) -> Verdict:
    """Compare the median memory of the second quarter of ``seconds`` with that of the last one."""
    quarters = [
        [sample for sample in samples if seconds * part / 4 <= sample.second < seconds * (part + 1) / 4]
        for part in (1, 3)
    ]
    if seconds < _SHORTEST or not all(quarters):
        return Verdict("memory flat", True, f"not judged: {seconds:.0f} s of load are too few")
    early, late = (statistics.median(sample.rss for sample in quarter) for quarter in quarters)
    written = [statistics.median(sample.overlay for sample in quarter) / MIB for quarter in quarters]
    growth = late - early
    return Verdict(
        "memory flat",
        growth < early * _GROWTH or growth < _GROWTH_BYTES,
        f"{early / MIB:.1f} MiB in the second quarter, {late / MIB:.1f} MiB in the last one ({growth / early:+.1%}); "
        f"written blocks are {written[0]:.1f} and {written[1]:.1f} MiB of that",
    )


def print_table(console: Console, latencies: dict[str, Latency], seconds: float) -> None:
    """One line a kind of operation."""
    table = Table(title="Operations", title_justify="left", highlight=False)
    table.add_column("kind")
    for heading in ("number", "per second", "p50 ms", "p99 ms", "longest ms"):
        table.add_column(heading, justify="right")
    for kind, latency in latencies.items():
        times = (number(value * 1e3) for value in (latency.median, latency.p99, latency.longest))
        table.add_row(kind, f"{latency.count:,}", number(latency.count / seconds), *times)
    console.print(table)


def rates(samples: Sequence[Sample], of: Callable[[Sample], float]) -> list[Point]:
    """How fast something grows: (second, per second)."""
    return [
        (after.second, (of(after) - of(before)) / (after.second - before.second))
        for before, after in pairwise(samples)
        if after.second > before.second
    ]


def draw(samples: Sequence[Sample], points: Sequence[float], title: str, subtitle: str) -> str:
    """Memory, operations, processor, and what is open, over time; ``points`` are the seconds of the checks."""
    totals = samples[-1].operations if samples else {}
    most = sorted(totals, key=totals.__getitem__, reverse=True)[: len(_COLORS) - 1]
    plots: list[tuple[str, dict[str, list[Point]]]] = [
        (
            "memory of the daemon, MiB",
            {
                "in memory (VmRSS)": [(sample.second, sample.rss / MIB) for sample in samples],
                "of that, written blocks": [(sample.second, sample.overlay / MIB) for sample in samples],
            },
        ),
        (
            "operations per second",
            {"all": rates(samples, lambda sample: sum(sample.operations.values()))}
            | {kind: rates(samples, lambda sample, kind=kind: sample.operations[kind]) for kind in most},  # type: ignore[misc]
        ),
        (
            "processor time of the daemon, seconds per second",
            {"processor": rates(samples, lambda sample: sample.cpu)},
        ),
        (
            "threads and descriptors of the daemon",
            {
                "threads": [(sample.second, float(sample.threads)) for sample in samples],
                "descriptors": [(sample.second, float(sample.descriptors)) for sample in samples],
            },
        ),
    ]
    if any(sample.store for sample in samples):
        stored = [(sample.second, sample.store / MIB) for sample in samples]
        plots.insert(1, ("written blocks in the overlay's store, MiB", {"stored": stored}))
    parts = [text(16, 28, title, 18), text(16, 48, subtitle, 12)]
    for index, (name, lines) in enumerate(plots):
        parts.append(f"<g transform='translate(0 {60 + index * _HEIGHT})'>")
        parts += [*_plot(name, {label: _thin(line_points) for label, line_points in lines.items()}, points), "</g>"]
    return document(_WIDTH, 60 + len(plots) * _HEIGHT, parts)


def _plot(title: str, lines: dict[str, list[Point]], marks: Sequence[float]) -> list[str]:
    everything = [point for line_points in lines.values() for point in line_points] or [(0.0, 0.0)]
    last = max(x for x, _ in everything) or 1.0
    top = _round_up(max(y for _, y in everything))

    def x_of(x: float) -> float:
        return _LEFT + x / last * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _BOTTOM - _TOP)

    parts = [text(16, 16, title, 14)]
    for step in range(5):
        y = y_of(top * step / 4)
        parts += [
            line(_LEFT, y, _WIDTH - _RIGHT, y, FAINT, 0.7),
            text(_LEFT - 6, y + 4, number(top * step / 4), 11, "end"),
        ]
    unit, of_unit = ("min", 60.0) if last > 120 else ("s", 1.0)
    step_of_x = _round_up(last / of_unit / 8)
    for step in range(int(last / of_unit / step_of_x) + 1):
        x = step * step_of_x
        parts.append(text(x_of(x * of_unit), _HEIGHT - _BOTTOM + 16, f"{x:.3g} {unit}", 11, "middle"))
    parts += [line(x_of(mark), _TOP, x_of(mark), _HEIGHT - _BOTTOM, TEXT, 0.7, "3 3") for mark in marks if mark <= last]
    legend = _LEFT + 4.0
    for color, (name, line_points) in zip(_COLORS, lines.items(), strict=False):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line_points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='1.2'/>")
        parts += [line(legend, _TOP - 10, legend + 16, _TOP - 10, color, 2.5), text(legend + 20, _TOP - 6, name, 11)]
        legend += 40 + 6.5 * len(name)
    return parts


def _thin(points: list[Point]) -> list[Point]:
    """No more points than can be seen: neighbours together."""
    every = -(-len(points) // _MOST_POINTS) or 1
    groups = (points[start : start + every] for start in range(0, len(points), every))
    return [(group[-1][0], statistics.fmean(y for _, y in group)) for group in groups]


def _round_up(value: float) -> float:
    """The next of 1, 2, 3, 4, 6, 8 times a power of ten."""
    if value <= 0:
        return 1
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(factor * power for factor in (1, 2, 3, 4, 6, 8, 10) if factor * power >= value)
