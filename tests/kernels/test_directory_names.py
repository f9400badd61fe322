"""Names in directory blocks: the C kernel and the loop in Python give the same results."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from types import SimpleNamespace
from typing import cast

import pytest

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2 import directory
from mystfuse.ext2.directory import parse_block
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.superblock import Superblock
from mystfuse.kernels.interface import NOT_FOUND, UNUSUAL
from mystfuse.kernels.pure import directory_names as pure_directory
from tests.support.kernels import native_directory, needs_native

DIRECTORY = cast(Inode, SimpleNamespace(ino=2, is_encrypted=False))


def entries(source: random.Random, size: int, number: int, has_filetype: bool) -> tuple[bytearray, list[int]]:
    """A block of a directory, and the places of its entries: ``.`` and ``..`` if it is the first, names of all lengths,
    free entries, and slack."""
    block = bytearray(size)
    offsets: list[int] = []
    names = [b".", b".."] if number == 0 else []
    offset = 0
    while offset < size:
        alphabet = source.choice((b"ab", bytes(set(range(256)) - {0, 0x2F})))
        name = names.pop(0) if names else bytes(source.choices(alphabet, k=source.choice((1, 2, 3, 8, 15, 40, 255))))
        name = b"..." if name in (b".", b"..") and offset > 12 else name
        rec_len = 8 + len(name) + 3 & ~3
        if not names and offset > 12 and source.random() < 0.2:
            rec_len += 4 * source.randrange(40)
        if offset + rec_len > size - 12:
            rec_len = size - offset
        name = name[: rec_len - 8]
        ino = 0 if offset > 24 and source.random() < 0.1 else source.randrange(1, 1 << 32)
        struct.pack_into("<IHBB", block, offset, ino, rec_len, len(name), source.randrange(8) if has_filetype else 0)
        block[offset + 8 : offset + 8 + len(name)] = name
        offsets.append(offset)
        offset += rec_len
    return block, offsets


def directory_blocks(damages: int) -> Iterator[tuple[Superblock, int, bytes, random.Random]]:
    for seed in range(300):
        source = random.Random(seed)
        size, number, has_filetype = source.choice((1024, 4096)), source.choice((0, 1, 70_000)), source.random() < 0.7
        block, offsets = entries(source, size, number, has_filetype)
        for _ in range(source.randrange(damages + 1)):
            # In an entry's header, more often than not.
            header = source.choice(offsets) + source.randrange(9)
            position = source.choice((header, header, source.randrange(size)))
            block[position] = source.choice((0, 1, 4, 12, 0x2F, 0xFF, source.randrange(256)))
        yield (
            cast(Superblock, SimpleNamespace(has_filetype=has_filetype, block_size=size)),
            number,
            bytes(block),
            source,
        )


def names_of(superblock: Superblock, number: int, block: bytes) -> list[bytes]:
    """The names in front of the damage."""
    names: list[bytes] = []
    with suppress(CorruptFilesystem):
        names.extend(entry.name for entry in parse_block(superblock, DIRECTORY, block, number))
    return names


@pytest.mark.logs(r"^mystfuse\.ext2")
@needs_native
@pytest.mark.parametrize("damages", [0, 3], ids=["sound", "damaged"])
def test_native_find_is_as_going_through_the_block(damages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "find_entry", pure_directory.find_entry)
    results: Counter[str] = Counter()
    for superblock, number, block, source in directory_blocks(damages):
        names = names_of(superblock, number, block)
        for name in [*source.sample(names, min(len(names), 20)), b"a", b"missing", b"", b".", b"..", b"a/", b"\0"]:
            place = native_directory.find_entry(block, superblock.has_filetype, name)
            if place == UNUSUAL:
                results["unusual"] += 1
                continue
            found = directory.find_in_block(superblock, DIRECTORY, block, number, name)
            if place == NOT_FOUND:
                assert found is None
                results["not found"] += 1
            else:
                assert found is not None
                assert (found.offset << 32 | found.previous + 1) == place
                results["found"] += 1
    assert results["found"] > 1000 and results["not found"] > 1000
    assert (results["unusual"] > 50) == bool(damages)


@needs_native
@pytest.mark.parametrize("damages", [0, 3], ids=["sound", "damaged"])
def test_native_keys_are_of_the_names_in_the_block(damages: int, caplog: pytest.LogCaptureFixture) -> None:
    unusual = 0
    for superblock, number, block, source in directory_blocks(damages):
        bits = source.choice((0, 1, 8))
        in_front = [b""] if number else []
        first = number - len(in_front)
        keys, left = native_directory.block_keys([*in_front, block], first, superblock.has_filetype, bits)
        assert len(keys) == 1 << bits
        if left:
            assert left == [len(in_front)] and not any(keys)
            unusual += 1
            continue
        for part, some in enumerate(keys):
            assert {key >> 64 - bits for key in some} <= {part}
        names = [entry.name for entry in parse_block(superblock, DIRECTORY, block, number)]
        assert sorted(chain(*keys)) == sorted(native_directory.name_key(name) | number for name in names)
    assert not caplog.records, "names that cannot be are for Python to complain of"
    assert (unusual > 30) == bool(damages)


@needs_native
def test_native_keys_are_many_and_different() -> None:
    keys = {native_directory.name_key(b"%d" % number) for number in range(10_000)}
    assert len(keys) > 9_990
    assert all(key & 0xFFFFFFFF == 0 and key >> 64 == 0 for key in keys)
    buckets = Counter(key >> 60 for key in keys)
    assert len(buckets) == 16 and max(buckets.values()) < 900


@needs_native
def test_native_hash_is_siphash_1_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with Python's own hash of bytes, which is the same function on most builds."""
    script = (
        "import sys; assert sys.hash_info.algorithm == 'siphash13', sys.hash_info\n"
        "print(*[hash(bytes(range(size))) & (1 << 64) - 1 for size in range(1, 257)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(result.stderr.splitlines()[-1])
    # PYTHONHASHSEED=0 is a secret of zeros.
    monkeypatch.setattr(native_directory, "_SECRET", bytes(16))
    hashes = [int(text) for text in result.stdout.split()]
    assert [native_directory.name_key(bytes(range(size))) >> 32 for size in range(1, 257)] == [
        number & 0xFFFFFFFF for number in hashes
    ]
