"""A file system with one file, ``image``, whose storage lies by seed, like a hostile image server.

Run as a program: ``python -m tests.support.hostile_storage CONTENT STALE MOUNTPOINT``. It says ``ready``, then takes
requests on stdin, one a line, and says ``done`` after each:

    lie SEED RATE HANGS     from now on
    behave                  and answer the waiting reads
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyfuse3
import trio

from tests.support.faulty_source import Liar
from tests.support.one_file_storage import OneFileStorage


class HostileStorage(OneFileStorage):
    """The kernel does not cache reads: each gets an answer of its own."""

    def __init__(self, content: bytes, stale: bytes) -> None:
        super().__init__(content)
        self._stale = stale
        self._hangs = 0
        self._released = trio.Event()
        self._liar = Liar(content, stale, 0, 0.0)

    def order(self, line: str) -> None:
        match line.split():
            case ["lie", seed, rate, hangs]:
                self._liar = Liar(self.content, self._stale, seed, float(rate))
                self._hangs = int(hangs)
            case ["behave"]:
                self._liar = Liar(self.content, self._stale, 0, 0.0)
                self._released.set()
                self._released = trio.Event()

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode, direct_io=True)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        liar = self._liar
        kind = liar.choose("error", "slow", "hanging", "late lie")
        match kind:
            case "error":
                raise pyfuse3.FUSEError(liar.error())
            case "slow":
                await trio.sleep(liar.throw(0, 0.1))
            case "hanging" | "late lie" if self._hangs > 0:
                self._hangs -= 1
                await self._released.wait()
                kind = "flipped" if kind == "late lie" else ""
        return liar.spoil(kind, offset, min(size, max(len(self.content) - offset, 0)))


async def serve(content: str, stale: str, mountpoint: str) -> None:
    storage = HostileStorage(Path(content).read_bytes(), Path(stale).read_bytes())
    pyfuse3.init(storage, mountpoint, {"fsname=hostile", "ro", "default_permissions"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey, storage)
            await pyfuse3.main(max_tasks=60)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def obey(storage: HostileStorage) -> None:
    print("ready", flush=True)
    rest = b""
    os.set_blocking(0, False)
    while True:
        await trio.lowlevel.wait_readable(0)
        rest += (part := os.read(0, 4096))
        if not part:
            pyfuse3.terminate()
            return
        *lines, rest = rest.split(b"\n")
        for line in lines:
            storage.order(line.decode())
            print("done", flush=True)


if __name__ == "__main__":
    trio.run(serve, *sys.argv[1:])
