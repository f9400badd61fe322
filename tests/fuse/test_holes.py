"""Holes of files, each compared with the kernel's on its own mount of the same image: SEEK_DATA and SEEK_HOLE, punching
holes, at every boundary of the block map; and what only we do: allocating, and zeroing ranges."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
from collections.abc import Iterator
from errno import EBADF, EFBIG, EINVAL, ENOSPC, ENXIO, EOPNOTSUPP
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.errno_pairs import DONE, Case, Pair, cases, check_in, handle_of, libc, opened, outcome, pair_of
from tests.support.file_stretches import stretches
from tests.support.mounts import HAS_FAST_PATH, assert_clean, mounted

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no such requests")

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 0x01, 0x02, 0x08, 0x10, 0x20


def fallocate(handle: int, mode: int, offset: int, length: int) -> None:
    libc("fallocate", handle, mode, ctypes.c_long(offset), ctypes.c_long(length))


def seeks(path: Path, offset: int) -> list[str]:
    with opened(path, os.O_RDONLY) as handle:
        return [outcome(partial(os.lseek, handle, offset, whence)) for whence in (os.SEEK_DATA, os.SEEK_HOLE)]


def described(path: Path) -> tuple[object, ...]:
    """What punching a hole may change, but for the number of indirect blocks."""
    status, digest = path.stat(), hashlib.sha256()
    with path.open("rb") as file:
        for start, end in stretches(path):
            file.seek(start)
            digest.update(b"%d" % start + file.read(end - start))
    return status.st_size, stretches(path), digest.hexdigest()


def boundaries(block_size: int) -> list[int]:
    """The blocks at which another table of pointers begins; of the triple indirect ones, the first."""
    per_block = block_size // 4
    double, triple = 12 + per_block, 12 + per_block + per_block**2
    return [12, double, double + per_block, double + 5 * per_block, triple, triple + per_block]


@pytest.fixture(scope="module", params=(1024, 4096))
def empty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    image = tmp_path_factory.mktemp("empty") / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", str(request.param), image, "64M")
    with pair_of(image, request.param) as pair:
        yield pair


def test_data_and_holes_at_every_boundary_of_the_block_map(empty: Pair) -> None:
    size, ends = empty.block_size, [0, *boundaries(empty.block_size)]
    for name, blocks in {
        "first of each": ends,
        "last of each": [end - 1 for end in ends[1:]],
        "both": sorted({block for end in ends[1:] for block in (end - 1, end)}),
        "second of each": [end + 1 for end in ends],
        "none": [],
    }.items():
        for side in empty.sides():
            with opened(side / name, os.O_CREAT | os.O_RDWR) as handle:
                for block in blocks:
                    os.pwrite(handle, b"x", block * size + block % size)
                os.ftruncate(handle, (ends[-1] + 7) * size + 5)
        kernel, ours = empty.kernel / name, empty.ours / name
        assert stretches(ours) == stretches(kernel)
        for offset in {
            near + step for end in ends for near in (end * size,) for step in (-1, 0, 1, size) if near + step >= 0
        }:
            assert seeks(ours, offset) == seeks(kernel, offset), offset
        assert described(ours) == described(kernel)


@pytest.mark.parametrize("seed", range(3))
def test_punched_holes_are_the_kernels(empty: Pair, tmp_path: Path, seed: int) -> None:
    """Whole blocks and parts, over every boundary, until nothing is left."""
    dice, size = random.Random(seed), empty.block_size
    ends = boundaries(size)
    kernel, ours = (side / f"punched-{seed}" for side in empty.sides())
    runs = sorted({max(end - dice.randrange(3), 0) for end in ends} | {0, 5, 11, ends[0] + 9})
    for path in (kernel, ours):
        data = random.Random(seed)
        with opened(path, os.O_CREAT | os.O_WRONLY) as handle:
            for block in runs:
                os.pwrite(handle, data.randbytes(5 * size), block * size)
    for number in range(60):
        near = dice.choice(runs) * size + dice.choice((0, 1, size // 2, size - 1, size, 3 * size))
        length = dice.choice((1, size - 1, size, size + 1, 2 * size, 4 * size + 5, ends[2] * size, 1 << 40))
        if number < 50:
            length = min(length, 40 * size)
        for path in (kernel, ours):
            with opened(path, os.O_WRONLY) as handle:
                fallocate(handle, PUNCH_HOLE | KEEP_SIZE, near, length)
        assert described(ours) == described(kernel), (number, near, length)
        # The kernel leaves some indirect blocks without pointers.
        assert ours.stat().st_blocks <= kernel.stat().st_blocks
        if number % 20 == 19:
            assert_clean(empty.ours, tmp_path)
    for path in (kernel, ours):
        with opened(path, os.O_WRONLY) as handle:
            fallocate(handle, PUNCH_HOLE | KEEP_SIZE, 0, 1 << 40)
    assert ours.stat().st_blocks == 0
    assert_clean(empty.ours, tmp_path)


FILE = os.O_RDWR


def on_file(mode: int, offset: int, length: int, flags: int = FILE, name: str = "file") -> object:
    return handle_of(name, flags, lambda handle: fallocate(handle, mode, offset, length))


def too_much(handle: int) -> None:
    """Ask for more than there is. The kernel's ext4 keeps a part, which others need."""
    try:
        fallocate(handle, 0, 0, 1 << 30)
    finally:
        os.ftruncate(handle, 8)


