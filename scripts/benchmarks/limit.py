"""What is physically possible: a C program (``limit.c``) that answers verified reads of one file, and nothing else.

    python -m benchmarks.limit MOUNTPOINT PROGRAM ARGUMENT...

mounts, and becomes that program.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.data import Image
from benchmarks.peer import Peer, served, set_read_ahead
from benchmarks.tools import BenchmarkError, StrPath, as_user, is_installed, run
from mystfuse.formats.verity import VERITY_SUPERBLOCK_SIZE, TreeGeometry, VeritySuperblock
from mystfuse.kernels import native
from mystfuse.mounting.fusermount import run_fusermount
from mystfuse.system import libc

FILE = "big"
"""The one file, in the image's root directory."""
SOURCES = Path(native.__path__[0])
"""``hashing.c``, mystfuse's own."""
_READ_ONLY, _NO_SUID, _NO_DEVICES = 1, 2, 4
"""<sys/mount.h>"""


class Limit(Peer):
    name = "limit"

    def missing(self) -> str:
        if not is_installed("cc"):
            return "no C compiler (cc)"
        try:
            self._program()
        except BenchmarkError as error:
            return f"it does not compile: {error}"
        return ""

    @functools.cache  # noqa: B019  # there is one, as long as we run
    def _program(self) -> Path:
        """Compile it."""
        program = self.scratch / "limit"
        here = Path(__file__).with_name("limit.c")
        options = "-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCES}"
        run("cc", *options, "-o", program, here, SOURCES / "hashing.c", "-lcrypto")
        return program

    @contextmanager
    def _mount(self, image: Image, mountpoint: Path, writable: bool, ordinary: bool) -> Iterator[int | None]:
        command: list[StrPath] = [
            sys.executable,
            "-m",
            "benchmarks.limit",
            mountpoint,
            self._program(),
            *arguments(image),
        ]
        with served(as_user(command, ordinary), mountpoint) as pid:
            if not ordinary:
                set_read_ahead(mountpoint, self.read_ahead)
            yield pid


def arguments(image: Image) -> list[str]:
    """What ``limit.c`` has to know of an image."""
    with image.path.open("rb") as file:
        file.seek(image.hash_offset)
        superblock = VeritySuperblock.parse(file.read(VERITY_SUPERBLOCK_SIZE))
    tree = TreeGeometry.of(superblock, image.hash_offset)
    sizes = superblock.algorithm, superblock.hash_type, superblock.data_block_size, superblock.hash_block_size
    if sizes != ("sha256", 1, 4096, 4096):
        raise BenchmarkError(f"limit does not know this hash tree: {sizes}")
    described = run("debugfs", "-R", f"stat /{FILE}", image.path)
    size = re.search(r"Size: (\d+)", described)
    if size is None:
        raise BenchmarkError(f"debugfs says nothing of {FILE}")
    levels = [f"@{level.offset}:{level.blocks}" for level in tree.levels]
    return [str(image.path), size[1], superblock.salt.hex() or "-", image.root_hash, *levels, *extents(described)]


def extents(described: str) -> list[str]:
    """The places of a file's blocks, by debugfs's ``stat``: ``(0-11):1000-1011, (IND):1012, (12):1013``."""
    found = []
    for first, last in re.findall(r"\(\d+(?:-\d+)?\):(\d+)(?:-(\d+))?", described):
        found.append(f"{first}:{int(last or first) - int(first) + 1}")
    return found


def mount(mountpoint: str) -> int:
    """Mount as root, or through fusermount3; returns the descriptor of /dev/fuse."""
    if os.getuid():
        receiver, sender = socket.socketpair()
        options = "ro,nosuid,nodev,default_permissions,subtype=limit,fsname=limit"
        result = run_fusermount(["-o", options, "--", mountpoint], sender)
        if result.returncode:
            sys.exit(result.stderr.strip())
        return socket.recv_fds(receiver, 1, 1)[1][0]
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions"
    flags = _READ_ONLY | _NO_SUID | _NO_DEVICES
    libc.call("mount", b"limit", os.fsencode(mountpoint), b"fuse.limit", ctypes.c_ulong(flags), data.encode())
    return descriptor


def main(mountpoint: str, program: str, *words: str) -> None:
    """Mount, and become the program."""
    descriptor = mount(mountpoint)
    os.set_inheritable(descriptor, True)
    os.execv(program, [program, str(descriptor), *words])  # nosec B606


if __name__ == "__main__":
    main(*sys.argv[1:])
