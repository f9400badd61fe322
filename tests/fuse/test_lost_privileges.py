"""A file that is written, cut or given away loses set-user-ID, set-group-ID and capabilities, as in the kernel's ext2:
in the same transaction, by what the request says about its caller (FUSE_HANDLE_KILLPRIV_V2)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from mystfuse.ext2.caller import ROOT
from mystfuse.fuse.protocol import (
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_SIZE,
    FATTR_UID,
    OPEN_KILL_SUIDGID,
    WRITE_CACHE,
    WRITE_KILL_SUIDGID,
)
from mystfuse.volume.volume import Volume
from tests.support import fuse_requests as fuse
from tests.support.commands import run
from tests.support.errno_pairs import Pair, pair_of
from tests.support.ext2_editor import assert_clean, make_image, merged
from tests.support.fuse_requests import CachedDevice, Direct, created

CAPABILITY = b"security.capability"
VALUE = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
OWNER, GROUP = 1000, 2000


class Event(NamedTuple):
    """What happens to a file of OWNER and GROUP that has all three, and what it has then."""

    command: str
    """That does it to file "$1"."""
    request: str
    flags: int
    uid: int
    mode: int
    mode_after: int
    keeps_capability: bool = False
    groups: frozenset[int] = frozenset()


WRITE = 'printf new 1<>"$1"'
CUT = 'truncate -s 1 "$1"'
CHOWN_NOTHING = """python3 -c 'import os, sys; os.chown(sys.argv[1], -1, -1)' "$1"
"""
MAP = """python3 -c 'import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 4) as memory:
    memory[:4] = b"new."
    memory.flush()' "$1"
