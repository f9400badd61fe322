"""The verdicts, the table and the plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.plots import save
from benchmarks.results import number
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from soaking.daemon import Sample
from soaking.meter import Latency

MIB = 1 << 20
_GROWTH, _GROWTH_BYTES = 0.05, 8 * MIB
"""Growth of memory from the second quarter to the last one: below either bound it is flat."""
_SHORTEST = 180.0
"""Seconds of load below which memory is still growing, and is not judged."""
_MOST_KINDS = 5
"""The plot shows the most frequent operations, this many."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict."""

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
    """One line for each kind of operation."""
    table = Table(title="Operations", title_justify="left", highlight=False)
    table.add_column("kind")
    for heading in ("number", "per second", "p50 ms", "p99 ms", "longest ms"):
        table.add_column(heading, justify="right")
    for kind, latency in latencies.items():
        times = (number(value * 1e3) for value in (latency.median, latency.p99, latency.longest))
        table.add_row(kind, f"{latency.count:,}", number(latency.count / seconds), *times)
    console.print(table)


def rates(samples: Sequence[Sample], of: Callable[[Sample], float]) -> list[Point]:
    """The growth rate: (second, per second)."""
    return [
        (after.second, (of(after) - of(before)) / (after.second - before.second))
        for before, after in pairwise(samples)
        if after.second > before.second
    ]


def save_plots(path: Path, samples: Sequence[Sample], checks: Sequence[float], title: str) -> None:
    """Memory, operations, processor, and open files over time; ``checks`` are the seconds of the checks."""
    totals = samples[-1].operations if samples else {}
    kinds = sorted(totals, key=totals.__getitem__, reverse=True)[:_MOST_KINDS]
    plots: dict[str, dict[str, Callable[[Sample], float]]] = {
        "memory of the daemon, MiB": {
            "in memory (VmRSS)": lambda sample: sample.rss / MIB,
            "of that, written blocks": lambda sample: sample.overlay / MIB,
        },
        "written blocks in the overlay's store, MiB": {"stored": lambda sample: sample.store / MIB},
        "operations per second": {
            "all": lambda sample: sum(sample.operations.values()),
            **{kind: lambda sample, kind=kind: sample.operations[kind] for kind in kinds},  # type: ignore[misc]
        },
        "processor time of the daemon, seconds per second": {"processor": lambda sample: sample.cpu},
        "threads and descriptors of the daemon": {
            "threads": lambda sample: sample.threads,
            "descriptors": lambda sample: sample.descriptors,
        },
    }
    figure = Figure(figsize=(10, 2.6 * len(plots)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for (name, lines), axes in zip(plots.items(), figure.subplots(len(plots), sharex=True), strict=True):
        for label, of in lines.items():
            points = rates(samples, of) if "per second" in name else [(sample.second, of(sample)) for sample in samples]
            axes.plot([x / 60 for x, _ in points], [y for _, y in points], label=label, linewidth=1)
        for second in checks:
            axes.axvline(second / 60, color="black", linestyle=":", linewidth=0.7)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(0, None)
        axes.legend(fontsize=7, loc="upper left")
    axes.set_xlabel("minutes")
    save(figure, path)
