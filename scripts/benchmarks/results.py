"""Results: readings, their medians, and whether they reach the marks; as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.job import Job, Mark

SUBJECT = "mystfuse"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One mark, and mystfuse's figure in relation to it."""

    mark: Mark
    value: float
    """The ratio to the peer; for a mark without a peer, the figure itself."""

    @property
    def score(self) -> float:
        """1 where the mark is just reached, 2 where it is reached twice over."""
        if self.mark.at_most:
            return self.mark.limit / max(self.value, self.mark.limit / 1000)
        return self.value / self.mark.limit

    @property
    def is_reached(self) -> bool:
        return self.score >= 1

    @property
    def wanted(self) -> str:
        """The mark in words."""
        sign = "≤" if self.mark.at_most else "≥"
        return f"{'aim ' if self.mark.aim else ''}{sign} {self.mark.limit:g}"


@dataclass(slots=True)
class Outcome:
    """All readings of one job."""

    job: Job
    readings: dict[str, list[float]] = field(default_factory=dict)
    """By contender, in the job's unit."""
    seconds: float = 0.0
    """Seconds of the whole job."""

    def median(self, contender: str) -> float | None:
        values = self.readings.get(contender)
        return statistics.median(values) if values else None

    def ratio(self, contender: str) -> float | None:
        """mystfuse's figure divided by another's."""
        own, other = self.median(SUBJECT), self.median(contender)
        return own / other if own is not None and other else None

    def verdicts(self) -> list[Verdict]:
        """The marks for which both figures exist."""
        found = []
        for mark in self.job.marks:
            value = self.ratio(mark.against) if mark.against else self.median(SUBJECT)
            if value is not None:
                found.append(Verdict(mark, value))
        return found

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.job.name,
            "title": self.job.title,
            "unit": self.job.unit,
            "seconds": round(self.seconds, 1),
            "readings": self.readings,
            "medians": {name: self.median(name) for name in self.readings},
            "ratios": {name: self.ratio(name) for name in self.readings if name != SUBJECT},
            "marks": [
                {
                    "against": verdict.mark.against or None,
                    "limit": verdict.mark.limit,
                    "aim": verdict.mark.aim,
                    "at_most": verdict.mark.at_most,
                    "value": verdict.value,
                    "reached": verdict.is_reached,
                }
                for verdict in self.verdicts()
            ],
        }


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    """Median, and the range if there are several readings."""
    middle = number(statistics.median(values))
    return middle if len(values) < 2 else f"{middle} ({number(min(values))} to {number(max(values))})"


def print_table(console: Console, outcomes: Iterable[Outcome]) -> None:
    """One line for each contender: its figure, and mystfuse's ratio to it, with the marks."""
    table = Table(title="Median (range); ratio: mystfuse to the other", title_justify="left", highlight=False)
    for heading, justify in (("job", "left"), ("", "left"), ("figure", "right"), ("ratio", "right"), ("mark", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for outcome in outcomes:
        first = True
        for contender, values in outcome.readings.items():
            against = "" if contender == SUBJECT else contender
            verdicts = [verdict for verdict in outcome.verdicts() if verdict.mark.against == against]
            ratio = outcome.ratio(contender) if against else None
            table.add_row(
                outcome.job.title if first else "",
                contender,
                f"{spread(values)} {outcome.job.unit}",
                "" if ratio is None else f"{ratio:.2f}",
                ", ".join(f"{verdict.wanted} {'reached' if verdict.is_reached else 'MISSED'}" for verdict in verdicts),
            )
            first = False
        table.add_section()
    console.print(table)
    demanded = [verdict for outcome in outcomes for verdict in outcome.verdicts() if not verdict.mark.aim]
    reached = sum(verdict.is_reached for verdict in demanded)
    console.print(f"{reached} of {len(demanded)} marks reached", highlight=False)
