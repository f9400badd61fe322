"""What a job is, and the marks that mystfuse is to reach in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.bench import Bench

Measure = Callable[[Bench], float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A bound of mystfuse's figure, or of its ratio to another's."""

    limit: float
    """The least, or the most if ``at_most``."""
    against: str = ""
    """``limit`` is that of the ratio to this contender's figure; without it, that of the figure itself."""
    aim: bool = False
    """Wanted, but not required."""
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    title: str
    unit: str
    measures: dict[str, Measure]
    """By contender; mystfuse is among them."""
    marks: tuple[Mark, ...]
    exact_rounds: str = ""
    """The field of ``Sizes`` with the number of readings, for any number of rounds."""
    once: bool = False
    """One reading is enough."""
    needs_root: bool = False


def on(names: str, measure: Callable[[Bench, str], float]) -> dict[str, Measure]:
    """The same measure on several peers, their names separated by blanks."""
    return {name: functools.partial(_call, measure, name) for name in names.split()}


def _call(measure: Callable[[Bench, str], float], name: str, bench: Bench) -> float:
    return measure(bench, name)
