"""Running mke2fs: it makes a file system in a file, and fills it with a directory."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.superblock import Superblock
from mystfuse.system.atomic_file import WritableFile
from mystfuse.system.child_process import run_program
from mystfuse.system.wait_readable import wait_readable

_SERVER_PATIENCE = 1.0
"""Seconds: mke2fs may notice that a process has ended before the kernel says so."""


@dataclass(frozen=True, slots=True)
class Format:
    """What all runs for one image have in common."""

    uuid: UUID
    hash_seed: UUID
    block_size: int | None = None
    """None: mke2fs's choice."""
    type: str = "ext2"
    """ext2, ext3 or ext4."""
    features: str | None = None
    """As mke2fs -O takes them; None: those of the type."""
    has_journal: bool = False
    """Whether this type and these features have one."""
    is_smallest: bool = False
    """Without what a file system has to spare: blocks reserved for root, and for growing later; with the smallest
    journal."""
    epoch: int | None = None
    """The time of all that mke2fs makes, in seconds; None: now."""
    trace: Callable[[str], None] | None = None
    """Called with each command line that makes a file system."""


@dataclass(frozen=True, slots=True)
class Source:
    """A directory to fill a file system with."""

    path: str
    """As mke2fs is to read it."""
    name: str
    """As the user knows it."""
    server: int | None = None
    """pidfd of the process that shows it, without which nobody reads it; None: it is on disk."""


def fill(file: WritableFile, source: Source, size: int, inodes: int, form: Format) -> bool:
    """Make a file system of ``size`` bytes and fill it; False when the source does not fit.

    Args:
        inodes: the minimum; mke2fs makes this many, or more by its own rule, unless the smallest is wanted.

    Raises:
        MystfuseError: mke2fs is missing, or failed in another way.
    """
    command, environment = _command(form)
    place = [file.path, f"{size // 1024}k"]
    servers = [server for server in (file.server, source.server) if server is not None]
    if form.is_smallest or inodes > _inodes_by_default([*command, "-n", *place], environment, file):
        command += ["-N", str(inodes)]
    command += ["-d", source.path, *place]
    if form.trace is not None:
        form.trace(" ".join(command))
    # If we are killed, mke2fs ends too. Not by preexec_fn: Python loses a ^C that comes as it forks.
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        # Nor when we have been killed before it said so.
        script = 'test "$PPID" = "$0" && exec "$@"'
        command = [setpriv, "--pdeathsig", "KILL", "/bin/sh", "-c", script, str(os.getpid()), *command]
    status, said = run_program(command, environment, file.fd, servers, with_errors=True, name="mke2fs")
    if status == 0:
        return True
    if status < 0:
        raise MystfuseError(f"mke2fs was ended by {signal.Signals(-status).name}")
    if "Could not allocate" in said:
        return False
    if "Insufficient space to store extended attribute data" in said:
        raise MystfuseError(f"{source.name}: a file's extended attributes do not fit one block (give --block-size)")
    if wait_readable(servers, _SERVER_PATIENCE):
        raise MystfuseError("mke2fs: a process that it needs has ended")
    message = " ".join(said.split()) or f"exit status {status}"
    raise MystfuseError(f"mke2fs failed: {message}")


def try_empty(size: int, inodes: int, form: Format) -> Superblock | None:
    """The superblock of an empty file system of ``size`` bytes and about ``inodes`` inodes, made in memory; None when
    mke2fs refuses to make one: it is too small for its own metadata.

    Raises:
        MystfuseError: mke2fs is missing, or memory is short.
    """
    return try_empty_or_say(size, inodes, form)[0]


def try_empty_or_say(size: int, inodes: int, form: Format) -> tuple[Superblock | None, str]:
    """As ``try_empty``, and what mke2fs says when it refuses.

    Raises:
        MystfuseError: as ``try_empty``; UnsupportedFeature: the file system has a feature that mystfuse cannot read.
    """
    command, environment = _command(form)
    descriptor = os.memfd_create("mystfuse")
    try:
        os.ftruncate(descriptor, size)
        place = [f"/proc/self/fd/{descriptor}", f"{size // 1024}k"]
        command += ["-N", str(inodes), *place]
        status, said = run_program(command, environment, descriptor, [], with_errors=True, name="mke2fs")
        if status:
            return None, " ".join(said.replace(f"/proc/self/fd/{descriptor}: ", "").split())
        return read_superblock(descriptor), ""
    except OSError as error:
        raise MystfuseError(f"a file system of {size} bytes cannot be tried in memory: {error.strerror}") from error
    finally:
        os.close(descriptor)


def read_superblock(fd: int) -> Superblock:
    """The superblock of the file system in a file; raises MystfuseError if it is none."""
    return Superblock.parse(os.pread(fd, SUPERBLOCK_SIZE, SUPERBLOCK_OFFSET))


def _command(form: Format) -> tuple[list[str], dict[str, str]]:
    """The beginning of a command line, and the environment for it."""
    mke2fs = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mke2fs is None:
        raise MystfuseError("mke2fs is not installed (apt install e2fsprogs)")
    command = [mke2fs, "-q", "-F", "-t", form.type, "-U", str(form.uuid)]
    features = [] if form.features is None else [form.features]
    extended = f"hash_seed={form.hash_seed}"
    if form.type != "ext2" or features:
        # By default it asks the kernel of this machine whether that can be left to a mount.
        extended += ",lazy_itable_init=0,lazy_journal_init=0"
    command += ["-E", extended]
    if form.block_size is not None:
        command += ["-b", str(form.block_size)]
    if form.is_smallest:
        command += ["-m", "0"]
        features.insert(0, "^resize_inode")
        if form.has_journal:
            command += ["-J", f"size={_journal_size(form.block_size)}"]
    if features:
        command += ["-O", ",".join(features)]
    # mke2fs sorts names by the locale, and we parse its messages.
    environment = {**os.environ, "LC_ALL": "C"}
    if form.epoch is not None:
        environment["E2FSPROGS_FAKE_TIME"] = str(max(form.epoch, 1))
    return command, environment


def _journal_size(block_size: int | None) -> int:
    """MiB of the smallest journal: 1024 blocks (kernel, include/linux/jbd2.h, JBD2_MIN_JOURNAL_BLOCKS)."""
    return (block_size or 4096) // 1024


def _inodes_by_default(dry_run: list[str], environment: dict[str, str], file: WritableFile) -> int:
    """The number of inodes that mke2fs would make by itself: it depends on mke2fs.conf, so we ask mke2fs."""
    servers = [] if file.server is None else [file.server]
    dry_run = [word for word in dry_run if word != "-q"]
    match = re.search(r"\b(\d+) inodes\b", run_program(dry_run, environment, file.fd, servers).said)
    # Without an answer we request no number. The real run will report the error.
    return int(match[1]) if match else sys.maxsize
