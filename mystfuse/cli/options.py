"""The parts of several commands' options: paths, sizes, times, ids, and groups of options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mystfuse.devices.patience import IO_TIMEOUT

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


def option_group(*options: Decorator[Any]) -> Decorator[Any]:
    """A decorator that adds several options to a command, which ``--help`` shows in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class GivenPath(click.Path):
    """A path that need not exist, as text or, with ``path_type``, as that type."""

    def __init__(self, path_type: type[Any] | None = None) -> None:
        super().__init__(readable=False, path_type=path_type)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses empty paths, which pathlib would take for the current directory. It does not touch the path: click
        would call stat(2) on it, and a mount whose storage hangs would hang us."""
        if not value:
            self.fail("it is empty (a variable that is not set?)", param, ctx)
        return self.coerce_path_result(value)


def given_text(value: str) -> str:
    """An argument that must not be empty, for example a path in an image."""
    if not value:
        raise click.BadParameter("it is empty (a variable that is not set?)")
    return value


def parse_size(value: str) -> int:
    """Bytes from a number with an optional suffix k, M, G or T (powers of 1024)."""
    match = re.fullmatch(r"([0-9]{1,19})([kKmMgGtT]?)(?:i?[bB])?", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write bytes, or a number with k, M, G or T")
    size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]
    if size >= 1 << 62:
        raise click.BadParameter(f"{value} is too large")
    return size


def parse_seconds(value: str) -> float:
    """Seconds; 0 means no limit."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 1e9:
        raise click.BadParameter(f"{value!r} is not a number of seconds")
    return seconds or math.inf


io_timeout_option = click.option(
    "--io-timeout",
    type=parse_seconds,
    metavar="SECONDS",
    default=f"{IO_TIMEOUT:g}",
    show_default=True,
    help="An error if storage hangs for so long; 0: never.",
)


def parse_id(value: str) -> int:
    """A user or group number."""
    if not re.fullmatch(r"[0-9]{1,10}", value) or int(value) >= 2**32 - 1:
        raise click.BadParameter(f"{value!r} is not a user or group number")
    return int(value)


overlay_options = option_group(
    click.option(
        "--overlay-limit",
        type=parse_size,
        metavar="SIZE",
        help="Memory for what is written, at most (default: half of what is available).",
    ),
    click.option(
        "--overlay-store", type=GivenPath(), metavar="DIR", help="Where to put, encrypted, what memory has no room for."
    ),
)

confinement_options = option_group(
    click.option("--privileged", is_flag=True, help="Let it do what you may, as root above all: unconfined."),
    click.option(
        "--pids-limit",
        type=click.IntRange(0, 1 << 22),
        metavar="N",
        help="How many processes and threads it may have (default: 2048; 0: any number).",
    ),
)
