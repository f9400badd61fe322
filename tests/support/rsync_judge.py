"""What rsync and diff say about two directories, in the words of ``mystfuse.tree.diff``."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from mystfuse.tree.diff.change import Aspect, Change, Kind

_FLAGS = {
    "s": Aspect.SIZE,
    "t": Aspect.MTIME,
    "p": Aspect.MODE,
    "o": Aspect.OWNER,
    "g": Aspect.GROUP,
    "a": Aspect.ACL,
    "x": Aspect.XATTRS,
}
_CHANGED = {"f": Aspect.CONTENT, "L": Aspect.TARGET, "D": Aspect.DEVICE}
Judged = dict[bytes, str | frozenset[Aspect]]
"""By path: ``added`` (also in place of another kind of file), ``removed``, or what differs."""


def rsync_changes(old: Path, new: Path) -> dict[bytes, str]:
    """What rsync would do to make ``old`` like ``new``: by path, its itemized changes, or ``deleting``. Times are
    compared to the nanosecond, contents by checksum."""
    options = ("-aHAXnc", "--modify-window=-1", "--delete", "--out-format=%i %n")
    output = _output(["rsync", *options, f"{new}/", f"{old}/"], (0,))
    found: dict[bytes, str] = {}
    for line in output.splitlines():
        flags, name = line[:11].decode().strip(), line[12:]
        name = re.sub(rb"\\#([0-7]{3})", lambda match: bytes([int(match[1], 8)]), name)
        path = b"" if name == b"./" else name.rstrip(b"/")
        if flags != "*deleting":
            found[path] = flags
        else:
            found.setdefault(path, "deleting")
    return found


def as_judged(flags: str) -> str | frozenset[Aspect]:
    """One of rsync's itemized changes (rsync(1), ``--itemize-changes``) in our words."""
    if flags == "deleting":
        return "removed"
    if flags.endswith("+++"):
        return "added"
    found = {_FLAGS[flag] for flag in flags[3:] if flag in _FLAGS}
    if flags[2] == "c":
        found.add(_CHANGED[flags[1]])
    return frozenset(found)


def as_rsync_sees(change: Change) -> str | frozenset[Aspect]:
    """A change, as ``as_judged`` has it."""
    if change.kind is Kind.REMOVED:
        return "removed"
    if change.kind is Kind.ADDED or Aspect.TYPE in change.aspects:
        return "added"
    return change.aspects - {Aspect.LINKS}


def differing_files(old: Path, new: Path) -> set[bytes]:
    """The regular files and symbolic links in both directories that ``diff -r`` finds to differ."""
    paths = [path.relative_to(new) for path in new.rglob("*")]
    both = [path for path in paths if os.path.lexists(old / path)]
    output = _output(["diff", "-rq", "--no-dereference", str(old), str(new)], (0, 1)).decode()
    return {
        os.fsencode(path)
        for path in both
        if f"Files {old / path} and {new / path} differ\n" in output
        or f"Symbolic links {old / path} and {new / path} differ\n" in output
    }


def _output(command: list[str], good: tuple[int, ...]) -> bytes:
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    process = subprocess.run(command, capture_output=True, check=False, timeout=300, env=environment)
    assert process.returncode in good, process.stderr
    return process.stdout
