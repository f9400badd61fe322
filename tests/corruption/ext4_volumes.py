"""Damaged ext4 file systems as volumes, without FUSE: read to the end, then written to.

Damage that checksums cover, and that was left without fresh ones, must not show: whatever is read is what the sound
file system has, or an error.
"""

from __future__ import annotations

import errno
import hashlib
import random
import signal
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from types import FrameType
from typing import TypeVar

import trio

from mystfuse.devices.device import Extent
from mystfuse.errors import CorruptFilesystem, FormatError, MystfuseError
from mystfuse.volume.volume import Volume
from tests.corruption.ext4_bases import Base
from tests.corruption.ext4_damages import spoil_ext4
from tests.fuzz.harness import Choices, bounded, ensure
from tests.fuzz.images import SparseDevice, SparseImage
from tests.fuzz.targets_images import OPERATION_SECONDS, OVERLAY_LIMIT, ROOT, Tester

MAX_PATHS = 600
PIECE = 256 << 10
HEAD = 2 << 20
SECONDS = 60
"""For one file system: far more than any needs."""

T = TypeVar("T")
Outcomes = dict[bytes, str]
"""path and what was asked -> digest of the answer, or the name of an errno."""


class MemoryDevice(SparseDevice):
    """A device on bytes, that counts what is read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(SparseImage({}, len(data)))
        self._view = memoryview(data)

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.bytes_read += sum(extent.length for extent in extents)
        ensure(all(start >= 0 and start + length <= self.size for start, length in extents), "outside the device")
        return [self._view[start : start + length] for start, length in extents]


class Reader(Tester):
    """Reads all of a volume by paths, and keeps the outcomes."""

    def __init__(self, volume: Volume, device: SparseDevice) -> None:
        super().__init__(volume, device)
        self.outcomes: Outcomes = {}
        self.inodes: list[int] = []
        self.directories: list[int] = []

    async def note(self, path: bytes, what: bytes, operation: Awaitable[T]) -> T | None:
        """Ask, and keep the answer's digest."""
        answer: T | None = None
        said = ""

        async def asked() -> T:
            nonlocal said
            try:
                return await operation
            except (MystfuseError, OSError) as error:
                said = errno.errorcode.get(error.errno or 0, str(error))
                raise

        answer = await self.ask(asked())
        self.outcomes[path + b"\0" + what] = said or _digest(answer)
        return answer

    async def read_all(self) -> None:
        volume = self.volume
        waiting = [(b"", ROOT)]
        seen = 0
        while waiting and seen < MAX_PATHS:
            path, ino = waiting.pop()
            seen += 1
            inode = await self.note(path, b"inode", volume.inode(ino))
            if inode is None:
                continue
            (self.directories if inode.is_directory else self.inodes).append(ino)
            await self.note(path, b"xattrs", volume.xattrs(ino))
            if inode.is_symlink:
                await self.note(path, b"target", volume.target(ino))
            elif inode.is_regular:
                await self._read(path, ino, inode.size)
            elif inode.is_directory and path.count(b"/") < 30:
                await self.note(path, b"..", volume.lookup(ino, b".."))
                await self.note(path, b"missing", volume.lookup(ino, b"no such name"))
                waiting += await self._list(path, ino)

    async def _read(self, path: bytes, ino: int, size: int) -> None:
        for offset in {*range(0, min(size, HEAD), PIECE), max(size - PIECE, 0)}:
            await self.note(path, b"%d" % offset, self.volume.read(ino, offset, PIECE))
        await self.note(path, b"stretch", self.volume.stretch(ino, 0))

    async def _list(self, path: bytes, ino: int) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        offset = 0
        size = await self.ask(self.volume.listing_size(ino)) or 0
        while offset < size and len(found) < MAX_PATHS:
            listed = await self.note(path, b"list %d" % offset, self.volume.entries(ino, offset, 1000))
            if listed is None:
                break
            entries, following = listed
            ensure(following > offset, "a listing that does not go on")
            offset = following
            for entry, _ in entries:
                child = await self.note(path + b"/" + entry.name, b"lookup", self.volume.lookup(ino, entry.name))
                # Links of one file that only make a directory long.
                if child is not None and (not path.endswith(b"htree") or entry.name.startswith(b"0001")):
                    found.append((path + b"/" + entry.name, child.ino))
        return found


def _digest(answer: object) -> str:
    data = bytes(answer) if isinstance(answer, (bytes, bytearray, memoryview)) else repr(answer).encode()
    return hashlib.sha256(data).hexdigest()[:12]


async def _exercise(data: bytes, seed: int) -> Outcomes | None:
    """Read, write, and read again; None if it is not mounted."""
    device = MemoryDevice(data)
    try:
        with bounded(OPERATION_SECONDS, "mounting"):
            volume = await Volume.open(device, OVERLAY_LIMIT)
    except FormatError as error:
        ensure(str(error).isprintable(), "not one line")
        return None
    reader = Reader(volume, device)
    await reader.read_all()
    choices = Choices(random.Random(seed).randbytes(400))
    steps = 0
    while choices and steps < 40 and reader.inodes and reader.directories:
        steps += 1
        await reader.operate(choices, reader.inodes, reader.directories)
    await reader.walk(30)
    with bounded(2 * OPERATION_SECONDS, "a snapshot"), suppress(CorruptFilesystem, MystfuseError):
        merged = await volume.open_image()
        await merged.read(0, merged.size)
        merged.close()
    return reader.outcomes


async def sound_outcomes(base: Base) -> Outcomes:
    """What a volume of a base reads in it."""
    device = MemoryDevice(base.data)
    reader = Reader(await Volume.open(device, OVERLAY_LIMIT), device)
    await reader.read_all()
    return reader.outcomes


def _stop(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one file system takes over {SECONDS} s")


class Judged:
    """What came of one damaged file system.

    Args:
        sound: what is read in the base.
    """

    def __init__(self, base: Base, seed: int, sound: Outcomes) -> None:
        layout, self.damage = spoil_ext4(base, seed)
        self.is_judged = "sealed" not in self.damage and layout.is_covered
        """Whether nothing of the damage may show."""
        self.outcomes: Outcomes | None = None
        self.faults: list[str] = []
        self.error: BaseException | None = None
        signal.signal(signal.SIGALRM, _stop)
        signal.alarm(SECONDS)
        try:
            self.outcomes = trio.run(_exercise, bytes(layout.data), seed)
        except BaseException as error:
            self.error = error
            self.faults.append(f"{type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
        if self.is_judged and self.outcomes is not None:
            self.faults += self._wrong(sound)

    def _wrong(self, sound: Outcomes) -> list[str]:
        assert self.outcomes is not None
        return [
            f"{question!r}: {answer} instead of {sound.get(question, 'absent')}"
            for question, answer in self.outcomes.items()
            if answer not in ("EUCLEAN", sound.get(question))
            # Entries are listed with their inodes, without those that are broken, up to a broken block.
            and b"\0list" not in question
        ]
