"""Files with extents on a mount and on the kernel's own: the same operations on both, contents, sizes and holes
compared, and e2fsck in between."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.errno_pairs import Pair, libc, opened, outcome, pair_of
from tests.support.ext2_editor import kernel_mount
from tests.support.file_stretches import stretches
from tests.support.mounts import HAS_FAST_PATH, assert_clean

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
needs_requests = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no such requests")


def fallocate(handle: int, mode: int, offset: int, length: int) -> None:
    libc("fallocate", handle, mode, ctypes.c_long(offset), ctypes.c_long(length))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Empty file systems, by block size."""
    directory = tmp_path_factory.mktemp("extents")
    images = {block_size: directory / str(block_size) for block_size in (1024, 4096)}
    for block_size, image in images.items():
        run("mke2fs", "-q", "-F", "-t", "ext4", "-b", str(block_size), image, "64M")
    return images


@pytest.fixture(scope="module", params=(1024, 4096))
def empty(request: pytest.FixtureRequest, images: dict[int, Path]) -> Iterator[Pair]:
    with pair_of(images[request.param], request.param, kind="ext4") as pair:
        keep_unwritten(pair.kernel)
        yield pair


def keep_unwritten(kernel: Path) -> None:
    """Have the kernel split unwritten extents, however short, rather than write zeros."""
    device = Path(run("findmnt", "-n", "-o", "SOURCE", kernel).stdout.strip())
    Path(f"/sys/fs/ext4/{device.name}/extent_max_zeroout_kb").write_text("0")


def drop_pages(path: Path) -> None:
    """Have the file read anew: by the daemon, not from the page cache."""
    with opened(path, os.O_RDWR) as handle:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def stretches_on_disk(path: Path) -> list[tuple[int, int]]:
    """The file's data once it is on the disk: unwritten blocks whose pages the kernel has in memory count as data."""
    drop_pages(path)
    return stretches(path, os.O_RDWR)


def assert_same(pair: Pair, name: str, what: object) -> None:
    kernel, ours = pair.kernel / name, pair.ours / name
    drop_pages(ours)
    assert ours.read_bytes() == kernel.read_bytes(), what
    if HAS_FAST_PATH:
        assert stretches_on_disk(ours) == stretches_on_disk(kernel), what
    # The tree itself may take another number of blocks.
    leaves = 2 + len(stretches_on_disk(kernel)) // 40
    assert abs(ours.stat().st_blocks - kernel.stat().st_blocks) <= leaves * pair.block_size // 512, what


Operation = Callable[[int], object]


