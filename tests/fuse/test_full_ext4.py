"""ext4 without room: what cannot be done is ENOSPC and has changed nothing, and all that was taken comes back.

e2fsck judges each full file system. How many blocks are left for what is decided by what their bookkeeping takes, so
that the kernel's numbers are no measure; the model test compares what is done.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.mounts import HAS_FAST_PATH, assert_clean, mounted

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no fallocate")

KINDS = {
    "4 KiB": ("-b", "4096", "-O", "^has_journal"),
    "everything": ("-b", "1024", "-g", "1024", "-O",
                   "inline_data,ea_inode,large_dir,metadata_csum_seed,^has_journal"),
    "crc16, no flex_bg": ("-b", "1024", "-g", "1024", "-I", "128", "-O",
                          "^metadata_csum,uninit_bg,^64bit,^flex_bg,^has_journal"),
}  # fmt: skip


@pytest.fixture(
    params=[
        pytest.param(options, id=name, marks=[pytest.mark.slow] * (name != "everything"))
        for name, options in KINDS.items()
    ]
)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-N", "1200", *request.param, image, "6M")
    with mounted(image, tmp_path / "mount", "--insecure", "--overlay-limit=32M") as root:
        (root / "kept").mkdir()
        (root / "kept/file").write_bytes(b"kept" * 3000)
        yield root


def free(root: Path) -> tuple[int, int]:
    """Free blocks and inodes."""
    found = os.statvfs(root)
    return found.f_bfree, found.f_ffree


def fill(path: Path, size: int) -> None:
    """A file that takes so many bytes."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def until_full(step: Callable[[int], object], most: int = 5000) -> int:
    """How often a step succeeds until there is no room for it."""
    for number in range(most):
        try:
            step(number)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return number
    raise AssertionError("it is never full")


def assert_comes_back(root: Path, before: tuple[int, int], tmp_path: Path, *names: str) -> None:
    """Clean while full, and with these removed as it was before."""
    assert_clean(root, tmp_path)
    assert (root / "kept/file").read_bytes() == b"kept" * 3000
    for name in names:
        run("rm", "-r", root / name)
    assert_clean(root, tmp_path)
    assert free(root) == before


def test_one_file(root: Path, tmp_path: Path) -> None:
    before = free(root)
    noise = random.Random(1)
    pieces: list[bytes] = []
    with (root / "file").open("wb", buffering=0) as file:

        def append(number: int) -> None:
            piece = noise.randbytes(noise.choice((700, 5000, 40_000)))
            written = file.write(piece)
            pieces.append(piece[:written])

        until_full(append)
    assert (root / "file").read_bytes() == b"".join(pieces)
    assert_comes_back(root, before, tmp_path, "file")


def test_two_files_in_turns(root: Path, tmp_path: Path) -> None:
    """Neither's blocks are in a row: trees of extents take the last blocks."""
    before = free(root)
    size = os.statvfs(root).f_bsize
    with (root / "one").open("wb", buffering=0) as one, (root / "two").open("wb", buffering=0) as two:

        def write(number: int) -> None:
            for file, byte in ((one, b"1"), (two, b"2")):
                os.pwrite(file.fileno(), byte * size, 2 * number * size)

        count = until_full(write)
    for name, byte in (("one", b"1"), ("two", b"2")):
        assert (root / name).read_bytes().startswith((byte * size + bytes(size)) * (count - 1))
    assert_clean(root, tmp_path)
    # To free a part may take a block, for a tree that grows.
    with (root / "one").open("r+b") as file:
        for number in range(0, count - 1, 3):
            run("fallocate", "--punch-hole", "--offset", str(2 * number * size), "--length", str(size), root / "one")
        file.truncate(3 * size)
    assert_comes_back(root, before, tmp_path, "one", "two")


def test_names(root: Path, tmp_path: Path) -> None:
    """Links to one file: the directory alone grows, and its index."""
    (root / "full").mkdir()
    before = free(root)
    fill(root / "filler", 4 << 20)
    count = until_full(lambda number: os.link(root / "kept/file", root / f"full/{number:05}{'n' * 200}"), 20_000)
    assert len(os.listdir(root / "full")) == count > 10
    assert_clean(root, tmp_path)
    for number in range(count):
        (root / f"full/{number:05}{'n' * 200}").unlink()
    run("rm", "-r", root / "full")
    (root / "full").mkdir()
    assert_comes_back(root, before, tmp_path, "filler")


@pytest.mark.parametrize(
    "kind", ["files", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("directories", "symlinks", "nodes"))]
)
def test_inodes(root: Path, tmp_path: Path, kind: str) -> None:
    (root / "full").mkdir()
    make: Callable[[int], object] = {
        "files": lambda number: (root / f"full/{number}").write_bytes(b"x" * (number % 100)),
        "directories": lambda number: (root / f"full/{number}").mkdir(),
        "symlinks": lambda number: (root / f"full/{number}").symlink_to("t" * (number % 100 + 1)),
        "nodes": lambda number: os.mkfifo(root / f"full/{number}"),
    }[kind]
    until_full(make)
    before = free(root)
    assert_clean(root, tmp_path)
    with pytest.raises(OSError) as caught:
        make(9999)
    assert caught.value.errno == errno.ENOSPC
    # What could not be made has left nothing, but perhaps a file without contents.
    (root / "full/9999").unlink(missing_ok=True)
    assert free(root) == before
    run("rm", "-r", root / "full")
    assert_clean(root, tmp_path)


def test_attributes(root: Path, tmp_path: Path) -> None:
    for number in range(40):
        (root / f"kept/{number}").touch()
    before = free(root)
    fill(root / "filler", free(root)[0] * os.statvfs(root).f_bsize * 9 // 10)
    noise = random.Random(2)

    def give(number: int) -> None:
        os.setxattr(root / f"kept/{number % 40}", f"user.{number // 40}", noise.randbytes(noise.choice((30, 300, 900))))

    until_full(give)
    assert_clean(root, tmp_path)
    for number in range(40):
        path = root / f"kept/{number}"
        for name in os.listxattr(path):
            os.removexattr(path, name)
    assert_comes_back(root, before, tmp_path, "filler")


def test_allocation_is_whole_or_nothing(root: Path, tmp_path: Path) -> None:
    before = free(root)
    descriptor = os.open(root / "file", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(OSError) as caught:
            os.posix_fallocate(descriptor, 0, 64 << 20)
        assert caught.value.errno == errno.ENOSPC
        assert os.fstat(descriptor).st_size == 0
        os.posix_fallocate(descriptor, 0, 1 << 20)
        # Written pieces in the middle split what is unwritten.
        for number in range(0, 200, 2):
            os.pwrite(descriptor, b"w" * 1024, number * 5000)
        assert os.pread(descriptor, 1024, 5000) == bytes(1024)
    finally:
        os.close(descriptor)
    assert_comes_back(root, before, tmp_path, "file")
