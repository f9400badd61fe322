"""What operations come back with, and how two such results compare."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import Final

COMPARE_BLOCKS = True
"""Whether ``st_blocks`` of files, links and nodes must be the same on both sides."""

NAME_MAX, MAX_LINKS_FOLLOWED = 255, 40
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
MODELLED_FLAGS = 0xC8
"""Flags of inodes: synchronous, no dump, no atime."""
NODE = stat.S_IFMT
ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = "security.capability"
CAPABILITY_VALUE = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)
"""cap_net_bind_service, permitted: the kernel removes it from a file on a write or a change of owner."""

libc = ctypes.CDLL(None, use_errno=True)


def spell(text: str) -> str:
    """A name with ``~N`` written out: N times the letter n. So long names print short."""
    return re.sub(r"~(\d+)", lambda match: "n" * int(match[1]), text)


def shorten(text: str) -> str:
    """The inverse of ``spell``."""
    return re.sub(r"n{15,}", lambda match: f"~{len(match[0])}", text)


# Results


@dataclass(frozen=True)
class Failed:
    """The result of a failed operation."""

    error: str


class Unknown:
    """The model's "unknown", which agrees with everything."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()
OK: Final = "ok"

Status = tuple[object, ...]
Tree = dict[str, dict[str, object]]


def failure(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def agree(expected: object, found: object) -> bool:
    """Whether two results are the same, as far as both can tell."""
    if expected is UNKNOWN or found is UNKNOWN:
        return True
    if isinstance(expected, tuple) and isinstance(found, tuple) and len(expected) == len(found):
        return all(agree(one, other) for one, other in zip(expected, found, strict=True))
    return expected == found


def differences(expected: Tree, found: Tree, since: float | None = None) -> list[str]:
    """How two trees differ. Times of change are equal, or both at least ``since``: no operation set them."""
    lines = [f"{path!r}: missing" for path in expected.keys() - found.keys()]
    lines += [f"{path!r}: unexpected" for path in found.keys() - expected.keys()]
    for path in expected.keys() & found.keys():
        for name, value in expected[path].items():
            other = found[path].get(name)
            if name == "mtime" and since is not None:
                assert isinstance(value, int) and isinstance(other, int)
                # The kernel's clock for files lags by up to a tick, and small inodes keep whole seconds only.
                if min(value, other) >= (since - 1.1) * 1e9:
                    continue
            if not agree(value, other):
                lines.append(f"{path!r}: {name} is {other!r} instead of {value!r}")
    return sorted(lines)
