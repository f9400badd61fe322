"""The figures as SVG, drawn by matplotlib: bars against the marks, and how figures grow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.results import SUBJECT, Outcome, Verdict, number
from benchmarks.scaling import Plot

COLUMNS = 2
COLORS = {"mystfuse": "tab:blue", "fuse2fs": "tab:red", "kernel": "tab:green", "floor": "tab:gray"}
REACHED, MISSED = "tab:green", "tab:red"
MOST = 2.5
"""The longest bar stands for this many times its mark; longer ones are cut off there."""
NUMBERS = FuncFormatter(lambda value, _: number(value))


def save(figure: Figure, path: Path) -> None:
    """As SVG with text as text, which can be searched."""
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, format="svg")


def save_bars(path: Path, outcomes: Iterable[Outcome], subtitle: str) -> None:
    """mystfuse's figures and their marks: a bar that passes the line has reached its mark."""
    rows = [(outcome, verdict) for outcome in outcomes for verdict in outcome.verdicts() if not verdict.mark.aim]
    figure = Figure(figsize=(10, 1.2 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        range(len(rows)),
        [min(verdict.score, MOST) for _, verdict in rows],
        color=[REACHED if verdict.is_reached else MISSED for _, verdict in rows],
    )
    axes.bar_label(bars, [_figure_of(outcome, verdict) for outcome, verdict in rows], padding=4, fontsize=8)
    axes.axvline(1, color="black", linestyle="--")
    axes.set_yticks(range(len(rows)), [outcome.job.title for outcome, _ in rows], fontsize=8)
    axes.set_xlim(0, MOST * 1.5)
    axes.invert_yaxis()
    axes.set_title(f"mystfuse against its marks (dashes)\n{subtitle}", fontsize=10)
    save(figure, path)


def _figure_of(outcome: Outcome, verdict: Verdict) -> str:
    if verdict.mark.against:
        return f"{verdict.value:.2f} of {verdict.mark.against} (mark {verdict.wanted})"
    return f"{number(outcome.median(SUBJECT) or 0)} {outcome.job.unit} (mark {verdict.wanted})"


def save_scaling(path: Path, plots: Sequence[Plot], subtitle: str) -> None:
    """All plots on one sheet; x is logarithmic where it spans decades."""
    rows = math.ceil(len(plots) / COLUMNS)
    figure = Figure(figsize=(5 * COLUMNS, 3.2 * rows), layout="constrained")
    figure.suptitle(f"How it scales\n{subtitle}", fontsize=10)
    for plot, axes in zip(plots, figure.subplots(rows, COLUMNS, squeeze=False).flat, strict=False):
        for name, points in plot.lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name, color=COLORS.get(name))
        xs = sorted({x for points in plot.lines.values() for x, _ in points})
        if xs[0] > 0 and xs[-1] / xs[0] > 10:
            axes.set_xscale("log")
        axes.set_xticks(xs, [number(x) for x in xs])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(NUMBERS)
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label, ylim=(0, None))
        axes.legend(fontsize=8)
    save(figure, path)