def operations(dice: random.Random, block_size: int, reach: int) -> Iterator[tuple[str, Operation]]:
    """Random operations on an open file, for ever."""
    lengths = (1, block_size // 2, block_size, block_size, 2 * block_size, 5 * block_size + 3, 40 * block_size)
    modes = (PUNCH_HOLE | KEEP_SIZE, 0, KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE) if HAS_FAST_PATH else ()
    while True:
        offset, length = dice.randrange(reach), dice.choice(lengths)
        data, whole = dice.randbytes(length), offset // block_size * block_size
        kinds: dict[str, Operation] = {
            "write": lambda handle, data=data, offset=offset: os.pwrite(handle, data, offset),
            "write a block": lambda handle, data=data, whole=whole: os.pwrite(handle, data[:1] * block_size, whole),
            "append": lambda handle, data=data: os.pwrite(handle, data, os.fstat(handle).st_size),
            "truncate": lambda handle, offset=offset: os.ftruncate(handle, offset),
        }
        for mode in modes:
            kinds[f"fallocate {mode:#x}"] = partial(fallocate, mode=mode, offset=offset, length=length)
        (kind,) = dice.choices(list(kinds), (6, 6, 2, 1, 3, 1, 1, 1, 1)[: len(kinds)])
        yield f"{kind} {offset} {length}", kinds[kind]


@pytest.mark.parametrize("seed", range(2))
def test_random_operations_are_the_kernels(empty: Pair, tmp_path: Path, seed: int) -> None:
    name, dice = f"random-{seed}", random.Random(seed)
    reach = (3 << 20) >> seed
    with (
        opened(empty.kernel / name, os.O_CREAT | os.O_RDWR) as kernel,
        opened(empty.ours / name, os.O_CREAT | os.O_RDWR) as ours,
    ):
        for number, (what, operation) in zip(range(150), operations(dice, empty.block_size, reach), strict=False):
            operation(kernel)
            operation(ours)
            assert os.fstat(ours).st_size == os.fstat(kernel).st_size, what
            if number % 10 == 9:
                assert_same(empty, name, (number, what))
            if number % 50 == 49:
                assert_clean(empty.ours, tmp_path)
    # What we have written is what the kernel reads.
    with kernel_mount(tmp_path / "present", tmp_path / "mount") as present:
        assert (present / name).read_bytes() == (empty.kernel / name).read_bytes()


@needs_requests
def test_what_is_allocated_behind_the_end(empty: Pair, tmp_path: Path) -> None:
    """It takes blocks, shows as zeros when the file grows, and goes when the file is truncated to its size."""
    size = empty.block_size
    for step in range(3):
        for side in empty.sides():
            with opened(side / "behind", os.O_CREAT | os.O_RDWR) as handle:
                if step == 0:
                    os.pwrite(handle, b"x" * (size + 3), 0)
                    fallocate(handle, KEEP_SIZE, 0, 100 * size)
                elif step == 1:
                    os.pwrite(handle, b"y", 50 * size + 7)
                else:
                    os.ftruncate(handle, 50 * size + 8)
        assert_same(empty, "behind", step)
        blocks = (empty.ours / "behind").stat().st_blocks * 512 // size - (51 if step == 2 else 100)
        assert blocks in (0, 1), "of the tree, where the free blocks are scattered"
        assert_clean(empty.ours, tmp_path)


@needs_requests
def test_unwritten_blocks_are_holes_to_lseek(empty: Pair) -> None:
    """As with the kernel, unless their pages are in its memory: for us they never are."""
    size = empty.block_size
    for side in empty.sides():
        with opened(side / "unwritten", os.O_CREAT | os.O_RDWR) as handle:
            fallocate(handle, 0, 0, 20 * size)
            os.pwrite(handle, b"x", 10 * size)
    assert (
        stretches_on_disk(empty.ours / "unwritten")
        == stretches_on_disk(empty.kernel / "unwritten")
        == [(10 * size, 11 * size)]
    )


def test_no_old_contents_show(empty: Pair, tmp_path: Path) -> None:
    """Parts of blocks written, in holes and in what counts as zeros, where a removed file has been."""
    secret, path, size = empty.ours / "secret", empty.ours / "after", empty.block_size
    secret.write_bytes(b"secret!!" * (6 << 17))
    secret.unlink()
    with opened(path, os.O_CREAT | os.O_RDWR) as handle:
        if HAS_FAST_PATH:
            fallocate(handle, 0, 0, 4 << 20)
        for start in range(size // 2, 4 << 20, 3 * size):
            os.pwrite(handle, b"x", start)
        data = os.pread(handle, 4 << 20, 0)
    assert b"secret" not in data and data.count(b"x") == -(-((4 << 20) - size // 2) // (3 * size))
    assert data.count(0) + data.count(b"x") == len(data)
    path.unlink()
    assert_clean(empty.ours, tmp_path)


@pytest.mark.parametrize("from_end", [0, 1])
def test_the_largest_file(empty: Pair, tmp_path: Path, from_end: int) -> None:
    """One block short of 2^32: 16 TiB less 4 KiB, or 4 TiB less 1 KiB."""
    largest = ((1 << 32) - 1) * empty.block_size
    outcomes = []
    for side in empty.sides():
        with opened(side / f"largest-{from_end}", os.O_CREAT | os.O_RDWR) as handle:
            found = [outcome(partial(os.pwrite, handle, b"xyz", largest - 1 - from_end)), os.fstat(handle).st_size]
            found += [outcome(partial(os.ftruncate, handle, largest + extra)) for extra in (0, 1)]
            found.append(outcome(partial(os.pwrite, handle, b"x", largest)))
            found.append(outcome(partial(os.pread, handle, 3, largest - 2)))
            outcomes.append(found)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == largest and "EFBIG" in outcomes[0]
    assert_clean(empty.ours, tmp_path)


def test_what_new_files_have_extents(empty: Pair, tmp_path: Path) -> None:
    flags = []
    for side in empty.sides():
        (side / "regular").touch()
        (side / "directory").mkdir()
        (side / "short").symlink_to("target")
        (side / "long").symlink_to("t" * 200)
        os.mkfifo(side / "fifo")
        names = ("regular", "directory", "short", "long", "fifo")
        if side == empty.ours:
            assert_clean(side, tmp_path)
            image = tmp_path / "present"
        else:
            run("sync", "-f", side)
            image = side.parent / "copy"
        shown = [run("debugfs", "-R", f"stat {name}", image).stdout for name in names]
        flags.append([re.findall(r"Flags: (0x[0-9a-f]+)", one) for one in shown])
    assert flags[0] == flags[1] and flags[0][:2] == [["0x80000"]] * 2


def test_copies_and_long_links(empty: Pair, tmp_path: Path) -> None:
    for side in empty.sides():
        (side / "source").write_bytes(bytes(range(256)) * 4000)
        with opened(side / "source", os.O_RDONLY) as source, opened(side / "copied", os.O_CREAT | os.O_RDWR) as target:
            left = 900_000
            while left:
                left -= os.copy_file_range(source, target, left)
        (side / "linked").symlink_to("l" * 300)
        assert os.readlink(side / "linked") == "l" * 300
        (side / "linked").unlink()
    assert_same(empty, "copied", "copied")
    assert_clean(empty.ours, tmp_path)


def test_block_maps_beside_extents(tmp_path: Path) -> None:
    """Files of a file system that had no extents when they were made keep their maps."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "old").write_bytes(b"o" * 100_000)
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext3", "-b", "1024", "-d", tree, image, "16M")
    run("tune2fs", "-O", "extent", image)
    with pair_of(image, 1024, kind="ext4") as pair:
        for side in pair.sides():
            for name in ("old", "new"):
                with opened(side / name, os.O_CREAT | os.O_RDWR) as handle:
                    for number in range(0, 900, 3):
                        os.pwrite(handle, b"n" * 1024, number * 1024)
                    os.ftruncate(handle, 800_000)
        for name in ("old", "new"):
            assert_same(pair, name, name)
        assert_clean(pair.ours, tmp_path)
        shown = [run("debugfs", "-R", f"stat {name}", tmp_path / "present").stdout for name in ("old", "new")]
        assert ["EXTENTS" in one for one in shown] == [False, True]


def test_without_the_fast_path(images: dict[int, Path], tmp_path: Path) -> None:
    contents: dict[Path, bytes] = {}
    with pair_of(images[1024], 1024, options=",nofastpath", kind="ext4") as pair:
        for side in pair.sides():
            steps = operations(random.Random(9), 1024, 500_000)
            with opened(side / "file", os.O_CREAT | os.O_RDWR) as handle:
                for _, operation in itertools.islice((step for step in steps if "fallocate" not in step[0]), 60):
                    operation(handle)
            contents[side] = (side / "file").read_bytes()
        assert contents[pair.ours] == contents[pair.kernel]
        assert_clean(pair.ours, tmp_path)


@needs_requests
def test_flags_of_files_with_extents(empty: Pair, tmp_path: Path) -> None:
    """Other flags are set beside; the map stays what it is."""
    path = empty.ours / "flagged"
    path.write_bytes(b"content")
    for change in ("+A", "+i", "-i"):
        run("chattr", change, path)
        assert "e" in run("lsattr", path).stdout.split()[0]
    assert run("chattr", "-e", path, check=False).returncode
    path.write_bytes(b"c" * 100_000)
    assert path.read_bytes() == b"c" * 100_000
    assert_clean(empty.ours, tmp_path)


def test_the_kernel_goes_on_where_we_stop(empty: Pair, tmp_path: Path) -> None:
    """Our trees are split, merged and cut by it, and are sound before and after."""
    size = empty.block_size
    dice = random.Random(3)
    with opened(empty.ours / "handed over", os.O_CREAT | os.O_RDWR) as handle:
        for block in dice.sample(range(0, 3000, 2), 900):
            os.pwrite(handle, bytes([block % 251]) * size, block * size)
    expected = bytearray((empty.ours / "handed over").read_bytes())
    assert_clean(empty.ours, tmp_path)
    with kernel_mount(tmp_path / "present", tmp_path / "mount", "rw") as present:
        path = present / "handed over"
        assert path.read_bytes() == expected
        with opened(path, os.O_RDWR) as handle:
            for block in dice.sample(range(1, 3000, 2), 300):
                os.pwrite(handle, b"k" * size, block * size)
                expected.extend(bytes(max((block + 1) * size - len(expected), 0)))
                expected[block * size : (block + 1) * size] = b"k" * size
            os.ftruncate(handle, 2500 * size)
        assert path.read_bytes() == expected[: 2500 * size]
    run("e2fsck", "-fn", tmp_path / "present")
