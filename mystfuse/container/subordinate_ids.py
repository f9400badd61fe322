"""The users and groups that the system lets an ordinary user have besides their own, and putting them into a user
namespace: that takes privileges, which newuidmap and newgidmap have.

Sources: subuid(5), subgid(5), newuidmap(1), getsubids(1), user_namespaces(7).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mystfuse.errors import MystfuseError

SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")
NEEDED = 65535
"""So many, with root, are all numbers of 16 bits: a distribution's users, _apt (42 or 100 and up) and nobody (65534)
among them. useradd(8) gives one more."""
_FIRST = 100000
"""The first that useradd(8) gives (SUB_UID_MIN)."""
_MAX_LINES = 340
"""Of a map (UID_GID_MAP_MAX_EXTENTS)."""
_PATIENCE = 30
"""Seconds for each of the programs."""


class NoSubordinateIds(MystfuseError):
    """The system gives us no other users; the message says what is missing, and what gives them."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers of users or groups that follow one another."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class SubordinateIds:
    """Users and groups that an ordinary user may have besides their own."""

    uids: Sequence[Range]
    gids: Sequence[Range]

    def write_maps(self, pid: int) -> None:
        """Map them in the user namespace that the process ``pid`` has just made: our own user and group are 0 there,
        and these are 1 and up.

        Raises:
            NoSubordinateIds: newuidmap or newgidmap failed.
        """
        _run_mapper("newuidmap", pid, os.getuid(), self.uids)
        _run_mapper("newgidmap", pid, os.getgid(), self.gids)


def find_subordinate_ids() -> SubordinateIds:
    """Those of our user.

    Raises:
        NoSubordinateIds: there are none, or fewer than ``NEEDED``, or no programs that map them.
    """
    for name in ("newuidmap", "newgidmap"):
        if shutil.which(name) is None:
            raise NoSubordinateIds(f"{name} is not installed (apt install uidmap)")
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        raise NoSubordinateIds(f"user {uid} has no name (getent passwd {uid}), as newuidmap wants") from None
    found: list[list[Range]] = []
    for path, what in ((SUBUID, "users"), (SUBGID, "groups")):
        ranges = _ranges_of((user, str(uid)), path) or _ask_directory_service(user, path)
        count = sum(each.count for each in ranges)
        if count < NEEDED:
            says = f"{count} {what} for {user}, and {NEEDED} are needed" if count else f"no line for {user}"
            raise NoSubordinateIds(f"{path} has {says} (as root: {_advice(user)})")
        found.append(ranges)
    return SubordinateIds(*found)


def _ranges_of(owners: Sequence[str], path: Path) -> list[Range]:
    """The ranges that a file of the form NAME:FIRST:COUNT gives to a user, in its order; none if it cannot be read."""
    return [each for owner, each in _read(path) if owner in owners][: _MAX_LINES - 1]


def _read(path: Path) -> list[tuple[str, Range]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    matches = (re.fullmatch(r"([^:#]+):(\d{1,10}):(\d{1,10})", line.strip()) for line in lines)
    return [(match[1], Range(int(match[2]), int(match[3]))) for match in matches if match and int(match[3])]


def _ask_directory_service(user: str, path: Path) -> list[Range]:
    """The ranges that another source than the files gives (``subid:`` in nsswitch.conf)."""
    program = shutil.which("getsubids")
    if program is None:
        return []
    words = [program, *(["-g"] if path == SUBGID else []), user]
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    matches = re.findall(r"^\d+: \S+ (\d{1,10}) (\d{1,10})$", result.stdout, re.MULTILINE)
    return [Range(int(first), int(count)) for first, count in matches if int(count)][: _MAX_LINES - 1]


def _advice(user: str) -> str:
    """The command that gives a user what nobody has."""
    taken = [each.first + each.count for path in (SUBUID, SUBGID) for _, each in _read(path)]
    first = max(_FIRST, *taken, 0)
    numbers = f"{first}-{first + NEEDED}"
    return f"usermod --add-subuids {numbers} --add-subgids {numbers} {user}"


def _run_mapper(name: str, pid: int, own: int, ranges: Sequence[Range]) -> None:
    words = [name, str(pid), "0", str(own), "1"]
    inside = 1
    for each in ranges:
        words += [str(inside), str(each.first), str(each.count)]
        inside += each.count
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise NoSubordinateIds(f"{name} does not answer") from error
    except OSError as error:
        raise NoSubordinateIds(f"{name}: {error.strerror}") from error
    if result.returncode:
        message = " ".join(result.stderr.split()).removeprefix(f"{name}: ") or f"exit status {result.returncode}"
        raise NoSubordinateIds(f"{name}: {message}{_why_powerless()}")


def _why_powerless() -> str:
    """Why a program has no more privileges than we have, though its file gives it some."""
    status = Path("/proc/self/status").read_text()
    return " (no-new-privileges is set here, which forbids it)" if re.search(r"^NoNewPrivs:\t1", status, re.M) else ""
