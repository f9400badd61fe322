"""Hashes of names in indexed directories: those of debugfs, and the same in C and in Python."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from uuid import UUID

import pytest

from mystfuse.kernels.interface import NO_ROOM, UNUSUAL
from mystfuse.kernels.pure import directory_hash as pure
from tests.support.commands import run
from tests.support.kernels import needs_native

SEED = UUID("01234567-89ab-cdef-0123-456789abcdef")
WORDS = struct.unpack("<4I", SEED.bytes)
NO_SEED = (0, 0, 0, 0)
NAMES = ("a", "ab", "hello", "x" * 33, "caf\u00e9", "file-000001", "z" * 255)


@pytest.mark.parametrize(("version", "name"), list(enumerate(("legacy", "half_md4", "tea"))))
@pytest.mark.parametrize("seed", [None, SEED], ids=["", "seed"])
def test_hashes_are_those_of_debugfs(version: int, name: str, seed: UUID | None, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("".join(f"dx_hash -h {name} {f'-s {seed}' if seed else ''} {one}\n" for one in NAMES))
    said = [line for line in run("debugfs", "-f", script).stdout.splitlines() if line.startswith("Hash of")]
    assert len(said) == len(NAMES)
    for one, line in zip(NAMES, said, strict=True):
        assert f" is {pure.name_hash(version, WORDS if seed else NO_SEED, one.encode()):#x} " in line


def test_signs_matter_for_bytes_above_127_alone() -> None:
    for version in range(3):
        assert pure.name_hash(version, WORDS, b"plain") == pure.name_hash(version + 3, WORDS, b"plain")
        assert pure.name_hash(version, WORDS, b"\xe9") != pure.name_hash(version + 3, WORDS, b"\xe9")


@needs_native
@pytest.mark.parametrize("seed", range(10))
def test_c_gives_the_same(seed: int) -> None:
    from mystfuse.kernels.native import directory_hash as native

    source = random.Random(seed)
    for _ in range(60):
        words = tuple(source.getrandbits(32) for _ in range(4)) if source.random() < 0.7 else NO_SEED
        assert len(words) == 4
        name = source.randbytes(source.choice((1, 3, 4, 5, 16, 17, 31, 32, 33, 64, 255, source.randrange(1, 256))))
        for version in range(6):
            assert native.name_hash(version, words, name) == pure.name_hash(version, words, name)


def block_of(source: random.Random, has_filetype: bool) -> tuple[bytes, list[tuple[int, bytes, int]]]:
    """A block of names, and its entries: offset, name (empty if it is free), and rec_len."""
    block, entries, offset = bytearray(1024), [], 0
    while offset < 1012:
        name = source.randbytes(source.choice((1, 4, 20, 100)))
        rec_len = 8 + len(name) + 3 & ~3
        if source.random() < 0.3:
            rec_len += 4 * source.randrange(20)
        if offset + rec_len > 1012 - 12:
            rec_len = 1012 - offset
            name = name[: rec_len - 8]
        ino = 0 if source.random() < 0.1 else 12
        kind = 1 if has_filetype else 0
        struct.pack_into("<IHBB", block, offset, ino, rec_len, len(name), kind)
        block[offset + 8 : offset + 8 + len(name)] = name
        entries.append((offset, name if ino else b"", rec_len))
        offset += rec_len
    struct.pack_into("<IHBBI", block, 1012, 0, 12, 0, 0xDE, 0x12345678)
    return bytes(block), entries


@needs_native
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("has_filetype", [True, False])
def test_blocks_of_names(seed: int, has_filetype: bool) -> None:
    from mystfuse.kernels.native import directory_hash as native

    source = random.Random(seed)
    block, entries = block_of(source, has_filetype)
    expected = sorted(
        pure.name_hash(4, WORDS, name) << 32 | offset << 16 | 8 + len(name) + 3 & ~3
        for offset, name, _ in entries
        if name
    )
    assert native.hashed_entries(block, 1012, has_filetype, 4, WORDS) == expected
    for needed in (12, 16, 40, 108, 264):
        fitting = [
            offset for offset, name, rec_len in entries if rec_len - (8 + len(name) + 3 & ~3 if name else 0) >= needed
        ]
        assert native.find_room(block, 1012, has_filetype, needed) == (fitting[0] if fitting else NO_ROOM)
    broken = bytearray(block)
    struct.pack_into("<H", broken, entries[-1][0] + 4, source.choice((0, 10, 4096)))
    assert native.hashed_entries(bytes(broken), 1012, has_filetype, 4, WORDS) is None
    assert native.find_room(broken, 1012, has_filetype, 1000) == UNUSUAL
