"""Numbers for people: bytes and durations. Programs get the numbers themselves, by ``--json``."""

from __future__ import annotations

_LS_UNITS = "KMGTPEZ"
"""As ls(1) writes them: powers of 1024, without a unit for bytes."""
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def ls_size(size: int) -> str:
    """Bytes as ``ls -lh`` of GNU shows them: at most four characters, rounded up, one decimal below 10.

    Source: gnulib, lib/human.c, with the options ``human_ceiling | human_autoscale | human_base_1024 | human_SI``.
    """
    power = 0
    while power < len(_LS_UNITS) and size >= 1024 ** (power + 1):
        power += 1
    unit = 1024**power
    # Rounded up it may need another digit (9.99 is 10), or the next unit (1023.5 K is 1.0 M).
    if power and (tenths := -(-size * 10 // unit)) < 100:
        return f"{tenths // 10}.{tenths % 10}{_LS_UNITS[power - 1]}"
    whole = -(-size // unit)
    if whole == 1024 and power < len(_LS_UNITS):
        return f"1.0{_LS_UNITS[power]}"
    return f"{whole}{_LS_UNITS[power - 1] if power else ''}"


def describe_bytes(size: int) -> str:
    """Bytes with a unit, to the nearest tenth below 100: ``1 byte``, ``3.2 MiB``, ``512 MiB``."""
    if size == 1:
        return "1 byte"
    power = 0
    # Where the number would round to 1024, the next unit.
    while power < len(_UNITS) - 1 and size >= 1023.5 * 1024**power:
        power += 1
    value = size / 1024**power
    shown = f"{value:.1f}".removesuffix(".0") if power and value < 99.95 else f"{value:.0f}"
    return f"{shown} {_UNITS[power]}"


def describe_duration(seconds: float) -> str:
    """A duration by its two largest units: ``42 s``, ``3 min 20 s``, ``2 h 5 min``, ``12 d 3 h``."""
    whole = max(0, int(seconds))
    for unit, name, smaller, smaller_name in (
        (_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s"),
    ):  # fmt: skip
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"
