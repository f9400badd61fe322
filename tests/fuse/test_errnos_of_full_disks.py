"""Errnos where no block or inode is free, each compared with the kernel's on its own mount of the same image."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import (
    EEXIST,
    ENOSPC,
)
from functools import partial
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.errno_pairs import (
    ACCESS_ACL,
    CREATE,
    DONE,
    MINIMAL_ACL,
    NAMED_ACL,
    RENAME_EXCHANGE,
    Case,
    Pair,
    as_user,
    cases,
    check,
    in_turn,
    make_image,
    open_directory,
    opened,
    outcome,
    pair_of,
    rename,
    state,
    touch_open,
    write_at,
)
from tests.support.mounts import HAS_FAST_PATH, mounted


@contextmanager
def small_pair(block_size: int, *options: str) -> Iterator[Pair]:
    """Both mounts of an empty image that fills up soon."""
    with open_directory() as directory:
        (directory / "source").mkdir()
        image = make_image(directory, directory / "source", block_size, "2M", *options)
        with pair_of(image, block_size) as pair:
            yield pair


pytestmark = pytest.mark.usefixtures("no_umask")


def fill(path: Path, step: int) -> tuple[int, bool]:
    """Write to the end of a new file until nothing more can be written.

    Returns:
        Its size, and whether a write was cut short before one failed.
    """
    is_short = False
    with opened(path, CREATE | os.O_APPEND) as handle:
        for length in (200 * step, step):
            while True:
                try:
                    is_short |= os.write(handle, bytes(length)) < length
                except OSError as error:
                    assert error.errno == ENOSPC, error
                    break
        return os.fstat(handle).st_size, is_short


def fill_up(root: Path, step: int) -> tuple[int, bool]:
    """Fill one file, then others with the blocks that are too few for the first one's next block and its indirect
    blocks.

    Returns:
        As ``fill`` of the first, which is called ``filler``.
    """
    result = fill(root / "filler", step)
    rests = 0
    while fill(root / f"rest-{rests}", step)[0]:
        rests += 1
    return result


def free(root: Path) -> tuple[int, int]:
    found = os.statvfs(root)
    return found.f_bfree, found.f_ffree


def make_crowded(directory: Path, block_size: int) -> None:
    """A directory whose only block has no room for another long name."""
    directory.mkdir()
    for number in range((block_size - 24) // 264):
        (directory / f"{number:0255}").touch()


@pytest.fixture(scope="module", params=(1024, 4096))
def full_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Mounts on which no block is free, but inodes are."""
    block_size = request.param
    with small_pair(block_size, "-m", "0", "-I", "128", "-N", "256") as pair:
        for root in pair.sides():
            make_crowded(root / "crowded", block_size)
            (root / "room").mkdir()
            for name in ("file", "empty", "attributed", "directory"):
                (root / "room" / name).mkdir() if name == "directory" else (root / "room" / name).touch()
            write_at(root / "room/file", b"content\n", 100 * block_size)
            os.setxattr(root / "room/attributed", "user.u", b"value" * 30)
            fill_up(root, block_size)
            assert free(root)[0] == 0
        yield pair


