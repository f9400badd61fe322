"""Requests answered directly get the bytes that libfuse and pyfuse3 send."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pyfuse3
import pytest
import trio

from mystfuse.fuse import protocol
from mystfuse.fuse.libfuse_session import open_session
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.operations import Operations
from mystfuse.fuse.protocol import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_GID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_SIZE,
    FATTR_UID,
)
from mystfuse.volume.volume import Volume
from tests.support import fuse_requests as fuse
from tests.support.ext2_editor import MemoryDevice, make_image
from tests.support.fuse_requests import Ask, Direct, created, entry_ino

NOW = 1_800_000_000_123_456_789
LONG_NAME = b"n" * 255
OWNERS: dict[str, dict[str, object]] = {"as stored": {}, "map_root": {"map_root": True}, "one": {"uid": 5, "gid": 6}}
FUSE_INIT, FUSE_LOOKUP = 26, 1
FUSE_DO_READDIRPLUS = 1 << 13


@pytest.fixture(scope="module", params=[128, 256], ids=["small inodes", "large inodes"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("replies") / "image"
    return make_image(path, "-I", str(request.param), size="4M").read_bytes()


async def replies(ask: Ask) -> list[tuple[int, bytes]]:
    """The replies to requests of all kinds."""
    found = []

    async def send(request: bytes) -> bytes:
        error, payload = await ask(request)
        found.append((error, payload))
        return payload

    file, handle = created(await send(fuse.create(b"file")))
    assert (file, handle) != (0, 0)
    directory = entry_ino(await send(fuse.mkdir(b"directory")))
    await send(fuse.create(LONG_NAME, 0o104711, os.O_RDWR | os.O_DIRECT, directory, uid=1000))
    await send(fuse.create(LONG_NAME, parent=directory))
    await send(fuse.create(LONG_NAME + b"x"))
    await send(fuse.create(b".mystfuse"))
    for number in os.makedev(1, 3), os.makedev(300, 70_000), os.makedev(4095, 1048575):
        await send(fuse.mknod(b"device-%d" % number, stat.S_IFCHR | 0o600, number))
    await send(fuse.mknod(b"pipe", stat.S_IFIFO | 0o600))
    await send(fuse.mknod(b"regular", stat.S_IFREG | 0o600))
    await send(fuse.symlink(b"link", b"target"))
    await send(fuse.symlink(b"empty", b""))
    await send(fuse.link(file, b"hard", directory))
    await send(fuse.link(directory, b"no"))
    await send(fuse.write(file, handle, 0, b"x" * 5000))
    await send(fuse.write(file, handle, 1 << 45, b"x"))
    await send(fuse.setattr_of(file, FATTR_SIZE, size=123_456))
    await send(
        fuse.setattr_of(file, FATTR_ATIME | FATTR_ATIME_NOW | FATTR_MTIME, atime=(5, 999_999_999), mtime=(-7, 1))
    )
    await send(fuse.setattr_of(file, FATTR_UID | FATTR_GID, owner=(70_000, 1000)))
    await send(fuse.setattr_of(file, FATTR_MODE, mode=0o106755))
    await send(fuse.setattr_of(fuse.ROOT_ID, FATTR_MODE, mode=0o40700))
    await send(fuse.setattr_of(99, FATTR_MODE, mode=0o600))
    await send(fuse.setattr_of(1 << 32, FATTR_MODE, mode=0o600))
    await send(fuse.open_file(file, os.O_WRONLY | os.O_APPEND))
    await send(fuse.open_file(file, os.O_RDWR | os.O_TRUNC))
    await send(fuse.open_file(directory, os.O_RDWR))
    await send(fuse.open_file((1 << 32) + 1, os.O_RDONLY))
    await send(fuse.open_file((1 << 32) + 1, os.O_RDONLY, uid=7))
    await send(fuse.open_file((1 << 32) + 1, os.O_WRONLY))
    await send(fuse.rename(fuse.ROOT_ID, b"pipe", directory, b"moved"))
    await send(fuse.rename2(fuse.ROOT_ID, b"regular", fuse.ROOT_ID, b"link", 1))
    await send(fuse.rename2(fuse.ROOT_ID, b"regular", fuse.ROOT_ID, b"link", 2))
    await send(fuse.rename(fuse.ROOT_ID, b"regular", fuse.ROOT_ID, b"link"))
    await send(fuse.rmdir(b"directory"))
    await send(fuse.unlink(b"directory"))
    await send(fuse.unlink(b"absent"))
    await send(fuse.unlink(b"file"))
    await send(fuse.release(file, handle))
    await send(fuse.create(b"another"))
    return found


@asynccontextmanager
async def pyfuse3_over_a_socket(operations: Operations) -> AsyncIterator[Ask]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def ask(request: bytes) -> tuple[int, bytes]:
        ours.send(request)
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(ours)
        reply = ours.recv(1 << 20)
        length, error, unique = protocol.OUT_HEADER.unpack_from(reply)
        assert (length, unique) == (len(reply), fuse.UNIQUE)
        return -error, reply[protocol.OUT_HEADER.size :]

    with ours:
        # libfuse closes it.
        open_session(operations, f"/dev/fd/{theirs.detach()}", {"default_permissions"})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                error, _ = await ask(fuse.request(FUSE_INIT, 0, struct.pack("=IIII", 7, 36, 0, FUSE_DO_READDIRPLUS)))
                assert not error
                yield ask
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=False)


@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.logs(r"^mystfuse\.fuse\.errnos")
async def test_replies_are_those_of_pyfuse3(image: bytes, owners: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: NOW)
    monkeypatch.setattr(secrets, "randbits", lambda bits: 0xFFFFFFF0)
    direct = Direct(await Volume.open(MemoryDevice(image), 8 << 20), **OWNERS[owners])
    options = MountOptions("/mnt", "image", owner=(1000, 1000), **OWNERS[owners])  # type: ignore[arg-type]
    operations = Operations(await Volume.open(MemoryDevice(image), 8 << 20), options, dict, lambda _: frozenset())
    async with pyfuse3_over_a_socket(operations) as ask:
        expected = await replies(ask)
    found = await replies(direct.ask)
    assert found == expected
    assert len({error for error, _ in expected}) > 8
