"""The journal's replay: which blocks of its log are the latest state of which blocks of the file system.

A journal (jbd2) is a ring of transactions: descriptor blocks, each before copies of blocks, revoke blocks, and a commit
block at the end. As the kernel does (fs/jbd2/recovery.c, ``do_one_pass``), three passes go over it: the first finds
where the last complete transaction ends, the second what was revoked, the third what is to be written.

Nothing is read here: ``replay`` is a generator of the ranges of blocks that it needs, to which it wants their bytes
sent. It keeps no contents, but where they are.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from typing import NamedTuple, TypeVar

from mystfuse.errors import CorruptFilesystem, UnsupportedFeature
from mystfuse.ext2.journal_format import (
    ALL_ONES,
    JBD2_COMMIT_BLOCK,
    JBD2_DESCRIPTOR_BLOCK,
    JBD2_MAGIC_NUMBER,
    JBD2_REVOKE_BLOCK,
    Header,
    JournalSuperblock,
    Tag,
    commit_time,
    crc32_be,
)

MAX_JOURNAL_BLOCKS = 10_240_000
"""The longest log that is replayed, in blocks: the longest that mke2fs makes (misc/util.c, figure_journal_size)."""
MAX_READ = 1 << 20
"""Bytes of data in a range, unless one block is longer."""

_FAST_COMMIT = struct.Struct("<HHII")  # fc_tag fc_len fc_features fc_tid
_EXT4_FC_TAG_HEAD = 9

T = TypeVar("T")
Steps = Generator[range, bytes, T]
"""Yields a range of blocks of the journal, is sent their bytes, and returns a result."""


class Place(NamedTuple):
    """A block of the journal that is the latest state of one of the file system."""

    block: int
    """Of the journal, counted from its first."""
    is_escaped: bool
    """See ``Tag``."""


class Replay(NamedTuple):
    """What a journal holds."""

    places: dict[int, Place]
    """By the numbers of blocks of the file system."""
    transactions: int
    """How many complete ones there are."""
    sequence: int
    """The number of the next one, which none in the log has."""


def replay(superblock: JournalSuperblock, blocks_count: int, most: int) -> Steps[Replay]:
    """Find out what a journal holds.

    Args:
        blocks_count: blocks of the file system.
        most: how many different blocks of the file system the log may have, with those revoked later.

    Raises:
        CorruptFilesystem: the log contradicts itself or its checksums where the kernel fails the mount for it, has a
            block that is outside the file system, or no end.
        UnsupportedFeature: it is longer, has more different blocks, or ends in fast commits.
    """
    if not superblock.s_start:
        return Replay({}, 0, superblock.s_sequence)
    return (yield from _Replaying(superblock, blocks_count, most).run())


class _Log:
    """A position in the log, which only moves forward, and at most once around."""

    def __init__(self, superblock: JournalSuperblock) -> None:
        self._superblock = superblock
        self._position = superblock.s_start
        self._left = superblock.end - superblock.s_first + 1
        self._most = max(MAX_READ // superblock.block_size, 1)

    def take(self, count: int) -> Iterator[range]:
        """Move on by ``count`` blocks: which they are, in ranges.

        Raises:
            CorruptFilesystem: the log is shorter.
        """
        self._left -= count
        if self._left < 0:
            raise CorruptFilesystem("the journal has no end: its log goes on where it began")
        while count:
            length = min(count, self._most, self._superblock.end - self._position)
            yield range(self._position, self._position + length)
            count -= length
            self._position += length
            if self._position == self._superblock.end:
                self._position = self._superblock.s_first

    def skip(self, count: int) -> None:
        """Move on by ``count`` blocks; raises as ``take``."""
        for _ in self.take(count):
            pass

    def block(self) -> Steps[tuple[bytes, Header]]:
        """The next block, and its header."""
        (blocks,) = self.take(1)
        block = yield blocks
        return block, Header.parse(block)


class _Replaying:
    def __init__(self, superblock: JournalSuperblock, blocks_count: int, most: int) -> None:
        self._superblock = superblock
        self._blocks_count = blocks_count
        self._most = most
        self._first = superblock.s_sequence
        self._tagged: set[int] = set()
        """Block numbers that the log has: of others, it does not matter that they were revoked."""
        self._revoked: dict[int, int] = {}
        """Block numbers with the last transaction that revoked them, counted from the first."""
        self._places: dict[int, Place] = {}

    def run(self) -> Steps[Replay]:
        length = self._superblock.end - self._superblock.s_first
        if length > MAX_JOURNAL_BLOCKS:
            raise UnsupportedFeature(f"the journal has {length} blocks; mystfuse replays at most {MAX_JOURNAL_BLOCKS}")
        transactions = yield from self._scan()
        if "fast_commit" in self._superblock.features:
            yield from self._check_fast_commits(transactions)
        yield from self._find_revoked(transactions)
        yield from self._find_places(transactions)
        # One more, so that no commit block that is in the log counts again (fs/jbd2/recovery.c, jbd2_journal_recover).
        return Replay(self._places, transactions, self._sequence(transactions + 1))

    def _sequence(self, index: int) -> int:
        """The number of a transaction, which wraps around."""
        return self._first + index & 0xFFFFFFFF

    def _scan(self) -> Steps[int]:
        """How many transactions are complete."""
        superblock, log = self._superblock, _Log(self._superblock)
        index = 0
        failed: int | None = None
        checksum, last_time, is_suspect = ALL_ONES, 0, False
        while True:
            block, (magic, kind, sequence) = yield from log.block()
            if magic != JBD2_MAGIC_NUMBER or sequence != self._sequence(index):
                break
            if kind == JBD2_DESCRIPTOR_BLOCK:
                # It may be one of an earlier use of the disk: the commit block will tell.
                is_suspect = is_suspect or not superblock.has_right_tail(block)
                tags = superblock.tags(block)
                self._tagged.update(tag.number for tag in tags)
                if len(self._tagged) > self._most:
                    raise UnsupportedFeature(f"the journal has more than {self._most} different blocks to replay")
                if not superblock.has_transaction_checksums or failed is not None:
                    log.skip(len(tags))
                    continue
                checksum = crc32_be(checksum, block)
                for blocks in log.take(len(tags)):
                    checksum = crc32_be(checksum, (yield blocks))
            elif kind == JBD2_REVOKE_BLOCK:
                is_suspect = is_suspect or not superblock.has_right_tail(block)
            elif kind == JBD2_COMMIT_BLOCK:
                time = commit_time(block)
                if superblock.has_transaction_checksums and failed is not None:
                    # It was not the last one that failed, so it was not the crash.
                    raise self._broken(failed)
                if is_suspect or not superblock.is_right_commit(block, checksum):
                    # Older than what comes before: what an earlier use of the disk has left there.
                    if time < last_time:
                        break
                    if is_suspect or "async_commit" not in superblock.features:
                        raise self._broken(index)
                    failed = index if failed is None else failed
                else:
                    checksum = ALL_ONES
                last_time = time
                index += 1
            else:
                break
        return index if failed is None else failed

    def _broken(self, index: int) -> CorruptFilesystem:
        return CorruptFilesystem(
            f"the journal is corrupt: transaction {self._sequence(index)} does not have the checksum that it says"
        )

    def _check_fast_commits(self, transactions: int) -> Steps[None]:
        """Raise UnsupportedFeature if there are fast commits behind the last transaction (fs/ext4/fast_commit.c,
        ext4_fc_replay_scan)."""
        first = self._superblock.end + 1
        if first < self._superblock.s_maxlen:
            block = yield range(first, first + 1)
            tag, _, _, tid = _FAST_COMMIT.unpack_from(block)
            if tag == _EXT4_FC_TAG_HEAD and tid == self._sequence(transactions):
                raise UnsupportedFeature(
                    "the journal ends in fast commits (fast_commit), which mystfuse does not replay: "
                    "e2fsck -fy on a copy of the image puts them into it"
                )

    def _find_revoked(self, transactions: int) -> Steps[None]:
        superblock, log = self._superblock, _Log(self._superblock)
        index = 0
        while index < transactions:
            block, header = yield from self._next(log, index)
            if header.h_blocktype == JBD2_DESCRIPTOR_BLOCK:
                log.skip(len(superblock.tags(block)))
            elif header.h_blocktype == JBD2_COMMIT_BLOCK:
                index += 1
            else:
                for number in superblock.revoked(block):
                    if number in self._tagged:
                        self._revoked[number] = index

    def _find_places(self, transactions: int) -> Steps[None]:
        superblock, log = self._superblock, _Log(self._superblock)
        index = 0
        while index < transactions:
            block, header = yield from self._next(log, index)
            if header.h_blocktype == JBD2_COMMIT_BLOCK:
                index += 1
            elif header.h_blocktype == JBD2_DESCRIPTOR_BLOCK:
                if not superblock.has_right_tail(block):
                    raise self._broken(index)
                tags = superblock.tags(block)
                for blocks in log.take(len(tags)):
                    yield from self._place(blocks, tags[: len(blocks)], index)
                    del tags[: len(blocks)]

    def _next(self, log: _Log, index: int) -> Steps[tuple[bytes, Header]]:
        """The next block, of transaction ``index``, as the first pass has seen it."""
        block, header = yield from log.block()
        if header.h_magic != JBD2_MAGIC_NUMBER or header.h_sequence != self._sequence(index):
            raise CorruptFilesystem("the journal's log is not what it was a moment ago")
        return block, header

    def _place(self, blocks: range, tags: list[Tag], index: int) -> Steps[None]:
        """Note that blocks of the log are the latest state of those in their tags, unless they were revoked later."""
        superblock = self._superblock
        wanted = [place for place in zip(blocks, tags, strict=True) if self._revoked.get(place[1].number, -1) < index]
        contents = b""
        if wanted and superblock.has_block_checksums:
            contents = yield blocks
        for block, tag in wanted:
            start = (block - blocks.start) * superblock.block_size
            content = memoryview(contents)[start : start + superblock.block_size]
            if not superblock.is_content(tag, self._sequence(index), content):
                raise CorruptFilesystem(
                    f"the journal is corrupt: its block {block}, for block {tag.number} of the file system, does not "
                    "have the checksum that it should"
                )
            if tag.number >= self._blocks_count:
                raise CorruptFilesystem(f"the journal has block {tag.number}, which is outside the file system")
            self._places[tag.number] = Place(block, tag.is_escaped)