NEW = "n" * 255
FULL = cases(
    Case("write", lambda d: write_at(d / "room/empty", b"x"), ENOSPC),
    Case("write into a hole", lambda d: write_at(d / "room/file", b"x"), ENOSPC),
    Case("write where there is a block", lambda d: write_at(d / "filler", b"x"), "1"),
    Case("append", lambda d: write_at(d / "filler", b"x", 0, os.O_WRONLY | os.O_APPEND), ENOSPC),
    Case("extend", lambda d: os.truncate(d / "room/empty", 1_000_000)),
    Case("create", lambda d: touch_open(d / "room/created", CREATE)),
    Case("create and write", lambda d: write_at(d / "room/written", b"x", 0, CREATE), ENOSPC),
    Case("mkfifo", lambda d: os.mkfifo(d / "room/fifo")),
    Case("link", lambda d: os.link(d / "room/file", d / "room/link")),
    Case("short symlink", lambda d: os.symlink("t" * 59, d / "room/short")),
    Case("long symlink", lambda d: os.symlink("t" * 60, d / "room/long"), ENOSPC),
    Case("mkdir", lambda d: os.mkdir(d / "room/new"), ENOSPC),
    Case("mkdir over a file", lambda d: os.mkdir(d / "room/file"), EEXIST),
    Case("rename", lambda d: rename(d / "room/empty", d / "room/renamed")),
    Case("chmod", lambda d: os.chmod(d / "room/file", 0o600)),
    Case("setxattr", lambda d: os.setxattr(d / "room/file", "user.a", b"value"), ENOSPC),
    Case("another attribute", lambda d: os.setxattr(d / "room/attributed", "user.a", b"value")),
    Case("set an ACL", lambda d: os.setxattr(d / "room/file", ACCESS_ACL, NAMED_ACL), ENOSPC),
    Case("set a minimal ACL", lambda d: os.setxattr(d / "room/file", ACCESS_ACL, MINIMAL_ACL)),
    Case("crowded: create", lambda d: touch_open(d / "crowded" / NEW, CREATE), ENOSPC),
    Case("crowded: mkdir", lambda d: os.mkdir(d / "crowded" / NEW), ENOSPC),
    Case("crowded: mkfifo", lambda d: os.mkfifo(d / "crowded" / NEW), ENOSPC),
    Case("crowded: mknod", lambda d: os.mknod(d / "crowded" / NEW, stat.S_IFCHR), ENOSPC),
    Case("crowded: symlink", lambda d: os.symlink("target", d / "crowded" / NEW), ENOSPC),
    Case("crowded: link", lambda d: os.link(d / "room/file", d / "crowded" / NEW), ENOSPC),
    Case("crowded: rename", lambda d: rename(d / "room/file", d / "crowded" / NEW), ENOSPC),
    Case("crowded: rename a directory", lambda d: rename(d / "room/directory", d / "crowded" / NEW), ENOSPC),
    Case("crowded: rename over a file", lambda d: rename(d / "room/attributed", d / "crowded" / f"{0:0255}")),
    Case("crowded: exchange", lambda d: rename(d / "room/file", d / "crowded" / f"{1:0255}", RENAME_EXCHANGE)),
    Case(
        "crowded: unlink and create",
        in_turn(
            lambda d: os.unlink(d / "crowded" / f"{2:0255}"),
            lambda d: touch_open(d / "crowded" / NEW, CREATE),
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", FULL)
def test_full(full_pair: Pair, case: Case) -> None:
    check(full_pair, case, "")
    assert state(full_pair.ours) == state(full_pair.kernel)
    assert free(full_pair.ours) == free(full_pair.kernel)


def test_write_that_fits_in_part(full_pair: Pair) -> None:
    """The write is cut short; the kernel takes whole pages only, we take every block."""
    kernel = "1000" if full_pair.block_size == 4096 else "ENOSPC"
    for root, expected in ((full_pair.kernel, kernel), (full_pair.ours, "1000")):
        path = root / "filler"
        assert outcome(partial(write_at, path, bytes(5000), path.stat().st_size - 1000)) == expected
    assert state(full_pair.ours) == state(full_pair.kernel)


@pytest.mark.parametrize("block_size", (1024, 4096))
def test_writing_until_it_is_full(block_size: int) -> None:
    """A write that fits in part is cut short, the next one fails; removing something makes room again."""
    with small_pair(block_size, "-m", "0") as pair:
        kernel, ours = (fill_up(root, block_size) for root in pair.sides())
        assert ours == kernel
        assert kernel[1]
        for root in pair.sides():
            assert outcome(partial(os.mkdir, root / "directory")) == "ENOSPC"
            os.truncate(root / "filler", kernel[0] - 3 * block_size)
            assert outcome(partial(os.mkdir, root / "directory")) == DONE
            os.unlink(root / "filler")
            assert fill(root / "filler", block_size)[0] > kernel[0] - 5 * block_size
        assert free(pair.ours) == free(pair.kernel)


def test_full_inode_table() -> None:
    """Hard links to existing files still work."""

    def make_all(root: Path) -> list[str]:
        made: list[str] = []
        while (answer := outcome(partial(os.mknod, root / f"{len(made)}"))) == DONE:
            made.append(answer)
        calls: tuple[Callable[[], object], ...] = (
            lambda: touch_open(root / "new", CREATE),
            lambda: os.mkdir(root / "new"),
            lambda: os.mkfifo(root / "new"),
            lambda: os.symlink("target", root / "new"),
            lambda: os.link(root / "0", root / "link"),
            lambda: write_at(root / "0", b"x"),
            lambda: rename(root / "0", root / "renamed"),
            lambda: os.unlink(root / "1"),
            lambda: os.mkdir(root / "new"),
            lambda: touch_open(root / "another", CREATE),
        )
        return [str(len(made)), answer, *(outcome(call) for call in calls)]

    with small_pair(1024, "-N", "32") as pair:
        kernel, ours = (make_all(root) for root in pair.sides())
        assert ours == kernel
        assert kernel[1:] == ["ENOSPC"] * 5 + [DONE, "1", DONE, DONE, DONE, "ENOSPC"]
        assert free(pair.ours) == free(pair.kernel)
        assert state(pair.ours) == state(pair.kernel)
        image = pair.ours.parent / "full"
        run("cp", "--sparse=always", pair.ours / ".mystfuse/image", image)
        run("e2fsck", "-fn", image)


def test_reserved_blocks() -> None:
    """Reserved blocks are for root. Without the fast path the opener counts, since pyfuse3 does not tell who writes."""
    with small_pair(1024, "-m", "20") as pair:
        for root in pair.sides():
            (root / "users").mkdir()
            (root / "users").chmod(0o777)
            with as_user():
                touch_open(root / "users/root-writes", CREATE)
            (root / "user-writes").touch()
        answers = []
        for root in pair.sides():
            with as_user():
                sizes = fill_up(root / "users", 1024)
                as_a_user = [
                    outcome(partial(touch_open, root / "users/empty", CREATE)),
                    outcome(partial(os.mkdir, root / "users/directory")),
                    outcome(partial(os.symlink, "t" * 100, root / "users/symlink")),
                    outcome(partial(os.setxattr, root / "users/empty", "user.a", bytes(500))),
                ]
            available = os.statvfs(root).f_bavail
            as_root = [
                outcome(partial(os.mkdir, root / "directory")),
                outcome(partial(write_at, root / "new", b"x", 0, CREATE)),
                outcome(partial(os.setxattr, root / "users/empty", "user.a", bytes(500))),
            ]
            answers.append((sizes, as_a_user, available, as_root, free(root)))
        kernel, ours = answers
        assert ours == kernel
        assert kernel[1] == [DONE, "ENOSPC", "ENOSPC", "ENOSPC"]
        assert kernel[2] == 0
        assert kernel[3] == [DONE, "1", DONE]
        of_writer, of_opener = ("ENOSPC", "1"), ("1", "ENOSPC")
        rights = {pair.kernel: of_writer, pair.ours: of_writer if HAS_FAST_PATH else of_opener}
        for root, (user_writes, root_writes) in rights.items():
            with opened(root / "user-writes", os.O_WRONLY) as handle, as_user():
                assert outcome(partial(os.write, handle, b"x")) == user_writes
            with as_user():
                handle = os.open(root / "users/root-writes", os.O_WRONLY)
            try:
                assert outcome(partial(os.write, handle, b"x")) == root_writes
            finally:
                os.close(handle)


def test_full_overlay() -> None:
    """Written data fills the memory of the overlay; removing something makes room."""
    with open_directory() as directory:
        (directory / "source").mkdir()
        image = make_image(directory, directory / "source", 1024, "16M", "-N", "4096")
        arguments = ("--insecure", "--overlay-limit", "2M")
        with mounted(image, directory / "ours", *arguments) as root:
            (root / "directory").mkdir()
            size, is_short = fill(root / "filler", 1024)
            assert 1 << 20 < size < 2 << 20
            assert is_short
            # Blocks that are too few for a file's block and its indirect blocks are enough for a directory.
            directories = 0
            while outcome(partial(os.mkdir, root / f"{directories}")) == DONE:
                directories += 1
            assert directories < 100
            assert free(root)[0] > 8192
            answers = [
                outcome(partial(os.symlink, "t" * 100, root / "symlink")),
                outcome(partial(os.mkdir, root / "new")),
                outcome(partial(os.setxattr, root / "filler", "user.a", bytes(900))),
                outcome(partial(write_at, root / "filler", b"x", 10 << 20)),
                outcome(partial(write_at, root / "filler", b"x")),
                outcome(partial(os.chmod, root / "filler", 0o600)),
                outcome(partial(os.truncate, root / "filler", 500_000)),
                outcome(partial(os.mkdir, root / "new")),
                outcome(partial(os.unlink, root / "filler")),
            ]
            assert answers == ["ENOSPC"] * 4 + ["1", DONE, DONE, DONE, DONE]
            assert fill(root / "filler", 1024)[0] >= size - 8192