"""
MEMBER = frozenset({GROUP})
EVENTS = {
    "written by root": Event(WRITE, "write", 0, 0, 0o106755, 0o106755),
    "written": Event(WRITE, "write", WRITE_KILL_SUIDGID, OWNER, 0o106755, 0o100755),
    "written by root without CAP_FSETID": Event(WRITE, "write", WRITE_KILL_SUIDGID, 0, 0o106755, 0o100755),
    "written with CAP_FSETID": Event(WRITE, "write", 0, OWNER, 0o106755, 0o106755),
    "written, not to be executed by the group": Event(WRITE, "write", WRITE_KILL_SUIDGID, OWNER, 0o106745, 0o100745),
    "the same, by a member": Event(WRITE, "write", WRITE_KILL_SUIDGID, OWNER, 0o106745, 0o102745, groups=MEMBER),
    "written by a mapping": Event(MAP, "write", WRITE_CACHE, 0, 0o106755, 0o106755, keeps_capability=True),
    "cut by root": Event(CUT, "setattr", FATTR_SIZE, 0, 0o106755, 0o106755),
    "cut": Event(CUT, "setattr", FATTR_SIZE | FATTR_KILL_SUIDGID, OWNER, 0o106755, 0o100755),
    "cut, by a member": Event(
        CUT, "setattr", FATTR_SIZE | FATTR_KILL_SUIDGID, OWNER, 0o106745, 0o102745, groups=MEMBER
    ),
    "given away by root": Event('chown 1001 "$1"', "setattr", FATTR_UID | FATTR_KILL_SUIDGID, 0, 0o106755, 0o100755),
    "given to a group": Event('chgrp 1000 "$1"', "setattr", FATTR_GID | FATTR_KILL_SUIDGID, OWNER, 0o106755, 0o100755),
    "chown -1:-1": Event(CHOWN_NOTHING, "setattr", 0, OWNER, 0o106755, 0o100755),
    "chown -1:-1 by root": Event(CHOWN_NOTHING, "setattr", 0, 0, 0o106755, 0o100755),
    # The kernel itself has removed the capability.
    "about to be written by root": Event("", "removexattr, setattr", 0, 0, 0o106755, 0o106755),
    "touched": Event('touch -m "$1"', "setattr", FATTR_MTIME, OWNER, 0o106755, 0o106755, keeps_capability=True),
    "chmod": Event('chmod 4711 "$1"', "setattr", FATTR_MODE, OWNER, 0o100755, 0o104711, keeps_capability=True),
    "opened": Event(': <>"$1"', "open", 0, OWNER, 0o106755, 0o106755, keeps_capability=True),
    "opened with O_TRUNC": Event(': >"$1"', "open O_TRUNC", OPEN_KILL_SUIDGID, OWNER, 0o106755, 0o100755),
    "opened with O_TRUNC by root": Event(': >"$1"', "open O_TRUNC", 0, 0, 0o106755, 0o106755),
}


@pytest.fixture(scope="module", params=[128, 256], ids=["in a block", "in the inode"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("privileges") / "image"
    return make_image(path, "-I", str(request.param), size="4M").read_bytes()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
async def test_privileges(image: bytes, event: Event, tmp_path: Path) -> None:
    direct = Direct(await Volume.open(CachedDevice(image), 8 << 20), event.groups)
    volume = direct.requests.volume
    file, handle = created((await direct.ask(fuse.create(b"file", event.mode, uid=OWNER)))[1])
    await direct.ask(fuse.setattr_of(file, FATTR_UID | FATTR_GID, owner=(OWNER, GROUP)))
    await direct.ask(fuse.setattr_of(file, FATTR_MODE, mode=event.mode))
    await volume.set_xattr(file, CAPABILITY, VALUE, ROOT)
    await volume.set_xattr(file, b"user.other", b"stays", ROOT)
    before = volume.changes
    requests = {
        "write": fuse.write(file, handle, 0, b"new", event.flags, event.uid),
        "setattr": fuse.setattr_of(file, event.flags, mode=0o104711, owner=(OWNER, GROUP), uid=event.uid),
        "open": fuse.open_file(file, os.O_RDWR, event.flags, event.uid),
        "open O_TRUNC": fuse.open_file(file, os.O_RDWR | os.O_TRUNC, event.flags, event.uid),
    }
    if event.request.startswith("removexattr"):
        await direct.requests.remove_xattr(file, CAPABILITY, ROOT)
        before = volume.changes
    answer = direct.now(requests[event.request.removeprefix("removexattr, ")])
    assert answer is not None
    assert answer[0] == 0
    assert volume.changes == before + (event.request != "open")
    assert oct((await volume.inode(file)).i_mode) == oct(event.mode_after)
    names = (await volume.xattrs(file)).keys()
    assert (CAPABILITY in names) == event.keeps_capability
    assert b"user.other" in names
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.parametrize("waits", [False, True])
async def test_what_removing_a_capability_announces_counts_once(image: bytes, waits: bool) -> None:
    device = CachedDevice(image)
    direct = Direct(await Volume.open(device, 8 << 20))
    volume = direct.requests.volume
    file, _ = created((await direct.ask(fuse.create(b"file", 0o104755)))[1])
    await volume.set_xattr(file, CAPABILITY, VALUE, ROOT)
    await direct.requests.remove_xattr(file, CAPABILITY, ROOT)
    with ExitStack() as held:
        if waits:
            held.enter_context(volume._runner.hold(file))
        rest = direct.later(fuse.setattr_of(file, 0))
        assert (rest is not None) == waits
    if rest is not None:
        await rest()
    direct.replies.clear()
    assert oct((await volume.inode(file)).i_mode) == oct(0o104755)
    await direct.ask(fuse.setattr_of(file, 0))
    assert oct((await volume.inode(file)).i_mode) == oct(0o100755)


async def test_a_new_file_keeps_its_mode(image: bytes) -> None:
    """The kernel sets FUSE_OPEN_KILL_SUIDGID for O_TRUNC, whether there is a file or not."""
    direct = Direct(await Volume.open(CachedDevice(image), 8 << 20))
    request = bytearray(fuse.create(b"file", 0o106755, os.O_WRONLY | os.O_TRUNC, uid=OWNER))
    offset = fuse.protocol.IN_HEADER.size + 12
    request[offset : offset + 4] = struct.pack("=I", OPEN_KILL_SUIDGID)
    error, payload = await direct.ask(bytes(request))
    assert not error
    file, _ = created(payload)
    assert oct((await direct.requests.volume.inode(file)).i_mode) == oct(0o106755)


def become(event: Event, name: str) -> list[str]:
    """The words that make a command run as the caller of an event."""
    words = ["setpriv", f"--reuid={event.uid}", f"--regid={event.uid}"]
    words.append(f"--groups={GROUP}" if event.groups else "--clear-groups")
    if "without CAP_FSETID" in name:
        words.append("--bounding-set=-fsetid")
    elif "with CAP_FSETID" in name:
        words += ["--inh-caps=+fsetid", "--ambient-caps=+fsetid"]
    return words


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path = make_image(tmp_path_factory.mktemp("privileges") / "image", size="4M")
    with pair_of(path, 1024) as pair:
        yield pair


@pytest.mark.parametrize("name", [name for name, event in EVENTS.items() if event.command])
def test_the_kernel_does_the_same(pair: Pair, name: str) -> None:
    event = EVENTS[name]
    # Where requests go through pyfuse3, which does not tell who writes, only root keeps set-user-ID by a write.
    sides = [pair.kernel] if name == "written with CAP_FSETID" else pair.sides()
    for side in sides:
        file = side / name
        file.write_bytes(b"content")
        os.chown(file, OWNER, GROUP)
        file.chmod(event.mode & 0o7777)
        # When the kernel removes the capability, we cannot know what for.
        has_capability = name not in ("written with CAP_FSETID", "chown -1:-1 by root")
        if has_capability:
            os.setxattr(file, CAPABILITY, VALUE)
        run(*become(event, name), "sh", "-c", event.command, "sh", file)
        assert oct(file.stat().st_mode) == oct(event.mode_after), side
        assert (CAPABILITY.decode() in os.listxattr(file)) == (event.keeps_capability and has_capability), side
