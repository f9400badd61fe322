"""With SOURCE_DATE_EPOCH the same directory gives the same bytes."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import mystfuse, run
from tests.support.made_images import MIB, assert_clean, assert_refused, loop_mounted, make

EPOCH = 1_600_000_000


def at_epoch(epoch: int, **more: str) -> dict[str, str]:
    return {"SOURCE_DATE_EPOCH": str(epoch), **more}


@pytest.mark.parametrize("options", [(), ("--block-size=4096", "--free=3M"), ("--salt=", "--uuid=" + "1" * 32)])
def test_source_date_epoch_gives_the_same_bytes(options: tuple[str, ...], rich_tree: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    fields = make(rich_tree, first, *options, env=at_epoch(EPOCH))
    time.sleep(1.1)
    for path in rich_tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.read_bytes()
            os.chmod(path, stat.S_IMODE(path.stat().st_mode))  # A new ctime.
    elsewhere = at_epoch(EPOCH, TZ="Pacific/Auckland", LC_ALL="C.UTF-8", LANG="tr_TR.UTF-8")
    assert make(Path("tree"), again, *options, cwd=rich_tree.parent, env=elsewhere) == fields
    assert again.read_bytes() == first.read_bytes()
    assert_clean(first)


def test_source_date_epoch_gives_the_same_bytes_for_a_copy(small_tree: Path, tmp_path: Path) -> None:
    """No file here has several extended attributes: mke2fs stores them in the order of the system's list."""
    first, copied, copy = (tmp_path / name for name in ("first", "copied", "copy of it"))
    fields = make(small_tree, first, env=at_epoch(EPOCH))
    run("cp", "-a", small_tree, copy)
    for path in copy.rglob("*"):
        status = path.lstat()
        os.utime(path, ns=(status.st_atime_ns + 10**15, status.st_mtime_ns), follow_symlinks=False)
    assert make(copy, copied, env=at_epoch(EPOCH)) == fields
    assert copied.read_bytes() == first.read_bytes()
    # Different directories give different images.
    (copy / "hello.txt").write_text("HELLO\n")
    os.utime(copy / "hello.txt", (1_500_000_000, 1_500_000_000))
    assert make(copy, copied, "--force", env=at_epoch(EPOCH))["root_hash"] != fields["root_hash"]


def test_source_date_epoch_does_not_depend_on_how_directories_grew(tmp_path: Path) -> None:
    """A directory that once held many names stays large, its copy is small; both have the same contents."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(b"x" * (8 * MIB - 10_000))
    for number in range(1500):
        (source / "sub" / f"{number:0250}").touch()
    for path in (source / "sub").iterdir():
        path.unlink()
    run("cp", "-a", source, copy)
    os.utime(source / "sub", (1, 1))
    os.utime(copy / "sub", (1, 1))
    if source.joinpath("sub").stat().st_size == copy.joinpath("sub").stat().st_size:
        pytest.skip("directories shrink on this file system")
    fields = [make(path, tmp_path / f"{path.name}.img", env=at_epoch(EPOCH)) for path in (source, copy)]
    assert fields[0] == fields[1]


def test_source_date_epoch_lets_nothing_be_later(rich_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(rich_tree, image, env=at_epoch(EPOCH))
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        inodes = {path.lstat().st_ino for path in kernel.rglob("*")} | {kernel.stat().st_ino}
        for path in [kernel, *kernel.rglob("*")]:
            status = path.lstat()
            assert max(status.st_atime, status.st_mtime, status.st_ctime) <= EPOCH, path
        assert (kernel / "hello.txt").stat().st_mtime == 1_500_000_000
    requests = tmp_path / "requests"
    requests.write_text("".join(f"stat <{number}>\n" for number in sorted(inodes | {7, 8, 11})))
    stamps = re.findall(r"^ ?[acmdr]+time: 0x([0-9a-f]{8})", run("debugfs", "-f", requests, image).stdout, re.MULTILINE)
    assert len(stamps) > 3 * len(inodes)
    assert max(int(stamp, 16) for stamp in stamps if int(stamp, 16) < 0x80000000) <= EPOCH
    header = run("dumpe2fs", "-h", image, env={"TZ": "UTC", "LC_ALL": "C"}).stdout
    for name in ("Filesystem created", "Last write time", "Last checked"):
        said = re.search(rf"{name}:\s+(.+)", header)
        assert said
        parsed = time.strptime(said[1], "%a %b %d %H:%M:%S %Y")
        assert int(run("date", "-u", "-d", time.strftime("%Y-%m-%d %H:%M:%S", parsed), "+%s").stdout) <= EPOCH, name


def test_source_date_epoch_signed_is_the_same_too(
    small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys("mkext2-epoch", 2048, 65537)
    for name in ("one", "two"):
        make(small_tree, tmp_path / name, f"--sign={public}:{private}", env=at_epoch(0))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("epoch", ["x", "-1", "1.5", "99999999999"])
def test_a_source_date_epoch_that_is_none_is_refused(epoch: str, small_tree: Path, tmp_path: Path) -> None:
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "image", env={"SOURCE_DATE_EPOCH": epoch}), 2)
    assert not list(tmp_path.iterdir())
