"""The logs of ``operators``: a record for each call."""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent
_HEADER = re.sub(r"/\*.*?\*/", "", (SOURCES / "operators.h").read_text(), flags=re.DOTALL)
_RECORD = struct.Struct("=HHHHqq6Q")
NO_VERSION = 2**64 - 1
"""In a log: bytes that nobody has written."""


def _enumerators(name: str) -> list[tuple[str, int]]:
    found = re.search(rf"enum {name} {{(.*?)}}", _HEADER, re.DOTALL)
    assert found
    names = re.findall(r"(\w+)(?: = (\d+))?", found[1])
    return [(word, int(number) if number else index) for index, (word, number) in enumerate(names)]


Kind = IntEnum("Kind", _enumerators("kind"))  # type: ignore[misc]
How = IntEnum("How", _enumerators("how"))  # type: ignore[misc]
Layout = dict(_enumerators("layout"))
FIRST_NAME = Layout["FIRST_NAME"]
NAMES = Layout["WRITERS"] * Layout["NAMES"]
"""Names that change, in each directory."""


class Record(NamedTuple):
    """One call.

    Attributes:
        kind: of ``Kind``; its enumerators in ``operators.h`` say what the values are.
        error: its errno, 0 if it succeeded.
        object: the number of a file (below FIRST_NAME), a name or, for a listing, a directory.
        how: of ``How``.
        start, end: ns, by a clock that all processes share.
    """

    kind: int
    error: int
    object: int
    how: int
    start: int
    end: int
    values: tuple[int, ...]

    def __str__(self) -> str:
        name = Kind(self.kind).name + (f" {How(self.how).name}" if self.how else "")
        outcome = f"errno {self.error}" if self.error else " ".join(map(str, self.values))
        took = f"{(self.end - self.start) / 1000:.0f} us"
        return f"{self.start}..{self.end} ({took}) object {self.object} {name}: {outcome}"


def read_logs(directory: Path) -> list[Record]:
    """The records of all processes, by their start."""
    records = []
    for path in directory.iterdir():
        for kind, error, number, how, start, end, *values in _RECORD.iter_unpack(path.read_bytes()):
            records.append(Record(kind, error, number, how, start, end, tuple(values)))
    records.sort(key=lambda record: record.start)
    return records
