"""The common part of the commands that read an image without mounting it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import click
import trio

from mystfuse.cli.given_image import GivenImage, image_options
from mystfuse.cli.options import ImagePath, io_timeout_option, option_group
from mystfuse.cli.progress import progress
from mystfuse.cli.text import warn
from mystfuse.devices.patience import open_file
from mystfuse.errors import ImageReadError, MystfuseError, innermost
from mystfuse.fuse.control_directory_names import CONTROL_NAME, IMAGE_NAME
from mystfuse.mounting.daemon_logs import log_to_stderr
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.image_tree import ImageTree
from mystfuse.tree.open import open_present_tree, open_tree

T = TypeVar("T")

_HELP = {
    errno.ENOENT: "mystfuse ls {image} lists what there is",
    errno.ENOTDIR: "mystfuse ls {image} lists what there is",
    errno.EISDIR: "ls lists it, extract copies it",
}
"""What helps where a path in an image is not what it should be."""
MAX_SHOWN = 10
"""Kinds of things that a warning names."""

reading_options = option_group(image_options, io_timeout_option, click.argument("image", type=ImagePath()))


def read_image(given: Mapping[str, Any], action: Callable[[ImageTree], Awaitable[T]], *paths: str) -> T:
    """Open the image that ``reading_options`` name, and run an action on its tree.

    ^C, SIGTERM and SIGHUP cancel the action.

    Args:
        paths: those in the image that the user has named.

    Raises:
        MystfuseError: opening or reading the image failed, or it has no such path.
        OSError: as the action does.
        KeyboardInterrupt: after such a signal, when the action has cleaned up.
    """
    try:
        image = GivenImage(given["image"], given)
    except ImageReadError as error:
        if not os.path.lexists(given["image"]) and any(os.path.isfile(path) for path in paths):
            raise ImageReadError(f"{error} (the image comes first, then the path in it)") from None
        raise
    trust = image.load_trust()

    async def read() -> T:
        async with open_tree(image.source, trust, keys, image.io_timeout, progress) as tree:
            if not tree.trust.is_vouched_for:
                warn(f"{image.source.name} is {tree.trust_explanation}")
            return await action(tree)

    try:
        keys = image.load_keys(trust)
        if keys:
            keys.start_deriver()
        log_to_stderr()
        return trio.run(run_until_signal, read)
    except MystfuseError as error:
        raise error.about(image.source.name) from error
    except OSError as error:
        if error.filename in paths and error.errno in _HELP:
            what = _HELP[error.errno].format(image=given["image"])
            raise MystfuseError(f"{given['image']}: {error.filename}: {error.strerror} ({what})") from error
        raise
    finally:
        image.source.close()


def read_mount(mountpoint: str, io_timeout: float, action: Callable[[ImageTree], Awaitable[T]]) -> T:
    """Run an action on the tree of a mount as it is now; later writes do not show. Signals end it as ``read_image``.

    Args:
        mountpoint: of a mount of ours, which answers.

    Raises:
        MystfuseError: reading the mount's state failed.
        KeyboardInterrupt: after such a signal, when the action has cleaned up.
    """
    merged = os.path.join(resolve_mountpoint(mountpoint), os.fsdecode(CONTROL_NAME), os.fsdecode(IMAGE_NAME))
    source = open_file(merged, io_timeout)

    async def read() -> T:
        async with open_present_tree(source, io_timeout) as tree:
            return await action(tree)

    try:
        log_to_stderr()
        return trio.run(run_until_signal, read)
    except MystfuseError as error:
        raise error.about(mountpoint) from error
    finally:
        source.close()


async def run_until_signal(action: Callable[[], Awaitable[T]]) -> T:
    """Run ``action``; a signal that ends a process cancels it, so that it can clean up."""
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    results: list[T] = []
    error: BaseException = KeyboardInterrupt()
    try:
        with trio.open_signal_receiver(*numbers) as signals:
            async with trio.open_nursery() as nursery:

                async def act() -> None:
                    results.append(await action())
                    nursery.cancel_scope.cancel()

                nursery.start_soon(act)
                async for _ in signals:
                    nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = innermost(group)
    else:
        if results:
            return results[0]
    raise error


async def write_stdout(data: bytes | bytearray) -> None:
    """Write bytes to stdout; its reader may take any time.

    Raises:
        OSError: BrokenPipeError when its reader has gone.
    """
    # When we are ended while the thread waits, we leave it behind; it holds no lock of Python's then.
    await call_in_thread(partial(_write_all, data))


def _write_all(data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def refuse_terminal(what: str) -> None:
    """Raise UsageError if stdout is a terminal."""
    if os.isatty(1):
        raise click.UsageError(f"{what} goes to a file or a pipe, not to a terminal")


def warn_of_omissions(what: str, omitted: Mapping[str, int]) -> None:
    """Say in one line what could not be copied, and how often."""
    if omitted:
        things = sorted(omitted.items(), key=lambda item: (-item[1], item[0]))
        more = f", and {len(things) - MAX_SHOWN} others" if len(things) > MAX_SHOWN else ""
        warn(f"{what}: {', '.join(f'{name} ({count})' for name, count in things[:MAX_SHOWN])}{more}")


async def count_bytes(tree: ImageTree, path: str) -> int | None:
    """About how many bytes the files below a path have, for a progress bar; None if that is not known."""
    if path.strip("/."):
        return None
    statistics = await tree.volume.statistics()
    return (statistics.blocks - statistics.free_blocks) * statistics.block_size
