"""A mount's status, and the table of all mounts, for people. The names of the fields are those of status.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mystfuse.errors import one_line
from mystfuse.mounting.ask_mounts import Answer, explain_silence
from mystfuse.system.units import describe_bytes, describe_duration

_GROUPS = (
    ("mountpoint", "image", "start_time", "uptime", "read_only"),
    ("trust", "trust_explanation", "root_hash", "signer"),
    ("overlay_written", "overlay_used", "overlay_limit", "overlay_store_used", "changes", "unlinked_inodes"),
    ("blocks_verified", "hash_blocks_verified", "blocks_failed", "blocks_mended", "bytes_fetched", "read_failures"),
    ("filesystem_uuid", "block_size", "luks_version", "cipher", "bytes_decrypted"),
    ("image_size", "fetcher"),
    ("fastpath", "requests_answered", "requests_forwarded", "cache_hits", "cache_misses"),
    ("version", "pid", "own_user", "landlock", "seccomp", "empty_root"),
)
"""The order in which people look for things; an empty line between each two groups."""
_BYTES = frozenset(
    {
        "overlay_written", "overlay_used", "overlay_limit", "overlay_store_used", "bytes_fetched", "bytes_decrypted",
        "block_size", "image_size",
    }
)  # fmt: skip
_COLUMNS = ("MOUNTPOINT", "IMAGE", "TRUST", "WRITTEN", "UPTIME")


def describe_status(status: Mapping[str, Any]) -> list[str]:
    """A line for each field of a status, in groups; a field that a newer daemon has comes last."""
    known = {name for group in _GROUPS for name in group}
    groups = [*_GROUPS, tuple(name for name in status if name not in known)]
    lines: list[str] = []
    for group in groups:
        shown = [f"{name.replace('_', ' ')}: {_shown(name, status[name])}" for name in group if name in status]
        lines += ["", *shown] if lines and shown else shown
    return [one_line(line) for line in lines]


def describe_mounts(answers: Sequence[Answer], timeout: float) -> list[str]:
    """The lines of a table of mounts; one that does not answer says why.

    Args:
        timeout: seconds that they had to answer.
    """
    rows = [_COLUMNS, *(_row(answer, timeout) for answer in answers)]
    # What a mount that does not answer has in place of its last columns may be longer than these.
    widths = [
        max(len(row[column]) for row in rows if column < 2 or len(row) == len(_COLUMNS))
        for column in range(len(_COLUMNS))
    ]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(answer: Answer, timeout: float) -> tuple[str, ...]:
    status, written = answer.status, answer.written
    place = one_line(answer.mount.mountpoint), one_line(answer.image)
    if status is None:
        return *place, f"{answer.state.value}: {one_line(explain_silence(answer, timeout))}"
    amount = "?" if written is None else describe_bytes(written)
    uptime = status.get("uptime")
    return (
        *place,
        one_line(str(status.get("trust"))),
        "read-only" if status.get("read_only") is True else amount,
        describe_duration(uptime) if isinstance(uptime, (int, float)) else "?",
    )


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{count} {kind}" for kind, count in value.items()) or "none"
    if isinstance(value, (int, float)):
        if name in _BYTES and isinstance(value, int):
            return describe_bytes(value)
        if name == "uptime":
            return describe_duration(value)
        if name == "start_time":
            return _local_time(value)
    return str(value)


def _local_time(seconds: float) -> str:
    """A point in time, by the clock and time zone of this machine."""
    try:
        return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %z}"
    except (OverflowError, OSError, ValueError):
        # Another program's.
        return str(seconds)
