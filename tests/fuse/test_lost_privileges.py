"""A file that is written, cut or given away loses set-user-ID, set-group-ID and capabilities, as in the kernel's ext2:
in the same transaction, by what the request says about its caller (FUSE_HANDLE_KILLPRIV_V2)."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from mystfuse.ext2.caller import Caller
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
from tests.support.ext2_editor import assert_clean, make_image, merged
from tests.support.fuse_requests import CachedDevice, Direct, created

CAPABILITY = b"security.capability"
VALUE = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
USER, GROUP = 1000, 2000


class Event(NamedTuple):
    """What happens to a file of USER and GROUP that has all three, and what it has then."""

    request: str
    flags: int
    uid: int
    mode: int
    mode_after: int
    keeps_capability: bool = False
    groups: frozenset[int] = frozenset()


MEMBER = frozenset({GROUP})
EVENTS = {
    "written by root": Event("write", 0, 0, 0o106755, 0o106755),
    "written": Event("write", WRITE_KILL_SUIDGID, USER, 0o106755, 0o100755),
    "written by root without CAP_FSETID": Event("write", WRITE_KILL_SUIDGID, 0, 0o106755, 0o100755),
    "written with CAP_FSETID": Event("write", 0, USER, 0o106755, 0o106755),
    "written, not to be executed by the group": Event("write", WRITE_KILL_SUIDGID, USER, 0o106745, 0o100745),
    "the same, by a member": Event("write", WRITE_KILL_SUIDGID, USER, 0o106745, 0o102745, groups=MEMBER),
    "written by a mapping": Event("write", WRITE_CACHE, 0, 0o106755, 0o106755, keeps_capability=True),
    "cut by root": Event("setattr", FATTR_SIZE, 0, 0o106755, 0o106755),
    "cut": Event("setattr", FATTR_SIZE | FATTR_KILL_SUIDGID, USER, 0o106755, 0o100755),
    "cut, by a member": Event("setattr", FATTR_SIZE | FATTR_KILL_SUIDGID, USER, 0o106745, 0o102745, groups=MEMBER),
    "given away by root": Event("setattr", FATTR_UID | FATTR_KILL_SUIDGID, 0, 0o106755, 0o100755),
    "given to a group": Event("setattr", FATTR_GID | FATTR_KILL_SUIDGID, USER, 0o106755, 0o100755),
    "chown -1:-1": Event("setattr", 0, USER, 0o106755, 0o100755),
    # The kernel itself removes the capability.
    "about to be written by root": Event("setattr", 0, 0, 0o106755, 0o106755, keeps_capability=True),
    "touched": Event("setattr", FATTR_MTIME, USER, 0o106755, 0o106755, keeps_capability=True),
    "chmod": Event("setattr", FATTR_MODE, USER, 0o100755, 0o104711, keeps_capability=True),
    "opened": Event("open", 0, USER, 0o106755, 0o106755, keeps_capability=True),
    "opened with O_TRUNC": Event("open O_TRUNC", OPEN_KILL_SUIDGID, USER, 0o106755, 0o100755),
    "opened with O_TRUNC by root": Event("open O_TRUNC", 0, 0, 0o106755, 0o106755),
}


@pytest.fixture(scope="module", params=[128, 256], ids=["in a block", "in the inode"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("privileges") / "image"
    return make_image(path, "-I", str(request.param), size="4M").read_bytes()


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
async def test_privileges(image: bytes, event: Event, tmp_path: Path) -> None:
    direct = Direct(await Volume.open(CachedDevice(image), 8 << 20), event.groups)
    volume = direct.requests.volume
    file, handle = created((await direct.ask(fuse.create(b"file", event.mode, uid=USER)))[1])
    owner = Caller(0, 0)
    await direct.ask(fuse.setattr_of(file, FATTR_UID | FATTR_GID, owner=(USER, GROUP)))
    await direct.ask(fuse.setattr_of(file, FATTR_MODE, mode=event.mode))
    await volume.set_xattr(file, CAPABILITY, VALUE, owner)
    await volume.set_xattr(file, b"user.other", b"stays", owner)
    before = volume.changes
    requests = {
        "write": fuse.write(file, handle, 0, b"new", event.flags, event.uid),
        "setattr": fuse.setattr_of(file, event.flags, mode=0o104711, owner=(USER, GROUP), uid=event.uid),
        "open": fuse.open_file(file, os.O_RDWR, event.flags, event.uid),
        "open O_TRUNC": fuse.open_file(file, os.O_RDWR | os.O_TRUNC, event.flags, event.uid),
    }
    answer = direct.now(requests[event.request])
    assert answer is not None
    assert answer[0] == 0
    assert volume.changes == before + (event.request != "open")
    assert oct((await volume.inode(file)).i_mode) == oct(event.mode_after)
    names = (await volume.xattrs(file)).keys()
    assert (CAPABILITY in names) == event.keeps_capability
    assert b"user.other" in names
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_a_new_file_keeps_its_mode(image: bytes) -> None:
    """The kernel sets FUSE_OPEN_KILL_SUIDGID for O_TRUNC, whether there is a file or not."""
    direct = Direct(await Volume.open(CachedDevice(image), 8 << 20))
    request = bytearray(fuse.create(b"file", 0o106755, os.O_WRONLY | os.O_TRUNC, uid=USER))
    offset = fuse.protocol.IN_HEADER.size + 12
    request[offset : offset + 4] = struct.pack("=I", OPEN_KILL_SUIDGID)
    error, payload = await direct.ask(bytes(request))
    assert not error
    file, _ = created(payload)
    assert oct((await direct.requests.volume.inode(file)).i_mode) == oct(0o106755)
