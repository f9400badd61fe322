"""A mount's log names what is damaged in the words of ``verify --files``, with the fast path and without."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run, wait_until
from tests.support.encrypted_images import write_secret
from tests.support.file_blocks import block_of, damage, inode_of
from tests.support.mounts import clear_mount, logged, mounted

BLOCK = 4096


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names") / "tree"
    (root / "usr/lib").mkdir(parents=True)
    dice = random.Random(7)
    (root / "usr/lib/x.so").write_bytes(dice.randbytes(200_000))
    (root / "usr/lib/zz").write_bytes(dice.randbytes(2 << 20))
    (root / "usr/lib/whole").write_bytes(dice.randbytes(20_000))
    for number in range(200):
        (root / f"usr/{number:03}-{'n' * 50}").touch()
    return root


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "app.img"
    assert in_process("mkext2", "--block-size=4096", tree, path).returncode == 0
    return path


@contextmanager
def logging_mount(image: Path, tmp_path: Path, *options: str) -> Iterator[tuple[Path, Path]]:
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    with mounted(image, tmp_path / "mnt", f"--log-file={log}", *options) as mountpoint:
        yield mountpoint, log


def messages(mountpoint: Path, log: Path) -> list[str]:
    """The errors so far."""
    return re.findall(r" ERROR: (.*)", logged(mountpoint, log))


def fail_to_read(path: Path, offset: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.pread(descriptor, 100, offset)
        assert caught.value.errno == errno.EIO
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("option", ["ro", "nofastpath"])
def test_a_file_is_named_by_inode_and_then_by_path(option: str, image: Path, tmp_path: Path) -> None:
    ino, places = inode_of(image, "/usr/lib/x.so"), (10, 11, 40)
    blocks = [block_of(image, "/usr/lib/x.so", place) for place in places]
    bad = damage(image, tmp_path / "bad", *(block * BLOCK + 77 for block in blocks))
    said = in_process("verify", "--files", bad).stdout.splitlines()
    assert f"damaged: /usr/lib/x.so (inode {ino}): bytes 40960-49151; bytes 163840-167935" in said
    with logging_mount(bad, tmp_path, "-o", option) as (mountpoint, log):
        fail_to_read(mountpoint / "usr/lib/x.so", 40960)
        wait_until(lambda: f"inode {ino} is /usr/lib/x.so" in log.read_text())
        fail_to_read(mountpoint / "usr/lib/x.so", 163840)
        assert (mountpoint / "usr/lib/whole").read_bytes()
        first, path, second = messages(mountpoint, log)
        assert first == (
            f"verity: data block {blocks[0]} is corrupted (inode {ino}, bytes 40960-45055; blocks of 4096 bytes)"
        )
        assert path == f"inode {ino} is /usr/lib/x.so"
        assert second == (
            f"verity: data block {blocks[2]} is corrupted (inode {ino}, /usr/lib/x.so, bytes 163840-167935; "
            "blocks of 4096 bytes)"
        )
        # The same damage has its line already.
        fail_to_read(mountpoint / "usr/lib/x.so", 163840)
        assert len(messages(mountpoint, log)) == 3


@pytest.mark.parametrize("option", ["ro", "nofastpath"])
def test_metadata_is_named(option: str, image: Path, tmp_path: Path) -> None:
    usr, ino = inode_of(image, "/usr"), inode_of(image, "/usr/lib/x.so")
    stat = run("debugfs", "-R", "stat /usr/lib/x.so", image).stdout
    indirect = int(re.search(r"\(IND\):(\d+)", stat)[1])  # type: ignore[index]
    located = re.search(r"block (\d+)", run("debugfs", "-R", f"imap <{ino}>", image).stdout)
    assert located
    for block, where, use in (
        (block_of(image, "/usr", 1), f"directory inode {usr}", lambda mnt: os.listdir(mnt / "usr")),
        (indirect, f"indirect block of inode {ino}", lambda mnt: fail_to_read(mnt / "usr/lib/x.so", 100_000)),
        (int(located[1]), r"inode table of group 0, inodes \d+-\d+, for inode \d+",
         lambda mnt: os.stat(mnt / "usr/lib/x.so")),
    ):  # fmt: skip
        bad = damage(image, tmp_path / "bad", block * BLOCK + 77)
        with logging_mount(bad, tmp_path, "-o", option) as (mountpoint, log):
            try:
                use(mountpoint)
            except OSError as error:
                assert error.errno == errno.EIO
            line = messages(mountpoint, log)[0]
            assert re.fullmatch(rf"verity: data block {block} is corrupted \({where}; blocks of 4096 bytes\)", line), (
                line
            )
        # verify says the same of the block.
        said = in_process("verify", "--files", bad).stdout
        assert re.search(rf"damaged: .*({where.split(',')[0].rpartition(' ')[2]}\b|inode table of group 0)", said)


def test_a_hash_block_s_line_says_who_needed_it(image: Path, tmp_path: Path) -> None:
    ino, place = inode_of(image, "/usr/lib/zz"), 400
    block = block_of(image, "/usr/lib/zz", place)
    first_level = int(re.search(r"hash_offset=(\d+)", in_process("fssig", image).stdout)[1]) + 2 * BLOCK  # type: ignore[index]
    where = first_level + block // 128 * BLOCK
    bad = damage(image, tmp_path / "bad", where)
    with logging_mount(bad, tmp_path) as (mountpoint, log):
        fail_to_read(mountpoint / "usr/lib/zz", place * BLOCK)
        start, end = place * BLOCK, (place + 1) * BLOCK - 1
        assert messages(mountpoint, log)[0] == (
            f"verity: hash block {block // 128} of level 0 (byte {where}) is corrupted "
            f"(inode {ino}, bytes {start}-{end})"
        )


def test_an_encrypted_image_s_file_is_named(tree: Path, tmp_path: Path) -> None:
    key = write_secret(tmp_path / "key", random.Random(3).randbytes(64))
    image = tmp_path / "image"
    result = in_process("mkext2", "--block-size=4096", f"--encrypt={key}", tree, image)
    assert result.returncode == 0, result.stderr
    start = int.from_bytes(image.read_bytes()[104:108], "big") * 512
    mountpoint = tmp_path / "plain"
    mountpoint.mkdir()
    try:
        assert mystfuse("mount", f"--key-file={key}", "--read-only", image, mountpoint).returncode == 0
        shutil.copyfile(mountpoint / ".mystfuse/image", tmp_path / "payload")
    finally:
        clear_mount(mountpoint)
    block, ino = block_of(tmp_path / "payload", "/usr/lib/x.so", 5), inode_of(tmp_path / "payload", "/usr/lib/x.so")
    bad = damage(image, tmp_path / "bad", start + block * BLOCK)
    with logging_mount(bad, tmp_path, f"--key-file={key}") as (mountpoint, log):
        fail_to_read(mountpoint / "usr/lib/x.so", 5 * BLOCK)
        wait_until(lambda: f"inode {ino} is /usr/lib/x.so" in log.read_text())
        assert messages(mountpoint, log)[0] == (
            f"verity: data block {start // BLOCK + block} is corrupted (inode {ino}, bytes 20480-24575; "
            "blocks of 4096 bytes)"
        )


def test_the_mount_that_ends_by_damage_has_named_it(image: Path, tmp_path: Path) -> None:
    block, ino = block_of(image, "/usr/lib/x.so"), inode_of(image, "/usr/lib/x.so")
    bad, log = damage(image, tmp_path / "bad", block * BLOCK), tmp_path / "log"
    with mounted(bad, tmp_path / "mnt", f"--log-file={log}", "--on-corruption=unmount") as mountpoint:
        fail_to_read(mountpoint / "usr/lib/x.so")
        wait_until(lambda: "unmounting because of damage" in log.read_text())
    assert f"(inode {ino}, bytes 0-4095; " in log.read_text()
