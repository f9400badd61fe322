"""Running other programs, and ending a benchmark when something is wrong."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reader import Result

StrPath = str | os.PathLike[str]
ORDINARY_USER = "nobody"
READER = Path(__file__).with_name("reader.py")
TIMEOUT = 1800
"""Seconds that any program may take."""


class BenchmarkError(Exception):
    """Something that should work failed."""


class LeftOut(BenchmarkError):
    """This machine has no means to measure it, which is not an error."""


class WrongResult(BenchmarkError):
    """A read returned other data than was written."""


def user_ids() -> tuple[int, int]:
    """User and group of an ordinary user: our own, unless that is root."""
    if os.getuid():
        return os.getuid(), os.getgid()
    entry = pwd.getpwnam(ORDINARY_USER)
    return entry.pw_uid, entry.pw_gid


def as_user(command: Sequence[StrPath], ordinary: bool) -> list[str]:
    """The command, run as an ordinary user if ``ordinary`` and we are root."""
    words = [os.fspath(word) for word in command]
    if not ordinary or os.getuid():
        return words
    uid, gid = user_ids()
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--", *words]


def check_ordinary_user() -> None:
    """
    Raises:
        LeftOut: we are root, and an ordinary user has no access to our code.
    """
    if os.getuid():
        return
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        raise LeftOut("/dev/fuse is closed to ordinary users")
    try:
        run(*mystfuse_command(), "--version", ordinary=True)
    except BenchmarkError as error:
        raise LeftOut(f"{ORDINARY_USER} cannot run the code where it is") from error


def check_installed(tool: str) -> None:
    """
    Raises:
        LeftOut: a program that takes a reading is not there.
    """
    if not is_installed(tool):
        raise LeftOut(f"{tool} is not installed")


def check_on_disk(path: Path) -> None:
    """
    Raises:
        LeftOut: a file lies in memory, so that there is no storage to read it from.
    """
    kind = run("stat", "--file-system", "--format=%T", path).strip()
    if kind in ("tmpfs", "ramfs"):
        raise LeftOut(f"{path.parent} lies in memory ({kind}): choose another directory (--work)")


def run(*command: StrPath, ordinary: bool = False) -> str:
    """Run a program to its end; returns its output.

    Raises:
        BenchmarkError: it failed, with its last line.
    """
    words = as_user(command, ordinary)
    try:
        result = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except FileNotFoundError as error:
        raise BenchmarkError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{words[0]}: not done after {TIMEOUT} s") from error
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}").splitlines()[-1]
        raise BenchmarkError(f"{os.path.basename(command[0])}: {said}")
    return result.stdout


def run_reader(command: str, *arguments: StrPath | int, ordinary: bool = False) -> Result:
    """Run one command of ``reader.py`` in a process of its own."""
    words = [os.fspath(word) if not isinstance(word, int) else str(word) for word in arguments]
    python = os.path.realpath(sys.executable) if ordinary else sys.executable
    output = run(python, "-I", "-B", READER, command, *words, ordinary=ordinary)
    result: Result = json.loads(output)
    return result


def mystfuse_command() -> list[str]:
    """The command words that start mystfuse."""
    return [str(Path(sys.executable).with_name("mystfuse"))]


def is_installed(tool: str) -> bool:
    return shutil.which(tool) is not None


def drop_caches(*files: Path) -> None:
    """Drop the unused dentries and inodes of the whole machine, with which a FUSE mount's pages go, and the pages of
    some files; does nothing without root.

    Dropping the pages of all file systems would wait for ever for one that hangs, whoever has mounted it.
    """
    if os.getuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_into_page_cache(path: Path) -> None:
    """Read a file once, so that its storage does not matter."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
