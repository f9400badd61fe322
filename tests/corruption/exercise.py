"""The operations in a mounted file system: read everything in it, then change it in every directory.

We keep every outcome: "ok" and the result, or the name of an errno. ``walk`` does the same to a kernel mount.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import stat
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.commands import SBIN

MAX_PATHS = 600
"""A loop of directories could go on for ever. The kernel lets none through; this bound does not rely on that."""
MAX_DEPTH = 40
MAX_CHANGED = 24
"""How many of the files that it found it changes."""
READ_AT_ONCE = 64 << 10
HEAD, TAIL = 640 << 10, 128 << 10
"""Bytes that it reads at the start and at the end of a file: sizes may be nonsense."""
TOOLS = (
    ("find", "-P", ".", "-ls"),
    ("getfattr", "-R", "-P", "-h", "-d", "-m", "-", "."),
    ("getfacl", "-R", "-P", "-p", "-n", "."),
)

Outcomes = dict[str, dict[str, str]]
"""path -> operation -> outcome."""


def code(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def digest(data: bytes) -> str:
    return "ok " + hashlib.sha256(data).hexdigest()[:12]


def outcome_of(function: Callable[[], Any]) -> str:
    try:
        value = function()
    except OSError as error:
        return code(error)
    return digest(value) if isinstance(value, bytes) else "ok"


def walk(root: str) -> Outcomes:
    """Read everything: listings, attributes, contents, targets, extended attributes."""
    outcomes: Outcomes = {}
    waiting = [("", 0)]
    while waiting and len(outcomes) < MAX_PATHS:
        path, depth = waiting.pop()
        full = os.path.join(root, path) if path else root
        found = outcomes[path] = {}
        try:
            status = os.lstat(full)
        except OSError as error:
            found["stat"] = code(error)
            continue
        found["stat"] = digest(
            repr((status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size, status.st_rdev,
                  status.st_mtime_ns)).encode()
        )  # fmt: skip
        found["xattr"] = outcome_of(lambda full=full: _xattrs(full))
        if stat.S_ISDIR(status.st_mode):
            names, found["list"] = _list(full)
            found["dots"] = outcome_of(lambda full=full: os.stat(full + "/.."))
            found["missing"] = outcome_of(lambda full=full: os.stat(full + "/no such name"))
            if depth < MAX_DEPTH:
                waiting += [(os.path.join(path, name), depth + 1) for name in sorted(names, reverse=True)]
        elif stat.S_ISREG(status.st_mode):
            found["read"] = _read(full, status.st_size)
        elif stat.S_ISLNK(status.st_mode):
            found["readlink"] = outcome_of(lambda full=full: os.fsencode(os.readlink(full)))
            found["follow"] = outcome_of(lambda full=full: os.stat(full))
    return outcomes


def _list(full: str) -> tuple[list[str], str]:
    names: list[str] = []
    try:
        with os.scandir(full) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > MAX_PATHS:
                    break
    except OSError as error:
        return names, code(error)
    return names, digest("\0".join(sorted(names)).encode(errors="surrogateescape"))


def _xattrs(full: str) -> bytes:
    names = sorted(os.listxattr(full, follow_symlinks=False))
    values = [(name, os.getxattr(full, name, follow_symlinks=False)) for name in names]
    return repr(values).encode()


def _read(full: str, size: int) -> str:
    """A digest of the readable bytes; with the first error, if there is one. Blocks behind an error are read too."""
    summary = hashlib.sha256()
    first: str | None = None
    positions = list(range(0, min(size, HEAD), READ_AT_ONCE))
    positions += range(max(size - TAIL, HEAD), size, READ_AT_ONCE)
    try:
        descriptor = os.open(full, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return code(error)
    try:
        for start in positions:
            position, end = start, min(start + READ_AT_ONCE, size)
            try:
                while position < end and (part := os.pread(descriptor, end - position, position)):
                    summary.update(part)
                    position += len(part)
            except OSError as error:
                first = first or code(error)
    finally:
        os.close(descriptor)
    return first or "ok " + summary.hexdigest()[:12]


def run_tools(root: str) -> dict[str, list[str]]:
    """What find, getfattr and getfacl complain about: the last words of each line."""
    said: dict[str, list[str]] = {}
    for words in TOOLS:
        result = subprocess.run(words, cwd=root, capture_output=True, check=False, env={"LC_ALL": "C", "PATH": SBIN})
        lines = result.stderr.decode(errors="replace").splitlines()
        said[words[0]] = sorted({line.rpartition(": ")[2] for line in lines})
    return said


class Writer:
    """Changes a file system by every operation, wherever possible; counts the outcomes."""

    def __init__(self, root: str, outcomes: Outcomes, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        """"operation errno" or "operation ok" -> how often."""
        self._root = root
        self._random = random.Random(seed)
        self._directories = [path for path, found in outcomes.items() if "list" in found]
        self._files = [path for path, found in outcomes.items() if "list" not in found and path]
        self._random.shuffle(self._files)
        # Entries that only make a directory large are links to one file.
        self._files.sort(key=lambda path: path.startswith("htree/"))

    def change(self) -> None:
        """Make a file of every kind in every directory, then change every file that was found, or most of them."""
        for path in self._directories[:40]:
            self._populate(path)
        for number, path in enumerate(self._files[:MAX_CHANGED]):
            self._change_file(path, number)

    def remove(self) -> None:
        """rm -r, then make new files everywhere."""
        self._remove_below(self._root, 0)
        self._populate("")
        self._do("write", self._write, self._full("last"), b"last" * 100_000, os.O_CREAT | os.O_WRONLY)

    def _remove_below(self, full: str, depth: int) -> None:
        names, listed = _list(full)
        self.counts[f"list {listed.partition(' ')[0]}"] += 1
        for name in names:
            child = os.path.join(full, name)
            try:
                is_directory = stat.S_ISDIR(os.lstat(child).st_mode)
            except OSError as error:
                self.counts[f"lstat {code(error)}"] += 1
                # The name alone may still be removable.
                is_directory = False
            if is_directory and depth < MAX_DEPTH:
                self._remove_below(child, depth + 1)
                self._do("rmdir", os.rmdir, child)
            else:
                self._do("unlink", os.unlink, child)

    def _populate(self, path: str) -> None:
        full = self._full(path)
        new, made, link = (os.path.join(full, name) for name in (".new-file", ".new-dir", ".new-link"))
        self._do("create", self._write, new, b"new" * 2000, os.O_CREAT | os.O_WRONLY)
        self._do("mkdir", os.mkdir, made)
        self._do("create", self._write, made + "/inside", b"x", os.O_CREAT | os.O_WRONLY)
        self._do("symlink", os.symlink, "t" * self._random.choice((10, 300)), link)
        self._do("mknod", os.mknod, os.path.join(full, ".new-fifo"), stat.S_IFIFO | 0o600)
        self._do("setxattr", os.setxattr, new, "user.new", b"v" * self._random.choice((10, 600)))
        self._do("link", os.link, new, os.path.join(full, ".new-hard"))
        self._do("rename", os.rename, new, os.path.join(full, ".renamed"))
        other = self._full(self._random.choice(self._directories or [""]))
        self._do("rename", os.rename, made, os.path.join(other, ".moved"))
        self._do("setxattr", os.setxattr, full, "user.dir", b"directory")
        self._do("chmod", os.chmod, full, 0o755)

    def _change_file(self, path: str, number: int) -> None:
        full = self._full(path)
        try:
            status = os.lstat(full)
        except OSError as error:
            self.counts[f"lstat {code(error)}"] += 1
            return
        if stat.S_ISREG(status.st_mode):
            self._do("append", self._write, full, b"appended" * 500, os.O_WRONLY | os.O_APPEND)
            self._do("write", self._write, full, b"written", os.O_WRONLY)
            self._do("write", self._write, full, b"in the middle", os.O_WRONLY, status.st_size // 2)
            size = self._random.choice((0, 1, 700, 13 * 1024, status.st_size // 2, status.st_size + 5000, 1 << 32))
            self._do("truncate", os.truncate, full, size)
            self._do("setxattr", os.setxattr, full, "user.more", b"m" * self._random.choice((8, 500, 3000)))
            for name in ("user.poster", "user.block", "user.more", "user.absent"):
                self._do("removexattr", os.removexattr, full, name)
        if not stat.S_ISLNK(status.st_mode):
            self._do("chmod", os.chmod, full, 0o640)
        self._do("chown", os.lchown, full, 1000, 70000)
        self._do("utime", os.utime, full, (1, 2), follow_symlinks=False)
        self._do("link", os.link, full, self._full(f".hard-{number}"), follow_symlinks=False)
        other = self._full(self._random.choice(self._directories or [""]))
        self._do("rename", os.rename, full, os.path.join(other, f".renamed-{number}"))
        if self._files and self._random.random() < 0.3:
            self._do("rename", os.rename, self._full(self._random.choice(self._files)), self._full(f".over-{number}"))

    def _write(self, full: str, data: bytes, flags: int, offset: int = 0) -> None:
        descriptor = os.open(full, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
        try:
            os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def _do(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        try:
            function(*args, **kwargs)
            said = "ok"
        except OSError as error:
            said = code(error)
        self.counts[f"{name} {said}"] += 1
        return said

    def _full(self, path: str) -> str:
        return os.path.join(self._root, path)


def read_merged_image(root: str) -> str:
    """Read ``.mystfuse/image`` to its end."""
    try:
        with open(os.path.join(root, ".mystfuse/image"), "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except OSError as error:
        return code(error)
    return "ok"


def exercise(root: str, seed: int, thorough: bool, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run all steps; ``tell`` gets a message before each step and its outcome afterwards.

    Args:
        thorough: also with standard tools, and once more after all changes.
    """

    def step(name: str, function: Callable[[], Any]) -> Any:
        tell({"begin": name})
        value = function()
        tell({"end": name, "value": value})
        return value

    outcomes: Outcomes = step("walk", lambda: walk(root))
    step("statfs", lambda: outcome_of(lambda: os.statvfs(root)))
    writer = Writer(root, outcomes, seed)
    if thorough:
        step("tools", lambda: run_tools(root))
    step("change", writer.change)
    step("image", lambda: read_merged_image(root))
    if thorough:
        step("walk again", lambda: walk(root))
    step("remove", writer.remove)
    if thorough:
        step("image again", lambda: read_merged_image(root))
    step("counts", lambda: dict(writer.counts))
    step("status", lambda: json.loads(Path(root, ".mystfuse/status.json").read_text()))
