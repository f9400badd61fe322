"""Traces: which bytes of an image a start-up touched, in the order of the first touch, so that another machine fetches
exactly these, first.

A trace is a text of lines::

    mystfuse-trace 1
    size 1073741824
    root-hash 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    0 4096
    1069547520 16384

Size and ranges (offset and length) are in bytes of the image file. Nothing of it is trusted: a wrong trace costs
fetches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mystfuse.errors import FormatError, MystfuseError

VERSION = 1
MAX_RANGES = 1 << 15
"""As a configuration of the fetcher they fit into a pipe."""
MAX_BYTES = 4 << 20
"""Bytes of a trace file."""
MAX_IMAGE = 1 << 62
"""Bytes of an image."""

_HEADER = re.compile(rb"mystfuse-trace (\d{1,9})\nsize (\d{1,19})\nroot-hash ((?:[0-9a-f]{64}){1,2})\n")
_RANGE = re.compile(rb"(\d{1,19}) (\d{1,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Trace:
    """The ranges of an image that something touched."""

    size: int
    """Bytes of the image."""
    root_hash: bytes
    """32 bytes, or of a tree of SHA-512 64, which name the image."""
    ranges: tuple[tuple[int, int], ...]
    """Offsets and lengths in bytes, by the first touch."""

    @classmethod
    def parse(cls, data: bytes) -> Trace:
        """Parse a trace file.

        Raises:
            FormatError: it is not a trace of this version, is too long, or has an impossible range; with the line.
        """
        if len(data) > MAX_BYTES:
            raise FormatError(f"a trace of more than {MAX_BYTES} bytes")
        header = _HEADER.match(data)
        if header is None:
            raise FormatError("not a trace that mystfuse has made (mystfuse trace)")
        if int(header[1]) != VERSION:
            raise FormatError(f"a trace of version {int(header[1])}; only version {VERSION} is known")
        size = int(header[2])
        if not 0 < size <= MAX_IMAGE:
            raise FormatError(f"line 2: an image of {size} bytes is impossible")
        *lines, rest = data[header.end() :].split(b"\n")
        if rest:
            raise FormatError("the last line is cut off")
        if len(lines) > MAX_RANGES:
            raise FormatError(f"more than {MAX_RANGES} ranges")
        ranges = tuple(_parse_range(line, number, size) for number, line in enumerate(lines, 4))
        return cls(size, bytes.fromhex(header[3].decode()), ranges)

    def pack(self) -> bytes:
        """The file's bytes.

        Raises:
            ValueError: it has more ranges than a trace may have, or an impossible one.
        """
        if len(self.root_hash) not in (32, 64) or len(self.ranges) > MAX_RANGES:
            raise ValueError("a root hash of another length, or too many ranges")
        if any(offset < 0 or length <= 0 or offset + length > self.size for offset, length in self.ranges):
            raise ValueError("a range that is not in the image")
        head = f"mystfuse-trace {VERSION}\nsize {self.size}\nroot-hash {self.root_hash.hex()}\n"
        return (head + "".join(f"{offset} {length}\n" for offset, length in self.ranges)).encode()


def read_trace(path: str) -> Trace:
    """The trace in a file.

    Raises:
        FormatError: it is none.
        MystfuseError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MystfuseError(f"{path}: {error.strerror or error}") from error
    try:
        return Trace.parse(data)
    except FormatError as error:
        raise error.at(path) from None


def _parse_range(line: bytes, number: int, size: int) -> tuple[int, int]:
    match = _RANGE.fullmatch(line)
    if match is None:
        raise FormatError(f"line {number}: not an offset and a length")
    offset, length = int(match[1]), int(match[2])
    if not length or offset + length > size:
        raise FormatError(f"line {number}: {offset} {length} is no range of an image of {size} bytes")
    return offset, length