BOTH = DONE, DONE
"""On ext4."""
ANSWERS = cases(
    Case("punch a hole", on_file(PUNCH_HOLE | KEEP_SIZE, 0, 4)),
    Case("punch all", on_file(PUNCH_HOLE | KEEP_SIZE, 0, 100)),
    Case("punch behind the end", on_file(PUNCH_HOLE | KEEP_SIZE, 1 << 20, 4)),
    Case("punch nothing", on_file(PUNCH_HOLE | KEEP_SIZE, 0, 0), EINVAL),
    Case("punch with a negative offset", on_file(PUNCH_HOLE | KEEP_SIZE, -1, 4), EINVAL),
    Case("punch past all sizes", on_file(PUNCH_HOLE | KEEP_SIZE, (1 << 63) - 2, 4), EFBIG),
    Case("punch and grow", on_file(PUNCH_HOLE, 0, 4), EOPNOTSUPP),
    Case("punch by a handle for reading", on_file(PUNCH_HOLE | KEEP_SIZE, 0, 4, os.O_RDONLY), EBADF),
    Case("punch a fifo", on_file(PUNCH_HOLE | KEEP_SIZE, 0, 4, name="fifo"), "ESPIPE"),
    Case("collapse", on_file(COLLAPSE_RANGE, 0, 4096), EOPNOTSUPP, on_ext4=(EINVAL, EOPNOTSUPP)),
    Case("insert", on_file(INSERT_RANGE, 0, 4096), EOPNOTSUPP, on_ext4=(DONE, EOPNOTSUPP)),
    Case("a mode that does not exist", on_file(0x800, 0, 4), EOPNOTSUPP),
    Case("allocate", on_file(0, 0, 100_000), EOPNOTSUPP, ours=DONE, on_ext4=BOTH),
    Case("allocate what is there", on_file(KEEP_SIZE, 0, 8), EOPNOTSUPP, ours=DONE, on_ext4=BOTH),
    Case("allocate behind the end", on_file(KEEP_SIZE, 0, 100_000), EOPNOTSUPP, on_ext4=BOTH),
    Case(
        "allocate more than there is",
        handle_of("file", FILE, too_much),
        EOPNOTSUPP,
        ours=ENOSPC,
        on_ext4=(ENOSPC, ENOSPC),
    ),
    Case("allocate past the largest size", on_file(0, 1 << 62, 1), EFBIG),
    Case("zero", on_file(ZERO_RANGE, 0, 4), EOPNOTSUPP, ours=DONE, on_ext4=BOTH),
    Case("zero behind the end", on_file(ZERO_RANGE | KEEP_SIZE, 0, 100_000), EOPNOTSUPP, on_ext4=BOTH),
    Case("seek to data in a fifo", handle_of("fifo", FILE, lambda h: os.lseek(h, 0, os.SEEK_DATA)), "ESPIPE"),
    Case("seek to data behind the end", handle_of("file", FILE, lambda h: os.lseek(h, 8, os.SEEK_DATA)), ENXIO),
    Case("seek to a hole behind the end", handle_of("file", FILE, lambda h: os.lseek(h, 8, os.SEEK_HOLE)), ENXIO),
    Case("seek to the last hole", handle_of("file", FILE, lambda h: os.lseek(h, 7, os.SEEK_HOLE)), "8"),
    Case("seek in an empty file", handle_of("other", FILE, lambda h: os.lseek(h, 0, os.SEEK_HOLE)), ENXIO),
    Case("seek before the beginning", handle_of("file", FILE, lambda h: os.lseek(h, -1, os.SEEK_DATA)), ENXIO),
)


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(pair: Pair, case: Case) -> None:
    check_in("tree", pair, case)


