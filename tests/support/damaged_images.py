"""Damaging images, and reading every byte of their mounts."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.commands import run

BLOCK = 4096
PER_BLOCK = 128
WALK = r"""
import errno, json, os, sys
root, source, expected = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
found = {}
for path, want in expected.items():
    full, got = os.path.join(root, path), "right"
    try:
        status = os.lstat(full)
        if [status.st_mode, status.st_uid, status.st_gid, status.st_nlink] != want["status"]:
            got = "WRONG status"
        if "target" in want and os.readlink(full) != want["target"]:
            got = "WRONG target"
        if "names" in want and set(os.listdir(full)) - {"lost+found"} != set(want["names"]):
            got = "WRONG names"
        if {name: os.getxattr(full, name, follow_symlinks=False).hex()
            for name in os.listxattr(full, follow_symlinks=False)} != want["xattrs"]:
            got = "WRONG xattrs"
        if "size" in want:
            if status.st_size != want["size"]:
                got = "WRONG size"
            first, position, step = None, 0, 65536
            data = open(os.path.join(source, path), "rb").read()
            with open(full, "rb", buffering=0) as file:
                while position < len(data):
                    try:
                        part = os.pread(file.fileno(), step, position)
                    except OSError as error:
                        # Past what cannot be read, to what can.
                        first = first or error
                        position = position // 4096 * 4096 + 4096
                        continue
                    if not part or part != data[position : position + len(part)]:
                        got = "WRONG bytes at %d" % position
                        break
                    position += len(part)
            if first and got == "right":
                raise first
    except OSError as error:
        # An error excuses what could not be seen, but not what was seen wrong before.
        got = got if got != "right" else errno.errorcode[error.errno]
    found[path] = got
print(json.dumps(found))
"""


def describe(root: Path) -> dict[str, dict[str, Any]]:
    """The expected result of a walk, by path."""
    expected: dict[str, dict[str, Any]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        entry: dict[str, Any] = {
            "status": [status.st_mode, status.st_uid, status.st_gid, status.st_nlink],
            "xattrs": {name: os.getxattr(path, name, follow_symlinks=False).hex()
                       for name in os.listxattr(path, follow_symlinks=False)},
        }  # fmt: skip
        if path.is_symlink():
            entry["target"] = os.readlink(path)
        elif path.is_dir():
            entry["names"] = os.listdir(path)
            if path == root:
                entry["status"][3] += 1  # lost+found
        else:
            entry["size"] = status.st_size
        expected[str(path.relative_to(root))] = entry
    return expected


@dataclass(frozen=True)
class Subject:
    """A signed image, and the places of everything in it."""

    image: Path
    source: Path
    trust: str
    hash_offset: int
    expected: Path
    """A JSON file: ``describe`` of the source."""
    data: dict[str, list[int]] = field(default_factory=dict)
    """path -> the blocks of the tree that contain its data and its block map, in the order of the file."""
    inode: dict[str, int] = field(default_factory=dict)
    """path -> the block of the tree that contains its inode."""

    def level_offset(self, level: int) -> int:
        """Three levels: 20480 data blocks are 160, 2 and 1 hash blocks, the top first behind the superblock."""
        return self.hash_offset + BLOCK * {2: 1, 1: 2, 0: 4}[level]

    def safe(self, damaged: set[int]) -> set[str]:
        """The paths that must read right when these data blocks of the tree are damaged."""
        if 0 in damaged:
            return set()
        safe = set()
        for path in self.data:
            chain = [".", *(str(parent) for parent in Path(path).parents if str(parent) != "."), path]
            if all(self.inode[part] not in damaged and damaged.isdisjoint(self.data[part]) for part in chain):
                safe.add(path)
        return safe


def walk(mountpoint: Path, subject: Subject) -> dict[str, str]:
    """Read everything that should exist; in a process that we can abandon, since a hang is a failure."""
    result = run(sys.executable, "-c", WALK, mountpoint, subject.source, subject.expected, timeout=40)
    found: dict[str, str] = json.loads(result.stdout)
    return found


def assert_never_wrong(found: dict[str, str]) -> None:
    for path, how in found.items():
        assert how in ("right", "EIO", "EUCLEAN"), (path, how)


def assert_sound(log: str) -> None:
    assert "Traceback" not in log, log
    assert "internal error" not in log, log


def read_at(image: Path, offset: int, length: int) -> bytes:
    with image.open("rb") as file:
        return os.pread(file.fileno(), length, offset)


def write_at(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), data, offset) == len(data)


def flip(image: Path, offset: int, mask: int = 1) -> None:
    write_at(image, offset, bytes([read_at(image, offset, 1)[0] ^ mask]))
