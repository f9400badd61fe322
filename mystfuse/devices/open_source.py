"""Opening what a user names as an image: a file, a ``file:`` URL, or the address of an image elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from mystfuse.devices.patience import Opening, open_file
from mystfuse.devices.remote_options import LOCAL, RemoteOptions
from mystfuse.devices.source import FileSource
from mystfuse.errors import UsageError

if TYPE_CHECKING:
    from mystfuse.devices.remote_source import RemoteSource

StrPath = str | os.PathLike[str]


def open_source(name: StrPath, io_timeout: float, options: RemoteOptions = LOCAL) -> FileSource | RemoteSource:
    """Open an image. That of an address is opened in the background: its ``size`` waits for it.

    Raises:
        ImageReadError, FormatError: as ``FileSource``; StorageTimeout after ``io_timeout`` seconds.
        UsageError: no address, or options that do not go together.
        MystfuseError: the fetcher cannot be started.
    """
    local = local_path(name)
    if local is not None:
        _refuse_remote_options(options)
        return open_file(local, io_timeout)
    # Only here: a local image needs none of it.
    from mystfuse.devices.open_remote import open_remote

    return open_remote(os.fspath(name), io_timeout, options)


def opening_of(
    name: StrPath, io_timeout: float, options: RemoteOptions = LOCAL
) -> tuple[Callable[[], FileSource | RemoteSource], Callable[[], None]]:
    """The same for a thread that may be left behind: what opens it there, until it has been opened altogether, and what
    is to be called when nobody waits for that any more."""
    local = local_path(name)
    if local is not None:
        _refuse_remote_options(options)
        opening = Opening(local)
        return opening.run, opening.abandon
    from mystfuse.devices.open_remote import open_remote

    source = open_remote(os.fspath(name), io_timeout, options)

    def run() -> RemoteSource:
        source.open()
        return source

    return run, source.close


def local_path(name: StrPath) -> StrPath | None:
    """The path that a word names, a ``file:`` URL included; None for the address of an image elsewhere.

    Source: RFC 8089.

    Raises:
        UsageError: a URL of a file on another machine.
    """
    text = os.fspath(name)
    if text[:6].lower() == "file:/":
        host, slash, rest = text[7:].partition("/") if text[6:7] == "/" else ("", "/", text[6:])
        if host.lower() not in ("", "localhost") or not slash:
            raise UsageError(f"{text}: the file of another machine: write file:///PATH")
        # Only here: hardly anybody writes one.
        from urllib.parse import unquote_to_bytes

        return os.fsdecode(unquote_to_bytes("/" + rest))
    return None if is_address(text) else name


def is_address(name: StrPath) -> bool:
    """Whether a word is the address of an image elsewhere."""
    text = os.fspath(name)
    if not isinstance(text, str) or "://" not in text:
        return False
    # Only here: hardly any path has that in it.
    from mystfuse.remote.address import is_remote

    return is_remote(text)


def name_of(address: StrPath) -> str:
    """An address for messages: without passwords and signatures."""
    from mystfuse.remote.address import Address

    text = os.fspath(address)
    return Address(text.partition(":")[0].lower(), text).name  # type: ignore[arg-type]


def _refuse_remote_options(options: RemoteOptions) -> None:
    if options.mirrors:
        raise UsageError("--mirror goes with the address of an image elsewhere")
