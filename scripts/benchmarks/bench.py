"""The base of the jobs: the data, the peers, readings of cold mounts, and checks of results."""

from __future__ import annotations

import fcntl
import functools
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from removal import mounts_in, remove_tree

from benchmarks.data import Image, Say, Sizes, Store, remove_unfinished
from benchmarks.peer import Mounted, Peer
from benchmarks.peers import PEERS, Mystfuse
from benchmarks.reader import MIB, Result, checksum
from benchmarks.tools import (
    StrPath,
    WrongResult,
    check_on_disk,
    drop_caches,
    is_installed,
    read_into_page_cache,
    run,
    run_reader,
)

TOOLS = {
    "veritysetup": ("veritysetup",),
    "mke2fs+verity": ("mke2fs", "veritysetup"),
    "nbdkit": ("nbdkit", "nbdcopy", "nbdinfo"),
    "openssl": ("openssl",),
    "nbdkit+fuse2fs": ("nbdkit", "nbdfuse", "fuse2fs"),
    "traced": (),
    "local": (),
}
"""Contenders that mount nothing, and their programs."""


@functools.cache
def crc_of_zeros(size: int) -> int:
    """A file of ``size`` bytes with the contents that ``floor`` returns."""
    block = bytes(MIB)
    crc = 0
    for offset in range(0, size, MIB):
        crc = checksum([block[: size - offset]], crc)
    return crc


class Bench:
    """One run: everything that a job needs for one reading."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self.store = store
        self.sizes: Sizes = store.sizes
        self.scratch = scratch
        self.peers: dict[str, Peer] = {kind.name: kind(scratch) for kind in PEERS}
        self.notes: dict[str, None] = {}
        """Notes below the table; in order, each once."""

    @property
    def mystfuse(self) -> Mystfuse:
        peer = self.peers["mystfuse"]
        assert isinstance(peer, Mystfuse)
        return peer

    def missing(self, contender: str) -> str:
        """Why this machine does not measure a contender; "" if it does."""
        if contender in self.peers:
            return self.peers[contender].missing()
        absent = [tool for tool in TOOLS[contender] if not is_installed(tool)]
        return f"{', '.join(absent)} not installed" if absent else ""

    def note(self, text: str) -> None:
        self.notes[text] = None

    def match_read_ahead(self) -> None:
        """Give ``floor`` and ``limit`` the read-ahead of mystfuse's mounts."""
        with self.mystfuse.mount(self.store.sparse().image("small")) as mounted:
            Peer.read_ahead = mounted.read_ahead

    @contextmanager
    def cold(
        self,
        name: str,
        image: Image,
        *,
        ordinary: bool = False,
        writable: bool = False,
        from_storage: bool = False,
    ) -> Iterator[tuple[Peer, Mounted]]:
        """A fresh mount; the kernel's caches hold nothing but the image file, and not even that if ``from_storage``."""
        peer = self.peers[name]
        image = peer.variant(image)
        if from_storage:
            check_on_disk(image.path)
        with peer.mount(image, ordinary=ordinary, writable=writable) as mounted:
            if from_storage:
                drop_caches(image.path)
            else:
                self.make_cold(image)
            yield peer, mounted

    def make_cold(self, image: Image) -> None:
        drop_caches()
        read_into_page_cache(image.path)

    def read(
        self, peer: Peer, command: str, *arguments: StrPath | int, expected: Result, ordinary: bool = False
    ) -> Result:
        """One reading, checked against the written data; against zeros for a peer that stores nothing."""
        result = run_reader(command, *arguments, ordinary=ordinary)
        if "crc" in expected and not peer.keeps_writes:
            expected = {**expected, "crc": crc_of_zeros(int(result["bytes"]))}
        check(f"{peer.name}, {command}", result, expected)
        return result

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A directory of its own for a job's files."""
        path = Path(tempfile.mkdtemp(prefix="made-", dir=self.scratch))
        try:
            yield path
        finally:
            remove_tree(path)


def check(what: str, result: Result, expected: Result) -> None:
    """
    Raises:
        WrongResult: a value differs from the expected one.
    """
    for name, value in expected.items():
        if result[name] != value:
            raise WrongResult(f"wrong result: {what}: {name} is {result[name]}, not {value}")


@contextmanager
def alone_in(work: Path, say: Say) -> Iterator[None]:
    """Waits for another run with the same data, since each would spoil the other's figures. Removes the remains of a
    killed run."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another benchmark that uses {work}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove_unfinished(work)
        yield


@contextmanager
def open_scratch(work: Path) -> Iterator[Path]:
    """A directory for the time of a run, which other users may enter."""
    path = Path(tempfile.mkdtemp(prefix=".scratch-", dir=work)).resolve()
    try:
        os.chmod(path, 0o755)  # nosec B103  # ordinary users read from it
        _open_fuse(path)
        yield path
    finally:
        # Do not empty a mount that failed to unmount.
        if not mounts_in(path):
            remove_tree(path)


def _open_fuse(scratch: Path) -> None:
    """Where /dev/fuse is closed to ordinary users, as on a machine without udev, cover it with an open one: in our
    mount namespace alone, which we have if we are its first process."""
    if os.getpid() != 1 or os.getuid() or os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        return
    node = scratch / "fuse"
    os.mknod(node, stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    run("mount", "--bind", node, "/dev/fuse")
