"""The parts of several commands' options: paths, sizes, times, ids, and groups of options.

The type of a parameter also says how a shell completes it. A completion is a NAME, the whole value; a PART, its
beginning; or FILE, DIRECTORY or PEM: what the shell itself is to complete (``cli/completion.py``).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.types import StringParamType

from mystfuse.devices.open_source import is_address, name_of
from mystfuse.devices.patience import IO_TIMEOUT

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

NAME, PART, FILE, DIRECTORY, PEM = "plain", "part", "file", "dir", "pem"
"""Types of completions."""

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


def option_group(*options: Decorator[Any]) -> Decorator[Any]:
    """A decorator that adds several options to a command, which ``--help`` shows in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def completion(value: str, kind: str = NAME, explanation: str | None = None) -> CompletionItem[str]:
    """One completion of a word.

    Args:
        value: the whole word; for FILE, DIRECTORY and PEM the end of the word that the shell is to complete.
        explanation: a few words, which zsh and fish show.
    """
    # Only here: no other command needs it.
    from click.shell_completion import CompletionItem

    return CompletionItem(value, kind, explanation)


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

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Any file, as the shell completes it."""
        return [completion(incomplete, FILE)]


class ImagePath(GivenPath):
    """The path of an image that is there, or its address elsewhere."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Any file, as the shell completes it; of an address nothing is known."""
        return [] if is_address(incomplete) else super().shell_complete(ctx, param, incomplete)


class NewImagePath(GivenPath):
    """The path of an image that is to be written, on this machine."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses addresses."""
        if isinstance(value, str) and is_address(value):
            self.fail(
                f"{name_of(value)}: is elsewhere: make the image here, then mystfuse push takes it there", param, ctx
            )
        return super().convert(value, param, ctx)


class ComparedPath(GivenPath):
    """The path of a tree that is there: an image, a directory, an archive."""


class DirectoryPath(GivenPath):
    """The path of a directory that is there."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return [completion(incomplete, DIRECTORY)]


class ImageSource(DirectoryPath):
    """What an image is made of: a directory, or an image of a container, ``oci:DIR:TAG`` and the like."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        # With --tar, the image's name stands here.
        if ctx.params.get("tars"):
            return [completion(incomplete, FILE)]
        transport, colon, path = incomplete.partition(":")
        if colon and transport in ("oci", "oci-archive", "docker-archive"):
            return [completion(path, DIRECTORY if transport == "oci" else FILE)]
        return [completion(incomplete, DIRECTORY)]


class PemPath(GivenPath):
    """The path of a key in PEM."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return [completion(incomplete, PEM)]


class MountpointPath(GivenPath):
    """Where something of ours is mounted."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Our mountpoints, from the mount table alone: no mount is touched, which might hang."""
        if incomplete.startswith("~"):
            return [completion(incomplete, DIRECTORY)]
        from mystfuse.mounting.mount_table import own_mountpoints

        given = ctx.params.get(param.name or "") or ()
        names = dict.fromkeys(_as_typed(path, incomplete) for path in own_mountpoints())
        return [completion(name, NAME) for name in names if name.startswith(incomplete) and name not in given]


def _as_typed(path: str, incomplete: str) -> str:
    """An absolute path in the form in which somebody has begun to write it: relative, or not."""
    here = os.getcwd()
    if incomplete.startswith("/") or (not incomplete.startswith("../") and not path.startswith(here.rstrip("/") + "/")):
        return path
    return ("./" if incomplete.startswith("./") else "") + os.path.relpath(path, here)


class FileOrText(StringParamType):
    """The name of a file, or another word (hex digits, ``-``), which the command tells apart; any text, as it is.

    Args:
        completed: FILE, or PEM.
        separator: the file is what is behind the last one of these.
    """

    def __init__(self, completed: str = FILE, separator: str = "") -> None:
        self._completed = completed
        self._separator = separator

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        file = incomplete.rpartition(self._separator)[2] if self._separator else incomplete
        return [completion(file, self._completed)]


class MountSource(StringParamType):
    """SOURCE=TARGET, where SOURCE is a file or directory of this machine."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return [] if "=" in incomplete else [completion(incomplete, FILE)]


class OciTarget(StringParamType):
    """``oci:DIR[:TAG]`` or ``oci-archive:FILE[:TAG]``."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """The word before the colon, and then the directory or file; a tag is anybody's choice."""
        transport, colon, rest = incomplete.partition(":")
        if not colon:
            return [completion(f"{name}:", PART) for name in ("oci", "oci-archive") if name.startswith(transport)]
        if ":" in rest or transport not in ("oci", "oci-archive"):
            return []
        return [completion(rest, DIRECTORY if transport == "oci" else FILE)]


class VariableName(StringParamType):
    """NAME, a variable of the caller's, or NAME=VALUE."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Names alone: a value on the screen may be a secret."""
        name, equals, value = incomplete.partition("=")
        if equals:
            return [completion(value, FILE)]
        return [completion(known, NAME) for known in sorted(os.environ) if known.startswith(name)]


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
        "--overlay-store",
        type=DirectoryPath(),
        metavar="DIR",
        help="Where to put, encrypted, what memory has no room for.",
    ),
)

confinement_options = option_group(
    click.option(
        "--root", "as_root", is_flag=True, help="As an ordinary user, let it be root in the image, with all its users."
    ),
    click.option("--privileged", is_flag=True, help="Let it do what you may, as root above all: unconfined."),
    click.option(
        "--pids-limit",
        type=click.IntRange(0, 1 << 22),
        metavar="N",
        help="How many processes and threads it may have (default: 2048; 0: any number).",
    ),
)
