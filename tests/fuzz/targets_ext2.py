"""Targets: each structure of the file system by itself, with all blocks in memory."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from contextlib import suppress

from mystfuse.errors import CorruptFilesystem, FormatError, MystfuseError
from mystfuse.ext2.bitmap import Bitmap
from mystfuse.ext2.block_map import map_block, map_blocks, map_runs, map_stretch
from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.create import create
from mystfuse.ext2.directory import list_entries
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.link_and_unlink import remove
from mystfuse.ext2.orphans import release
from mystfuse.ext2.rename import DirectoryName, rename
from mystfuse.ext2.superblock import Superblock
from mystfuse.ext2.symlink import is_fast, read_target
from tests.fuzz.ext2_memory import ROOT, SOUND, Memory, T, change, numbers
from tests.fuzz.harness import Choices, Target, bounded, ensure
from tests.fuzz.images import load

# -- superblock


def superblock(data: bytes) -> None:
    """Mounting takes no longer for any superblock. The first byte says whether to make the inode count fit; without
    that, we refuse almost all."""
    choices = Choices(data)
    makes_fit = choices.below(2)
    raw = bytearray(choices.take(1024))
    if makes_fit:
        blocks, first, per_group, inodes = (struct.unpack_from("<I", raw, at)[0] for at in (4, 20, 32, 40))
        count = -(-(blocks - first) // max(per_group, 1)) * inodes
        struct.pack_into("<I", raw, 0, count & 0xFFFFFFFF)
    try:
        parsed = Superblock.parse(raw)
    except FormatError:
        return
    with bounded(2, "mounting"):
        filesystem = FileSystem(parsed)
        ensure(0 < parsed.size <= 1 << 48 and 1 <= parsed.groups_count < 1 << 32, "an impossible size")
        ensure(0 < parsed.max_file_size < 1 << 48, f"files of {parsed.max_file_size} bytes")
        ensure(parsed.group_has_superblock(0) and parsed.table_blocks > 0, "no room for inodes")
        block = bytes(raw) if parsed.block_size == 1024 else bytes(1024) + bytes(raw)
        zeros = bytes(parsed.block_size)
        first = block.ljust(parsed.block_size, b"\0")
        statistics = filesystem.statistics(Blocks(lambda number: first if number == parsed.location[0] else zeros))
        ensure(all(0 <= value < 1 << 64 for value in vars_of(statistics)), f"{statistics}")
        # A descriptor table of zeros.
        for group in {0, parsed.groups_count // 2, parsed.groups_count - 1}:
            with suppress(CorruptFilesystem):
                descriptor = filesystem.groups.descriptor(Blocks(lambda number: zeros), group)
                ensure(False, f"{descriptor} in group {group}")


def vars_of(statistics: object) -> list[int]:
    return [getattr(statistics, name) for name in type(statistics).__slots__]  # type: ignore[attr-defined]


# -- group descriptors


def groups(data: bytes) -> None:
    """An accepted descriptor has its group's metadata inside the group; taking and freeing keep the counts right, or
    raise."""
    choices = Choices(data)
    memory = Memory(load(choices.pick((*SOUND, "groups"))).copy())
    superblock = memory.superblock
    table = (superblock.s_first_data_block + 1) * superblock.block_size
    count = min(superblock.groups_count, 8)
    for group in range(count):
        if choices.below(2):
            for field in range(3):
                old = memory.image.number(table + 32 * group + 4 * field, 4)
                if choices.below(2):
                    others = (memory.filesystem.groups.first_block(group), superblock.s_blocks_count)
                    memory.image.put_number(table + 32 * group + 4 * field, 4, choices.nasty(4, old, others))
            for field in range(3):
                if choices.below(2):
                    old = memory.image.number(table + 32 * group + 12 + 2 * field, 2)
                    memory.image.put_number(table + 32 * group + 12 + 2 * field, 2, choices.nasty(2, old))
    for group in range(count):
        first, size = memory.filesystem.groups.first_block(group), memory.filesystem.groups.size(group)
        try:
            descriptor = memory.filesystem.groups.descriptor(memory.blocks(), group)
        except CorruptFilesystem:
            continue
        for number, length in zip(descriptor[:3], (1, 1, superblock.table_blocks), strict=True):
            ensure(first <= number and number + length <= first + size, f"group {group}: {descriptor}")
    memory.filesystem.groups.counts(memory.blocks())
    for _ in range(4):
        name = b"new%d" % choices.below(4)
        mode = choices.pick((0o100644, 0o040755, 0o120777))
        try:
            inode = memory.change(create, ROOT, name, mode, 0, b"t" * 80)
        except (CorruptFilesystem, OSError):
            continue
        in_use = memory.filesystem.inode_table.is_in_use(memory.blocks(), inode.ino)
        ensure(in_use, "an inode that was made is not in use")
        ensure(superblock.s_first_ino <= inode.ino <= superblock.s_inodes_count, f"inode {inode.ino} was made")


# -- inode


def inode(data: bytes) -> None:
    """Writing an inode and reading it back gives the same inode."""
    choices = Choices(data)
    size = choices.pick((128, 256, 512, 4096))
    offset = choices.pick((0, size))
    raw = bytes(offset) + choices.take(size)
    try:
        parsed = Inode.parse(raw, 12, offset, size)
    except MystfuseError as error:
        ensure(isinstance(error, FormatError), "an error of another kind")
        return
    ensure(0 <= parsed.size < 1 << 63 and len(parsed.extra) <= size, "an impossible size")
    ensure(0 <= parsed.rdev < 1 << 64, f"device {parsed.rdev}")
    packed = bytearray(raw)
    parsed.pack_into(packed, offset)
    again = Inode.parse(bytes(packed), 12, offset, size)
    ensure(len(packed) == len(raw) and packed[:offset] == raw[:offset], "something else is written as well")
    ensure(again == parsed or not parsed.is_exact, "an exact inode is read as another")
    # Times are truncated to their fields' sizes, and a nanosecond field may exceed a second.
    times = ("atime_ns", "ctime_ns", "mtime_ns")
    for name in times:
        before, after = getattr(parsed, name), getattr(again, name)
        is_odd = before % 10**9 == 0 or parsed.i_extra_isize or after // 10**9 == before // 10**9
        ensure(is_odd or abs(after - before) < 5 * 10**9, f"{name}: {before} becomes {after}")
    ensure(again._replace(**dict.fromkeys(times, 0)) == parsed._replace(**dict.fromkeys(times, 0)), "not read back")
    os.major(parsed.rdev)


# -- block map


def block_map(data: bytes) -> None:
    """The four ways to find a file's blocks agree for any map; releasing the map works or raises."""
    choices = Choices(data)
    memory = Memory(load(choices.pick(SOUND)).copy())
    superblock = memory.superblock
    size = superblock.block_size
    # Indirect blocks, and the targets of pointers: mostly free blocks near the end.
    pool = [superblock.s_blocks_count - 1 - index for index in range(12)]
    others = (*pool, superblock.s_blocks_count, superblock.s_first_data_block, 1)
    ino = numbers(choices.pick(SOUND[:1]))[b"file"] if size == 1024 and superblock.features else 13
    pointers = [choices.pick((0, *others)) for _ in range(15)]
    for number in pool[:6]:
        for _ in range(choices.below(6)):
            index = choices.pick((0, 1, size // 4 - 1, choices.below(size // 4)))
            memory.image.put_number(number * size + 4 * index, 4, choices.pick((0, *others)))
    at = memory.inode_offset(ino)
    memory.image.put(
        at, struct.pack("<HHI", 0o100644, 0, 1 << 20) + bytes(18) + b"\1\0" + struct.pack("<I", 64) + bytes(8)
    )
    memory.image.put(at + 40, struct.pack("<15I", *pointers))
    file = memory.filesystem.inode(memory.blocks(), ino)
    per_block = size // 4
    ends = [12 + per_block, 12 + per_block + per_block**2, 12 + per_block + per_block**2 + per_block**3]
    for _ in range(3):
        first = max(choices.pick((0, 11, 12, *ends, choices.number(4))) - choices.below(3), 0)
        count = 1 + choices.below(300)
        answers = [ask(lambda: map_blocks(superblock, memory.blocks(), file, first, count))]  # noqa: B023
        answers.append(ask(lambda: [  # noqa: B023
            number for run in map_runs(superblock, memory.blocks(), file, first, count)  # noqa: B023
            for number in (range(run.physical, run.physical + run.length) if run.physical else [0] * run.length)
        ]))  # fmt: skip
        ensure(answers[0] == answers[1], "map_runs disagrees with map_blocks")
        if answers[0] is None:
            continue
        ensure(len(answers[0]) == count, "another number of blocks")
        ensure(all(not number or superblock.is_data_block(number) for number in answers[0]), "outside")
        ensure(map_block(superblock, memory.blocks(), file, first) == answers[0][0], "map_block disagrees")
        # A stretch also reads the following pointers, which may be broken.
        stretch = ask(lambda: map_stretch(superblock, memory.blocks(), file, first))  # noqa: B023
        if stretch is not None:
            ensure(stretch.length > 0 and stretch.is_data == bool(answers[0][0]), f"{stretch} at {first}")
            ensure(
                all(bool(number) == stretch.is_data for number in answers[0][: stretch.length]), f"{stretch} at {first}"
            )
    memory.image.put_number(at + 26, 2, 0)
    memory.filesystem.orphans.add(ino)
    with suppress(CorruptFilesystem):
        for _ in range(20):
            if memory.change(release, ino):
                break
        else:
            ensure(False, "the file is never released")


def ask(question: Callable[[], T]) -> T | None:
    """The answer, or None if the map is broken."""
    try:
        return question()
    except CorruptFilesystem:
        return None


# -- directories


def directory(data: bytes) -> None:
    """Listings and lookups agree for any directory; adding, renaming and removing change exactly the given names.

    The directory's blocks are the input: of one block, or of several, with or without file types, perhaps hash-indexed.
    """
    choices = Choices(data)
    name = choices.pick(("small", "small", "old"))
    memory = Memory(load(name).copy())
    superblock = memory.superblock
    ino = numbers(name)[b"many" if choices.below(2) else b"dir"]
    at = memory.inode_offset(ino)
    inode = memory.filesystem.inode(memory.blocks(), ino)
    used = [number for number in map_blocks(superblock, memory.blocks(), inode, 0, inode.size // 1024) if number]
    for number in used:
        if choices.below(2):
            memory.image.put(number * 1024 + choices.below(1024), choices.take(choices.below(256)))
    if choices.below(2):
        memory.image.put_number(at + 4, 4, choices.pick((0, 1024, 1025, 2048, 1 << 20, 1 << 31)))
    step = 1 + choices.below(40)
    names = listing(memory, ino, step)
    found: dict[bytes, int] = {}
    for entry, number in names or ():
        found.setdefault(entry, number)
    for entry, number in list(found.items())[:40]:
        try:
            child = memory.filesystem.lookup(memory.blocks(), ino, entry)
        except CorruptFilesystem:
            # The inode may be impossible, or the name's block broken in front of it for the other reader.
            continue
        ensure(child is not None, f"{entry!r} is listed and not found")
        assert child is not None
        ensure(child.ino == number, f"{entry!r} is inode {number} and {child.ino}")
    with suppress(CorruptFilesystem):
        ensure(memory.filesystem.lookup(memory.blocks(), ino, b"no such name") is None, "what is not there is found")
    new = choices.pick((b"n", b"new name", b"n" * 255, *list(found)[:2]))
    is_new = change(memory, create, ino, new, 0o100644)
    ensure(not is_new or new not in found, f"{new!r} is there twice")
    if is_new and names is not None:
        after = listing(memory, ino, 1000)
        ensure(after is not None and {entry for entry, _ in after} == {*found, new}, f"{new!r} was added to {found}")
    if is_new:
        second = choices.pick((b"m", b"m" * 254, b"n"))
        if change(memory, rename, DirectoryName(ino, new), DirectoryName(ino, second), 0):
            new = second
        gone = change(memory, remove, ino, new, False)
        if names is not None and not any(entry == second for entry in found):
            ensure(gone, f"{new!r} cannot be removed")
            after = listing(memory, ino, 1000)
            ensure(after is not None and {entry for entry, _ in after} == set(found), f"{new!r} was removed")


def listing(memory: Memory, ino: int, step: int) -> list[tuple[bytes, int]] | None:
    """All names of a directory with their inode numbers; None if it is broken."""
    names: list[tuple[bytes, int]] = []
    offset = 0
    try:
        inode = memory.filesystem.directory(memory.blocks(), ino)
        while True:
            entries, following = list_entries(memory.superblock, memory.blocks(), inode, offset, step)
            names += [(entry.name, entry.ino) for entry in entries]
            ensure(offset < following <= inode.size, "a listing that does not go on")
            ensure(len(entries) <= step, "too many entries")
            offset = following
            if offset >= inode.size:
                return names
    except CorruptFilesystem:
        return None


def directory_seeds() -> list[bytes]:
    seeds = [b"\0", b"\0\1", b"\2", b"\2\1"]
    for name, first in (("small", 0), ("old", 2)):
        memory = Memory(load(name))
        for which, directory_name in enumerate((b"dir", b"many")):
            inode = memory.filesystem.inode(memory.blocks(), numbers(name)[directory_name])
            parts = [bytes([first, which])]
            for number in map_blocks(memory.superblock, memory.blocks(), inode, 0, min(inode.size // 1024, 3)):
                parts.append(b"\1\0\0\xff" + memory.image.get(number * 1024, 255))
            seeds.append(b"".join(parts))
    return seeds


# -- symbolic links


def symlink(data: bytes) -> None:
    """A target is refused, or as long as the inode says and shorter than the longest path; no inode is both kinds."""
    choices = Choices(data)
    image = choices.pick(SOUND)
    memory = Memory(load(image).copy())
    ino = numbers(image)[b"slow" if choices.below(2) else b"fast"]
    at = memory.inode_offset(ino)
    for offset, size in ((4, 4), (28, 4), (104, 4), (40, 4), (108, 4)):
        if choices.below(2):
            old = memory.image.number(at + offset, size)
            others = (60, 59, 61, 1023, 1024, 4095, 4096, memory.superblock.s_blocks_count)
            memory.image.put_number(at + offset, size, choices.nasty(size, old, others))
    memory.image.put(at + 44, choices.take(choices.below(50)))
    try:
        inode = memory.filesystem.inode(memory.blocks(), ino)
        is_fast(memory.superblock, inode)
        target = read_target(memory.superblock, memory.blocks(), inode)
    except CorruptFilesystem:
        return
    ensure(0 < len(target) == inode.size < 4096, f"a target of {len(target)} bytes")


# -- bitmaps


def bitmap(data: bytes) -> None:
    """Runs in a bitmap equal those that counting bit by bit finds."""
    choices = Choices(data)
    size = 1 + choices.below(4096)
    raw = choices.pick((b"\xff", b"\0")) * choices.below(300) + choices.take(choices.below(64))
    raw = raw.ljust(512, choices.pick((b"\xff", b"\0")))[:512]
    bits = [bool(raw[index >> 3] >> (index & 7) & 1) for index in range(size)]
    packed = bytearray(raw)
    tested = Bitmap(packed, size)
    start, longest = choices.below(4200), 1 + choices.below(600)
    first = next((index for index in range(start, size) if not bits[index]), None)
    expected = (0, 0)
    if first is not None:
        end = next((index for index in range(first, size) if bits[index]), size)
        expected = (first, min(end - first, longest))
    ensure(
        tested.find_free_run(start, longest) == expected,
        f"{expected} is found as {tested.find_free_run(start, longest)}",
    )
    low = choices.below(size)
    count = 1 + choices.below(size - low)
    ensure(tested.are_set(low, count) == all(bits[low : low + count]), "are_set is wrong")
    was_set = all(bits[low : low + count])
    ensure(tested.clear([(low, count)]) == was_set, "clear is wrong")
    ensure(was_set or packed == raw, "clear has changed something")
    tested.set(low, count)
    for index in range(size):
        bits[index] = bits[index] or low <= index < low + count
    ensure([bool(packed[index >> 3] >> (index & 7) & 1) for index in range(size)] == bits, "set is wrong")
    ensure(packed[math.ceil(size / 8) :] == raw[math.ceil(size / 8) :], "bits behind the end have changed")


TARGETS = [
    Target("superblock", superblock, lambda: [
        bytes([fit]) + load(name).get(1024, 1024) for name in ("small", "old", "groups", "large") for fit in (0, 1)
    ], 1025),
    Target("groups", groups, max_length=200),
    Target("inode", inode, lambda: [
        bytes([kind, 0]) + load(name).get(Memory(load(name)).inode_offset(ino), (128, 256)[kind])
        for name, kind in (("small", 1), ("old", 0)) for ino in (2, *list(numbers("small").values())[:9])
    ], 600),
    Target("block-map", block_map, max_length=400),
    Target("directory", directory, directory_seeds, 1200),
    Target("symlink", symlink, max_length=100),
    Target("bitmap", bitmap, max_length=100),
]  # fmt: skip
