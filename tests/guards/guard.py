"""What a guard is: `python -m tests.guards` takes them away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guard:
    """A piece of code that keeps a promise."""

    name: str
    """What it sees to."""
    file: str
    """Below the project's directory."""
    code: str
    """It stands there once."""
    without: str
    """What stands in its place when it is gone."""
    tests: tuple[str, ...]
    """Below tests/, ``test_file.py::test_name``: each of them fails then."""
