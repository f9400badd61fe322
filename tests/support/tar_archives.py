"""Tar archives made by hand, member by member, right or wrong."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

BLOCK = 512


def member(name: str = "file", data: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    """A member in GNU's or, with ``pax``, POSIX's form.

    Args:
        fields: of ``TarInfo``; ``pax``: records of its extended header, in front of it.
    """
    pax = fields.pop("pax", None)
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    head = b"" if pax is None else pax_header(pax)
    return head + info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + padded(data)


def pax_header(records: dict[str, bytes] | bytes, kind: bytes = tarfile.XHDTYPE, size: int | None = None) -> bytes:
    """An extended header of these records, or of these bytes."""
    body = records if isinstance(records, bytes) else b"".join(record(key, value) for key, value in records.items())
    info = tarfile.TarInfo("pax")
    info.type, info.size = kind, len(body) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + padded(body)


def record(key: str, value: bytes) -> bytes:
    """One record, with its own length in front."""
    rest = b" " + key.encode("utf-8", "surrogateescape") + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def archive(*members: bytes) -> bytes:
    """Members, and an archive's end."""
    return b"".join(members) + bytes(2 * BLOCK)


def with_sum(header: bytes) -> bytes:
    """A header with a checksum that is right."""
    blank = bytearray(header)
    blank[148:156] = b" " * 8
    blank[148:156] = b"%06o\0 " % sum(blank)
    return bytes(blank)


def packed(tree: Path, **options: Any) -> bytes:
    """A directory as Python's ``tarfile`` packs it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        tar.add(tree, ".")
    return file.getvalue()