@pytest.mark.parametrize("flag", ["i", "a"])
def test_flagged_files_have_no_holes_made(pair: Pair, flag: str) -> None:
    """The handles were opened before the flags were set. What is allocated changes no content."""
    for side in pair.sides():
        path = side / f"flagged-{flag}"
        path.write_bytes(b"content")
        with opened(path, os.O_WRONLY | os.O_APPEND) as handle:
            run("chattr", f"+{flag}", path)
            assert outcome(partial(fallocate, handle, PUNCH_HOLE | KEEP_SIZE, 0, 4)) == "EPERM"
            if side is pair.ours:
                assert outcome(partial(fallocate, handle, ZERO_RANGE, 0, 1)) == "EPERM"
                assert outcome(partial(fallocate, handle, 0, 0, 1)) == ("EPERM" if flag == "i" else DONE)
            assert path.read_bytes() == b"content"
        run("chattr", f"-{flag}", path)
        path.unlink()


def test_what_is_allocated_is_taken_back_without_room_for_all(tmp_path: Path) -> None:
    """There is as much room as it needs at least, and less than its indirect blocks need. On an append-only file, too,
    which nobody may cut."""
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024", tmp_path / "image", "24M")
    with mounted(tmp_path / "image", tmp_path / "mount", "--insecure") as mountpoint:
        path = mountpoint / "file"
        with opened(path, os.O_CREAT | os.O_RDWR) as handle:
            os.ftruncate(handle, 4 << 20)
            os.pwrite(handle, b"x", 100_000)
            holes = 20 * 1024 - 1
            with opened(mountpoint / "filler", os.O_CREAT | os.O_WRONLY) as filler:
                while (free := os.statvfs(mountpoint).f_bfree) > holes + holes // 256:
                    os.write(filler, bytes(1024))
            assert free == holes + holes // 256
            before = free, stretches(path), os.fstat(handle).st_size
            run("chattr", "+a", path)
            assert outcome(partial(fallocate, handle, 0, 0, 20 << 20)) == "ENOSPC"
            assert (os.statvfs(mountpoint).f_bfree, stretches(path), os.fstat(handle).st_size) == before
        assert_clean(mountpoint, tmp_path)


def test_allocated_ranges_are_zeros_that_take_blocks(empty: Pair, tmp_path: Path) -> None:
    path, size = empty.ours / "allocated", empty.block_size
    path.write_bytes(b"x" * (size + 3))
    with opened(path, os.O_RDWR) as handle:
        fallocate(handle, 0, 3 * size + 1, 40 * size)
        assert os.fstat(handle).st_size == 43 * size + 1
        assert stretches(path) == [(0, 2 * size), (3 * size, 43 * size + 1)]
        assert path.read_bytes() == (b"x" * (size + 3)).ljust(43 * size + 1, b"\0")
        before = os.fstat(handle).st_blocks
        fallocate(handle, KEEP_SIZE, 0, 4 * size)
        assert os.fstat(handle).st_blocks == before + size // 512
        os.pwrite(handle, b"y" * (10 * size), 5 * size)
        fallocate(handle, ZERO_RANGE, 6 * size - 7, 3 * size)
        expected = b"y" * (size - 7) + bytes(3 * size) + b"y" * (6 * size + 7)
        assert os.pread(handle, 10 * size, 5 * size) == expected
        fallocate(handle, ZERO_RANGE, 43 * size - 5, 2 * size)
        assert os.fstat(handle).st_size == 45 * size - 5
        fallocate(handle, 0, 45 * size - 5, 3)
        assert os.fstat(handle).st_size == 45 * size - 2
        fallocate(handle, KEEP_SIZE, 0, 45 * size)
        assert os.fstat(handle).st_size == 45 * size - 2
    assert_clean(empty.ours, tmp_path)


