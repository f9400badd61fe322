"""The names of one large directory and the blocks that have them, sorted in memory.

Eight bytes a name: sorted arrays of (hash of the name << 32 | block), so that a lookup is a bisection and a directory
of a million names takes 9 MB. A large directory has many arrays, by the first bits of the hash, each sorted when it is
first searched: sorting them all at once would delay other requests. A byte a block says how much room for another entry
there is at most.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.inode import Inode
from mystfuse.kernels.directory_names import name_key

_CROWDED = 512
"""Names of one step in one array: with more, some may be the same name many times."""
_RECENT = 4096
"""Added names are merged into the sorted arrays when there are so many."""
_UNKNOWN_ROOM = 255
_MOST_ROOM = 254
"""In units of 4 bytes; an entry needs 67 at most, so more makes no difference."""
_PROBED_BLOCKS = 8
"""Blocks that one insertion searches, whose room is known only as an upper bound or not at all, before the directory
grows."""


class NameIndex:
    """The index of one directory. ``indexed`` blocks of it are in; it is of use when all are.

    Args:
        bits: of the hash, by which names are divided into arrays.
    """

    def __init__(self, bits: int) -> None:
        self.indexed = 0
        self.damage = ""
        """Broken blocks: why a name that is not found may still exist."""
        self.unread: set[int] = set()
        """Blocks that could not be read: storage may return them next time."""
        self.bits = bits
        self._keys = [array("Q") for _ in range(1 << bits)]
        self._shift = 64 - bits
        self._unsorted: set[int] = set()
        """The arrays that must be sorted before a search."""
        self._key_count = 0
        self._recent: dict[int, list[int]] = {}
        self._recent_count = 0
        self._removed = 0
        self._room = bytearray()
        self._blocks: set[int] = set()

    def __len__(self) -> int:
        return self._key_count + self._recent_count

    @property
    def is_mostly_stale(self) -> bool:
        """Whether most of its names have been removed since."""
        return self._removed > len(self) // 2 + _RECENT

    def add_blocks(self, count: int, keys: list[array[int]]) -> None:
        """The next ``count`` blocks are indexed, damaged ones included.

        Args:
            keys: of the names in them, as ``block_keys`` gives them.
        """
        for number, some in enumerate(keys):
            if some:
                self._keys[number].extend(some if len(some) < _CROWDED else array("Q", set(some)))
                self._unsorted.add(number)
                self._key_count += len(some)
        self.indexed += count
        self._room.extend(bytes((_UNKNOWN_ROOM,)) * count)

    def add_names(self, logical: int, names: Iterable[bytes]) -> None:
        """Enter the names of block ``logical``; a CorruptFilesystem in the middle of it is recorded as damage."""
        try:
            for name in names:
                self._add_key(name_key(name) | logical)
        except CorruptFilesystem as error:
            # Not the error itself: it would keep the operation's memory, and more each time it is raised.
            self.damage = self.damage or str(error)

    def _add_key(self, key: int) -> None:
        number = key >> self._shift
        self._keys[number].append(key)
        self._unsorted.add(number)
        self._key_count += 1

    def add_name(self, name: bytes, logical: int) -> None:
        """Enter a name that was put into block ``logical``, which is indexed already."""
        self._recent.setdefault(name_key(name), []).append(logical)
        self._recent_count += 1
        if self._recent_count >= _RECENT:
            for key, blocks in self._recent.items():
                for block in blocks:
                    self._add_key(key | block)
            self._recent.clear()
            self._recent_count = 0

    def remove_name(self, name: bytes, logical: int) -> None:
        """Remove a name of block ``logical``. It stays in the sorted array, which costs a useless look."""
        blocks = self._recent.get(name_key(name), [])
        if logical in blocks:
            blocks.remove(logical)
            self._recent_count -= 1
            if not blocks:
                del self._recent[name_key(name)]
        else:
            self._removed += 1

    def set_room(self, logical: int, length: int) -> None:
        """The longest entry that fits block ``logical`` has ``length`` bytes, or fewer."""
        self._room[logical] = min(length // 4, _MOST_ROOM)

    def raise_room(self, logical: int, length: int) -> None:
        """Block ``logical`` may now have room for an entry of ``length`` bytes."""
        if self._room[logical] != _UNKNOWN_ROOM:
            self._room[logical] = max(self._room[logical], min(length // 4, _MOST_ROOM))

    def blocks_with_room(self, length: int) -> list[int]:
        """Blocks to try for an entry of ``length`` bytes; if none has room, the directory needs another block."""
        matches = _room_pattern(length // 4).finditer(self._room)
        blocks = [match.start() for match in islice(matches, _PROBED_BLOCKS)]
        if blocks:
            return blocks
        end = len(self._room)
        while len(blocks) < _PROBED_BLOCKS and (end := self._room.rfind(_UNKNOWN_ROOM, 0, end)) >= 0:
            blocks.append(end)
        return blocks

    def blocks_with_names(self) -> Iterator[int]:
        """The blocks that contain names, or did when the index was built, each once."""
        seen: set[int] = set()
        keys = chain.from_iterable(self._keys)
        for logical in chain((key & 0xFFFFFFFF for key in keys), *self._recent.values()):
            if logical not in seen:
                seen.add(logical)
                yield logical

    def check_blocks(self, inode: Inode, numbers: list[int]) -> None:
        """Raise CorruptFilesystem if a directory maps a block twice: a small image could claim to hold a huge one."""
        new = {number for number in numbers if number}
        if len(new) + numbers.count(0) != len(numbers) or not self._blocks.isdisjoint(new):
            raise CorruptFilesystem(f"directory inode {inode.ino} has a block twice")

    def remember_blocks(self, numbers: list[int]) -> None:
        """Record blocks that are about to be entered, for ``check_blocks``."""
        self._blocks.update(numbers)
        self._blocks.discard(0)

    def forget_blocks(self) -> None:
        """Drop the data of ``check_blocks``, once all blocks are indexed."""
        self._blocks = set()

    def candidates(self, name: bytes) -> list[int]:
        """The blocks that may hold ``name``, in order; nearly always none or one."""
        key = name_key(name)
        number = key >> self._shift
        if number in self._unsorted:
            self._keys[number] = array("Q", sorted(set(self._keys[number])))
            self._unsorted.remove(number)
        keys = self._keys[number]
        found: list[int] = []
        for position in range(bisect_left(keys, key), len(keys)):
            other = keys[position] - key
            if other >> 32:
                break
            found.append(other)
        return found + self._recent[key] if key in self._recent else found


@cache
def _room_pattern(units: int) -> re.Pattern[bytes]:
    return re.compile(b"[%b-%b]" % (re.escape(bytes([units])), re.escape(bytes([_MOST_ROOM]))), re.DOTALL)
