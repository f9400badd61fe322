"""What a guard is: `python -m tests.guards` takes them away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guard:
    """A piece of code that keeps a promise."""

    name: str
    """The promise that it keeps."""
    file: str
    """A path below the project's directory."""
    code: str
    """The piece of code; the file has it once."""
    without: str
    """What replaces the piece to take the guard away."""
    tests: tuple[str, ...]
    """Below tests/, ``test_file.py::test_name``: without the guard each of them fails."""