def test_without_room_nothing_is_allocated(empty: Pair, tmp_path: Path) -> None:
    """Before anything is changed: neither the size nor the free blocks."""
    path = empty.ours / "greedy"
    path.write_bytes(b"x")
    before = os.statvfs(empty.ours).f_bfree
    room = before * empty.block_size
    with opened(path, os.O_RDWR) as handle:
        for length in (room + (1 << 20), 1 << 34):
            assert outcome(partial(fallocate, handle, 0, 0, length)) == "ENOSPC"
            assert outcome(partial(fallocate, handle, ZERO_RANGE, 0, length)) == "ENOSPC"
        assert os.fstat(handle).st_size == 1 and os.statvfs(empty.ours).f_bfree == before
        fallocate(handle, 0, 0, room // 2)
        assert os.statvfs(empty.ours).f_bfree < before - room // 2 // empty.block_size
        fallocate(handle, PUNCH_HOLE | KEEP_SIZE, 0, room)
        assert os.statvfs(empty.ours).f_bfree == before + 1
    assert_clean(empty.ours, tmp_path)


def test_zeroing_what_is_allocated_takes_no_room(empty: Pair) -> None:
    path = empty.ours / "allocated-twice"
    with opened(path, os.O_CREAT | os.O_RDWR) as handle:
        for start in range(0, 36 << 20, 1 << 20):
            os.pwrite(handle, b"x" * (1 << 20), start)
        assert os.statvfs(empty.ours).f_bavail * empty.block_size < 36 << 20
        fallocate(handle, ZERO_RANGE | KEEP_SIZE, 5, (36 << 20) - 10)
        assert os.pread(handle, 10, 0) == b"xxxxx" + bytes(5)
        assert os.pread(handle, 10, (36 << 20) - 10) == bytes(5) + b"xxxxx"
        assert os.pread(handle, 1 << 20, 10 << 20) == bytes(1 << 20)
    path.unlink()


def test_memory_is_accounted(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", image, "256M")
    with (
        mounted(image, tmp_path / "mount", "--insecure", "--overlay-limit=16M") as mountpoint,
        opened(mountpoint / "file", os.O_CREAT | os.O_RDWR) as handle,
    ):
        assert outcome(partial(fallocate, handle, 0, 0, 64 << 20)) == "ENOSPC"
        assert os.fstat(handle).st_size == os.fstat(handle).st_blocks == 0
        fallocate(handle, 0, 0, 4 << 20)
        assert os.fstat(handle).st_blocks >= 4 << 11


def test_a_whole_disk_of_holes(empty: Pair) -> None:
    """Of a terabyte with one byte of data, the data is found at once."""
    path = empty.ours / "sparse"
    with opened(path, os.O_CREAT | os.O_RDWR) as handle:
        os.ftruncate(handle, 16 << 30)
        os.pwrite(handle, b"x", 15 << 30)
        assert os.lseek(handle, 0, os.SEEK_DATA) == 15 << 30
        assert os.lseek(handle, 15 << 30, os.SEEK_HOLE) == (15 << 30) + empty.block_size
        assert outcome(partial(os.lseek, handle, (15 << 30) + empty.block_size, os.SEEK_DATA)) == "ENXIO"


def test_the_control_directory(empty: Pair) -> None:
    for name in ("image", "status.json", "metrics"):
        with opened(empty.ours / ".mystfuse" / name, os.O_RDONLY) as handle:
            assert os.lseek(handle, 0, os.SEEK_DATA) == 0
            size = os.lseek(handle, 0, os.SEEK_HOLE)
            assert size > 100 and outcome(partial(os.lseek, handle, size, os.SEEK_DATA)) == "ENXIO"
