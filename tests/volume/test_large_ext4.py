"""ext4 as large as it gets: files of 16 TiB, more than 2^32 blocks, a hundred thousand extents, a million names.

The kernel's driver makes them, and reads them for comparison.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.volume import file_space
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, FileDevice, kernel_mount, listing
from tests.support.mounts import daemon_pid, mounted

TIB = 1 << 40
LARGEST = ((1 << 32) - 1) * 4096
"""Bytes: the largest file with extents and blocks of 4 KiB."""
PIECES = 100_000
NAMES = 1_000_000
MOUNT_BYTES = 256 << 20
"""The memory that a daemon may have taken."""


def make(path: Path, size: int, *options: str) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", "-O", "^has_journal", *options, path)
    return path


def peak_of(mountpoint: Path) -> int:
    """Bytes: the most that the mount's daemon has taken."""
    status = Path(f"/proc/{daemon_pid(mountpoint)}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


async def number_of(volume: Volume, *names: bytes) -> int:
    ino = ROOT
    for name in names:
        found = await volume.lookup(ino, name)
        assert found is not None, name
        ino = found.ino
    return ino


async def test_a_file_of_16_tib(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 64 << 20, "-b", "4096")
    places = (0, 4096 * 3 + 5, 1 << 31, (1 << 32) - 7, TIB - 3, 9 * TIB + 12345, LARGEST - 10)
    with kernel_mount(image, tmp_path / "kernel", "rw"), (tmp_path / "kernel/file").open("wb") as file:
        for number, place in enumerate(places):
            os.pwrite(file.fileno(), b"%d in the file" % number, min(place, LARGEST - 13))
    with kernel_mount(image, tmp_path / "kernel"):
        volume = await Volume.open(FileDevice(image))
        ino = await number_of(volume, b"file")
        size = (await volume.inode(ino)).size
        assert size == (tmp_path / "kernel/file").stat().st_size > LARGEST - 4096
        with (tmp_path / "kernel/file").open("rb") as file:
            for place in (*places, size - 5000, 5 * TIB):
                start = max(place - 3000, 0)
                assert bytes(await volume.read(ino, start, 9000)) == os.pread(file.fileno(), 9000, start)
            position = 0
            for _ in range(2 * len(places)):
                for data, how in ((True, os.SEEK_DATA), (False, os.SEEK_HOLE)):
                    try:
                        theirs = os.lseek(file.fileno(), position, how)
                    except OSError:
                        assert data
                        return
                    assert await file_space.seek(volume, ino, position, data) == theirs
                    position = theirs


@pytest.fixture
def sparse_directory(tmp_path: Path) -> Iterator[Path]:
    """Where files may be larger than ext4 lets them be."""
    directory = tmp_path / "tmpfs"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3G", "tmpfs", directory)
    try:
        yield directory
    finally:
        run("umount", "--lazy", directory)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param(24 * TIB, ("-b", "4096"), id="4 KiB"),
        pytest.param(6 * TIB, ("-b", "1024", "-g", "8192"), id="1 KiB", marks=pytest.mark.slow),
    ],
)
async def test_more_than_4_billion_blocks(
    size: int, options: tuple[str, ...], sparse_directory: Path, tmp_path: Path
) -> None:
    features = "64bit,sparse_super2,^resize_inode,^has_journal"
    if "1024" in options:
        # So many descriptors that only meta_bg has places for them.
        features += ",meta_bg"
    image = make(
        sparse_directory / "image", size, "-O", features, "-E", "num_backup_sb=0,lazy_itable_init=1",
        "-N", str(size // 4096 // 32768 * 16), *options,
    )  # fmt: skip
    noise = random.Random(1)
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        # The kernel puts directories below the root into any groups.
        for number in range(200):
            (root / f"{number}").mkdir()
            (root / f"{number}/file").write_bytes(noise.randbytes(10_000))
            os.setxattr(root / f"{number}/file", "user.large", noise.randbytes(700))
    with kernel_mount(image, tmp_path / "kernel") as root:
        started = time.monotonic()
        volume = await Volume.open(FileDevice(image))
        high = 0
        for number in range(200):
            ino = await number_of(volume, b"%d" % number, b"file")
            assert bytes(await volume.read(ino, 0, 20_000)) == (root / f"{number}/file").read_bytes()
            value = os.getxattr(root / f"{number}/file", "user.large")
            assert await volume.xattrs(ino) == {b"user.large": value}
            group = (ino - 1) // volume.superblock.s_inodes_per_group
            high += group * volume.superblock.s_blocks_per_group >= 1 << 32
        assert high > 10
        ours, theirs = await volume.statistics(), os.statvfs(root)
        assert (ours.blocks, ours.free_blocks, ours.inodes, ours.free_inodes) == (
            theirs.f_blocks, theirs.f_bfree, theirs.f_files, theirs.f_ffree,
        )  # fmt: skip
        print(f"\n{size >> 40} TiB, {ours.blocks} blocks, {high} inodes high: {time.monotonic() - started:.2f} s")
        with mounted(image, tmp_path / "mount", "--insecure") as mount:
            run("diff", "-r", "--exclude=.mystfuse", "--exclude=lost+found", root, mount)
            assert peak_of(mount) < MOUNT_BYTES


@pytest.mark.slow
async def test_a_file_in_a_hundred_thousand_pieces(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 400 << 20, "-b", "1024")
    with kernel_mount(image, tmp_path / "kernel", "rw") as root, (root / "file").open("wb", buffering=0) as file:
        for number in range(PIECES):
            file.seek(2048 * number)
            file.write(b"%08d" % number * 128)
    with kernel_mount(image, tmp_path / "kernel") as root:
        pieces = [line for line in run("filefrag", "-v", root / "file").stdout.splitlines() if ".." in line]
        assert len(pieces) == PIECES
        volume = await Volume.open(FileDevice(image))
        ino = await number_of(volume, b"file")
        started = time.monotonic()
        runs = [run for first in range(0, 2 * PIECES - 1, 1000)
                for run in await volume.file_runs(ino, first, min(1000, 2 * PIECES - 1 - first))]  # fmt: skip
        print(f"\n{len(runs)} runs in {time.monotonic() - started:.2f} s")
        assert sum(one.length for one in runs if one.physical) == PIECES
        with mounted(image, tmp_path / "mount", "--insecure") as mount:
            started = time.monotonic()
            run("cmp", root / "file", mount / "file")
            print(f"all of it in {time.monotonic() - started:.2f} s, {peak_of(mount) >> 20} MiB")
            noise = random.Random(2)
            with (root / "file").open("rb") as theirs, (mount / "file").open("rb") as ours:
                for _ in range(2000):
                    place = noise.randrange(PIECES * 2048)
                    assert os.pread(ours.fileno(), 5000, place) == os.pread(theirs.fileno(), 5000, place)
            assert peak_of(mount) < MOUNT_BYTES


@pytest.mark.slow
async def test_a_million_names(tmp_path: Path) -> None:
    image = make(tmp_path / "image", 2 << 30, "-N", "1100000", "-I", "128")
    made = "import os,sys\nfor n in range(int(sys.argv[2])): os.mknod(f'{sys.argv[1]}/file {n:07}', 0o100644)"
    with kernel_mount(image, tmp_path / "kernel", "rw") as root:
        (root / "many").mkdir()
        started = time.monotonic()
        run("python3", "-c", made, root / "many", str(NAMES))
        print(f"\nthe kernel makes {NAMES} names in {time.monotonic() - started:.1f} s")
    volume = await Volume.open(FileDevice(image))
    ino = await number_of(volume, b"many")
    started = time.monotonic()
    names = await listing(volume, ino)
    print(f"listed in {time.monotonic() - started:.1f} s")
    assert sorted(names) == [b"file %07d" % number for number in range(NAMES)]
    del names
    with mounted(image, tmp_path / "mount", "--insecure") as mount:
        started = time.monotonic()
        assert len(os.listdir(mount / "many")) == NAMES
        print(f"under a mount in {time.monotonic() - started:.1f} s")
        noise = random.Random(3)
        started = time.monotonic()
        for _ in range(1000):
            (mount / f"many/file {noise.randrange(NAMES):07}").stat()
            assert not (mount / f"many/file {noise.randrange(NAMES, 2 * NAMES):07}").exists()
        print(f"2000 look-ups in {time.monotonic() - started:.1f} s, {peak_of(mount) >> 20} MiB")
        assert peak_of(mount) < 2 * MOUNT_BYTES
