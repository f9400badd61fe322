"""Images whose journals tests write block by block, and what the kernel and e2fsck make of them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mystfuse.kernels.checksums import crc32c
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, make_image

BLOCK = 1024
MAGIC = 0xC03B3998
BITS = {"checksum": (36, 1), "revoke": (40, 1), "64bit": (40, 2), "async_commit": (40, 4)} | {
    "csum_v2": (40, 8),
    "csum_v3": (40, 16),
    "fast_commit": (40, 32),
}
"""Where the journal's superblock has a feature, and its bit."""


@dataclass
class Transaction:
    """What a transaction of a journal has."""

    blocks: list[tuple[int, bytes]] = field(default_factory=list)
    """Numbers and contents."""
    revoked: list[int] = field(default_factory=list)
    per_descriptor: int = 1000
    """Tags in a descriptor block, at most."""
    time: int | None = None
    """In its commit block; None for one later than that before."""
    is_complete: bool = True
    """Whether it has a commit block."""


class JournalImage:
    """An ext3 file system of 8 MiB with a journal of 1 MiB, whose log is to be written."""

    def __init__(self, path: Path) -> None:
        make_image(path, "-b", "1024", "-O", "has_journal", "-J", "size=1", size="8M")
        self.path = path
        self.data = bytearray(path.read_bytes())
        self.journal = journal_blocks(path)
        """The numbers of the journal's blocks."""
        taken = set(self.journal)
        self.free = [number for number in range(4000, 8000) if number not in taken]
        """Numbers of blocks that nothing uses."""
        self.features: set[str] = set()
        self.uuid = self._superblock(0x30, "16s")

    def _superblock(self, offset: int, layout: str) -> bytes:
        value: bytes
        (value,) = struct.unpack_from(f">{layout}", self.data, self.journal[0] * BLOCK + offset)
        return value

    def put(self, block: int, content: bytes) -> None:
        """Write a block of the journal."""
        assert len(content) == BLOCK
        self.data[self.journal[block] * BLOCK : (self.journal[block] + 1) * BLOCK] = content

    def get(self, block: int) -> bytes:
        """A block of the journal."""
        return bytes(self.data[self.journal[block] * BLOCK : (self.journal[block] + 1) * BLOCK])

    def begin(self, features: Iterable[str], sequence: int, start: int) -> None:
        """Write a superblock that needs recovery from block ``start`` on."""
        self.features = set(features)
        block = bytearray(self.get(0))
        words = {36: 0, 40: 0}
        for name in self.features:
            offset, bit = BITS[name]
            words[offset] |= bit
        struct.pack_into(">III", block, 36, words[36], words[40], 0)
        struct.pack_into(">II", block, 24, sequence, start)
        block[0x50] = 4 if self.has_block_checksums else 0
        self.put(0, bytes(block))
        self.fix_superblock()
        (incompat,) = struct.unpack_from("<I", self.data, 1024 + 96)
        struct.pack_into("<I", self.data, 1024 + 96, incompat | 4)

    def fix_superblock(self) -> None:
        """Give the journal's superblock the checksum that it should have, if any."""
        if self.has_block_checksums:
            block = bytearray(self.get(0))
            struct.pack_into(">I", block, 0xFC, 0)
            struct.pack_into(">I", block, 0xFC, crc32c(block, 0xFFFFFFFF))
            self.put(0, bytes(block))

    @property
    def has_block_checksums(self) -> bool:
        return bool(self.features & {"csum_v2", "csum_v3"})

    @property
    def seed(self) -> int:
        return crc32c(self.uuid, 0xFFFFFFFF)

    def log(self, transactions: Sequence[Transaction], sequence: int, start: int, end: int | None = None) -> int:
        """Write transactions from block ``start`` on; returns the block behind them.

        Args:
            end: the block behind the log; the journal's own length if None.
        """
        end = len(self.journal) if end is None else end
        position, time = start, 1_700_000_000

        def append(content: bytes) -> None:
            nonlocal position
            self.put(position, content)
            position = position + 1 if position + 1 < end else 1

        for index, transaction in enumerate(transactions):
            number = sequence + index & 0xFFFFFFFF
            checksum = 0xFFFFFFFF
            for content in self._revoke_blocks(transaction.revoked, number):
                append(content)
            for some in self._descriptors(transaction, number):
                for content in some:
                    checksum = crc32_be(checksum, content)
                    append(content)
            time += 1
            if transaction.is_complete:
                append(self._commit(number, time if transaction.time is None else transaction.time, checksum))
        return position

    def _tail(self, block: bytes) -> bytes:
        """A descriptor or revoke block with its checksum, if there is to be one."""
        block = block.ljust(BLOCK, b"\0")
        if not self.has_block_checksums:
            return block
        return block[:-4] + struct.pack(">I", crc32c(block[:-4] + bytes(4), self.seed))

    def _revoke_blocks(self, revoked: Sequence[int], sequence: int) -> list[bytes]:
        layout = "Q" if "64bit" in self.features else "I"
        most = (BLOCK - 20) // struct.calcsize(f">{layout}")
        blocks: list[bytes] = []
        for start in range(0, len(revoked), most):
            records = struct.pack(f">{len(revoked[start:][:most])}{layout}", *revoked[start:][:most])
            blocks.append(self._tail(struct.pack(">IIII", MAGIC, 5, sequence, 16 + len(records)) + records))
        return blocks

    @property
    def tag_size(self) -> int:
        if "csum_v3" in self.features:
            return 16
        return 8 + 4 * ("64bit" in self.features) + 2 * ("csum_v2" in self.features)

    def _descriptors(self, transaction: Transaction, sequence: int) -> list[list[bytes]]:
        """Descriptor blocks, each with those that follow it."""
        most = min((BLOCK - 12 - 4 - 16) // self.tag_size, transaction.per_descriptor)
        found: list[list[bytes]] = []
        for start in range(0, len(transaction.blocks), most):
            some = transaction.blocks[start : start + most]
            block, contents = struct.pack(">III", MAGIC, 1, sequence), []
            for index, (number, content) in enumerate(some):
                flags = 2 if index else 0
                if content.startswith(struct.pack(">I", MAGIC)):
                    content, flags = bytes(4) + content[4:], flags | 1
                flags |= 8 if index == len(some) - 1 else 0
                block += self._tag(number, flags, crc32c(content, crc32c(struct.pack(">I", sequence), self.seed)))
                block += b"" if index else self.uuid
                contents.append(content)
            found.append([self._tail(block), *contents])
        return found

    def _tag(self, number: int, flags: int, checksum: int) -> bytes:
        checksum = checksum if self.has_block_checksums else 0
        high = number >> 32
        if "csum_v3" in self.features:
            return struct.pack(">IIII", number & 0xFFFFFFFF, flags, high, checksum)
        tag = struct.pack(">IHHI", number & 0xFFFFFFFF, checksum & 0xFFFF, flags, high)
        return (tag + bytes(2))[: self.tag_size] if "64bit" in self.features else (tag[:8] + bytes(2))[: self.tag_size]

    def _commit(self, sequence: int, time: int, checksum: int) -> bytes:
        is_first = "checksum" in self.features
        block = struct.pack(">IIIBBHI28xQI", MAGIC, 2, sequence, is_first, 4 * is_first, 0, 0, time, 0)
        block = block.ljust(BLOCK, b"\0")
        if is_first:
            return block[:16] + struct.pack(">I", checksum) + block[20:]
        if self.has_block_checksums:
            return block[:16] + struct.pack(">I", crc32c(block, self.seed)) + block[20:]
        return block

    async def ours(self) -> bytes:
        """The image as we recover it: the overlay's blocks over it."""
        return await recovered(bytes(self.data))

    def kernels(self, scratch: Path) -> bytes | None:
        """The image as the kernel recovers it; None if the kernel does not mount it.

        Args:
            scratch: a directory for a copy and a mount.
        """
        copy, mountpoint = scratch / "kernel.img", scratch / "kernel"
        copy.write_bytes(self.data)
        mountpoint.mkdir(exist_ok=True)
        with loop_device(copy) as device:
            if run("mount", "-t", "ext4", "-o", "ro", device, mountpoint, check=False).returncode:
                return None
            run("umount", mountpoint)
        return copy.read_bytes()

    def of_e2fsck(self, scratch: Path) -> bytes:
        """The image as e2fsck recovers it."""
        copy = scratch / "e2fsck.img"
        copy.write_bytes(self.data)
        replay_with_e2fsck(copy)
        return copy.read_bytes()

    def differing(self, one: bytes, other: bytes) -> list[int]:
        """The blocks that differ, but for the superblock and the journal's own."""
        return differing_blocks(one, other, BLOCK, {1, self.journal[0]})


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A loop device that can be written to: without one the kernel replays no journal, not even for "ro"."""
    device = run("losetup", "--find", "--show", image).stdout.strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def differing_blocks(one: bytes, other: bytes, block_size: int, ignored: set[int]) -> list[int]:
    """The numbers of blocks that differ."""
    assert len(one) == len(other)
    return [
        start // block_size
        for start in range(0, len(one), block_size)
        if start // block_size not in ignored and one[start : start + block_size] != other[start : start + block_size]
    ]


async def recovered(data: bytes) -> bytes:
    """An image with what our replay of its journal lays over it."""
    volume = await Volume.open(MemoryDevice(data))
    image, size = bytearray(data), volume.superblock.block_size
    if volume.written is not None:
        snapshot = volume.written.snapshot()
        for number in snapshot.candidates():
            block = snapshot.get(number)
            assert isinstance(block, bytes)
            image[number * size : (number + 1) * size] = block
        snapshot.close()
    return bytes(image)


def replay_with_e2fsck(image: Path) -> None:
    """Have e2fsck replay an image's journal, and free its orphans."""
    result = run("e2fsck", "-y", "-E", "journal_only", image, check=False)
    assert result.returncode in (0, 1), result.stdout + result.stderr


def replay_with_debugfs(image: Path) -> None:
    """Have debugfs, which has e2fsck's code for it, replay an image's journal and do nothing else."""
    result = run("debugfs", "-n", "-w", "-R", "journal_run", image)
    assert "error" not in result.stderr.lower(), result.stderr


def journal_blocks(image: Path) -> list[int]:
    """The numbers of the blocks of an image's journal."""
    listed = re.split("BLOCKS:|EXTENTS:", run("debugfs", "-n", "-R", "stat <8>", image).stdout)[-1]
    blocks: list[int] = []
    for first, last, start in re.findall(r"\((\d+)(?:-(\d+))?\):(\d+)", listed):
        blocks += range(int(start), int(start) + int(last or first) - int(first) + 1)
    return blocks


def crc32_be(seed: int, data: bytes) -> int:
    """The kernel's crc32_be, one bit at a time."""
    for byte in data:
        seed ^= byte << 24
        for _ in range(8):
            seed = (seed << 1 ^ (0x04C11DB7 if seed & 0x80000000 else 0)) & 0xFFFFFFFF
    return seed
