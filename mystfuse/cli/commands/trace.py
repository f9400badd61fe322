"""``mystfuse trace``: write down which parts of its image a mount has read, for ``--prefetch`` on other machines."""

from __future__ import annotations

import os

import click

from mystfuse.cli.commands.status import TIMEOUT, read_status
from mystfuse.cli.options import MountpointPath
from mystfuse.devices.patience import wait_for_storage
from mystfuse.errors import FormatError, MountError, MystfuseError
from mystfuse.fuse.control_directory_names import CONTROL_NAME, TOUCHED_NAME
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.remote.trace import MAX_RANGES, Trace

MAX_TOUCHED = 4 << 20
"""Bytes of the control file."""


@click.command("trace", short_help="Write down what of its image a mount has read, for --prefetch.")
@click.argument("mountpoint", type=MountpointPath())
def command(mountpoint: str) -> None:
    """Write to stdout which parts of its image the mount on MOUNTPOINT has read until now, in the order of the first
    time: start the program, and trace when it is ready.

    With --prefetch FILE, a mount of the same image elsewhere fetches exactly that, first. It does not matter whether
    the traced one is elsewhere too. Noted are parts of 16 KiB, 1 GiB of them at most, and what the kernel reads ahead.
    """
    trace = _trace_of(mountpoint)
    if not trace.ranges:
        raise MystfuseError(f"{mountpoint}: nothing was read yet")
    click.echo(trace.pack(), nl=False)


def _trace_of(mountpoint: str) -> Trace:
    """What a mount has read.

    Raises:
        MountError: it is not a mount of ours, has no control directory, or does not answer.
        FormatError: its image has no hash tree, by which it would be noted.
    """
    status = read_status(mountpoint)
    if status.get("root_hash") is None:
        raise FormatError(f"{mountpoint}: its image has no hash tree, and what is read of it is not noted")
    path = os.path.join(resolve_mountpoint(mountpoint), os.fsdecode(CONTROL_NAME), os.fsdecode(TOUCHED_NAME))

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read(MAX_TOUCHED + 1)

    try:
        said = wait_for_storage(read, mountpoint, TIMEOUT)
    except OSError as error:
        raise MountError(f"{path}: {error.strerror} (a daemon of an older version?)") from error
    try:
        size, pairs = int(status["image_size"]), [line.split() for line in said.decode("ascii").splitlines()]
        ranges = [(int(offset), min(int(length), size - int(offset))) for offset, length in pairs]
        trace = Trace(
            size,
            bytes.fromhex(status["root_hash"]),
            # Behind the end is the hash tree of another file.
            tuple((offset, length) for offset, length in ranges if length > 0)[:MAX_RANGES],
        )
        trace.pack()
    except (KeyError, ValueError, TypeError) as error:
        raise MountError(f"{path}: not what a mount says ({error})") from error
    return trace
