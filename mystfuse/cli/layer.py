"""Writing a mount's changes as an OCI layer to a file or stdout, and saying what was made."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import trio

from mystfuse.cli.made_image import count
from mystfuse.cli.progress import progress
from mystfuse.cli.reading import run_until_signal, warn_of_omissions, write_stdout
from mystfuse.cli.source_date_epoch import source_date_epoch
from mystfuse.errors import UsageError
from mystfuse.system.atomic_file import AtomicFile, check_target
from mystfuse.system.units import describe_bytes
from mystfuse.tree.diff.written_changes import MountStates, open_mount_states
from mystfuse.tree.layer_file import MadeLayer, make_layer

STDOUT = "-"
_OTHER_COMPRESSIONS = (".zst", ".xz", ".bz2", ".tzst", ".txz")


def check_layer_name(path: str, force: bool) -> None:
    """Check what a layer is to be written to.

    Raises:
        UsageError: by its name it is to be compressed as we cannot.
        MystfuseError: it exists, or cannot be replaced.
    """
    if path.endswith(_OTHER_COMPRESSIONS):
        raise UsageError(f"--layer {path}: a layer is plain, or compressed by gzip (FILE.tar.gz)")
    source_date_epoch()
    if path != STDOUT:
        check_target(Path(path), force)


def check_two_names(layer: str, image: Path) -> None:
    """Raise UsageError if a layer and an image are to be written to one file."""
    if os.path.realpath(layer) == os.path.realpath(image):
        raise UsageError(f"{layer}: the layer and the new image cannot be one file")


def write_mount_layer(mountpoint: str, path: str, file: AtomicFile | None, io_timeout: float = math.inf) -> MadeLayer:
    """Write what has been written to a mount; ^C, SIGTERM and SIGHUP end it.

    Args:
        path: its name, as given.
        file: where to, which is committed; None: stdout.
        io_timeout: seconds that the mount gets for each answer.

    Raises:
        MystfuseError: as ``open_mount_states`` and ``make_layer``.
        KeyboardInterrupt: after such a signal.
    """

    async def write() -> MadeLayer:
        async with open_mount_states(mountpoint, io_timeout) as states:
            return await write_states_layer(states, path, file)

    return trio.run(partial(run_until_signal, write))


async def write_states_layer(states: MountStates, path: str, file: AtomicFile | None) -> MadeLayer:
    """As ``write_mount_layer``, of a mount whose states are open."""
    epoch = source_date_epoch()

    async def write_file(data: bytes | bytearray) -> None:
        assert file is not None
        file.write(data)

    latest_ns = None if epoch is None else epoch * 10**9
    made = await make_layer(states, path, write_stdout if file is None else write_file, latest_ns, progress)
    if file is not None:
        file.commit()
    warn_of_omissions("not in the layer", made.omitted)
    return made


def describe_layer(made: MadeLayer) -> str:
    """One line for people."""
    name = "the layer" if made.path == STDOUT else made.path
    diff_id = "" if made.diff_id == made.digest else f", diff_id {made.diff_id}"
    return (
        f"made {name}: {describe_bytes(made.size)}, {count(made.members, 'name')}, "
        f"{count(made.whiteouts, 'whiteout')}, "
        f"{made.digest}{diff_id}"
    )
