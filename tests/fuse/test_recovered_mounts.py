"""Mounts of, and commands on, a file system that was not unmounted: its journal is replayed, into the mount alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import make_image
from tests.support.journals import loop_device
from tests.support.mounts import mounted, status_of

COMPARE = Path(__file__).parents[2] / "scripts/compare-trees"
MAGIC = b"\xc0\x3b\x39\x98"


def make_dirty(directory: Path, kind: str) -> Path:
    """An image as after a power failure, file data in its journal."""
    image, mountpoint = (
        make_image(directory / "loaded", "-t", kind, "-b", "1024", "-J", "size=8", size="32M"),
        directory / "mount",
    )
    mountpoint.mkdir()
    with loop_device(image) as device:
        run("mount", "-t", "ext4", "-o", "data=journal", device, mountpoint)
        try:
            for number in range(200):
                (mountpoint / f"early{number}").write_bytes(b"early %d\n" % number)
            run("sync", "-f", mountpoint)
            time.sleep(0.2)
            (mountpoint / "sub").mkdir()
            for number in range(100):
                (mountpoint / f"early{number}").unlink()
                (mountpoint / f"sub/late{number}").write_bytes((MAGIC + b"late %d\n" % number) * 2000)
            os.symlink("t" * 300, mountpoint / "link")
            os.setxattr(mountpoint / "early150", "user.some", b"value")
            run("sync", "-f", mountpoint)
            shutil.copy(image, directory / "dirty")
        finally:
            run("umount", mountpoint)
    image.unlink()
    return directory / "dirty"


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dirty(tmp_path_factory.mktemp("dirty"), "ext3")


@pytest.fixture(scope="module")
def expected(dirty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same image, recovered by e2fsck."""
    image = tmp_path_factory.mktemp("expected") / "image"
    shutil.copy(dirty, image)
    run("e2fsck", "-fy", image, check=False)
    return image


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same(left: Path, right: Path, *options: str) -> None:
    compared = run(COMPARE, left, right, *options, check=False)
    assert compared.returncode == 0, compared.stdout


@pytest.mark.parametrize("options", [(), ("--read-only",), ("-o", "nofastpath"), ("--read-only", "-o", "nofastpath")])
def test_a_mount_shows_the_recovered_file_system(
    dirty: Path, expected: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    before = digest(dirty)
    with (
        mounted(dirty, tmp_path / "mount", "--insecure", *options) as mountpoint,
        mounted(expected, tmp_path / "expected", "--insecure", "--read-only") as other,
    ):
        assert_same(other, mountpoint)
        ours, theirs = os.statvfs(mountpoint), os.statvfs(other)
        assert (ours.f_bfree, ours.f_ffree) == (theirs.f_bfree, theirs.f_ffree)
        status = status_of(mountpoint)
        assert status["read_only"] == ("--read-only" in options)
        assert status["overlay_written"] == 0 < status["overlay_used"]
        shutil.copy(mountpoint / ".mystfuse/image", tmp_path / "copy")
        run("e2fsck", "-fn", tmp_path / "copy")
    assert digest(dirty) == before


@pytest.mark.parametrize("options", [(), ("-o", "nofastpath")])
def test_a_mount_of_ext4_shows_what_the_kernel_recovers(tmp_path: Path, options: tuple[str, ...]) -> None:
    image, kernel = make_dirty(tmp_path, "ext4"), tmp_path / "kernel"
    copy = shutil.copy(image, tmp_path / "copy")
    kernel.mkdir()
    with loop_device(copy) as device, mounted(image, tmp_path / "ours", "--insecure", *options) as mountpoint:
        run("mount", "-t", "ext4", "-o", "ro", device, kernel)
        try:
            assert_same(kernel, mountpoint)
        finally:
            run("umount", kernel)


def test_it_can_be_written_to_and_is_clean_at_any_time(dirty: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with mounted(dirty, tmp_path / "mount", "--insecure") as mountpoint:
        for step in (
            lambda: None,
            lambda: (mountpoint / "new").write_bytes(b"new" * 100_000),
            lambda: shutil.rmtree(mountpoint / "sub"),
            lambda: (mountpoint / "early150").rename(mountpoint / "renamed"),
        ):
            step()
            shutil.copy(mountpoint / ".mystfuse/image", copy)
            run("e2fsck", "-fn", copy)
            assert "needs_recovery" not in run("dumpe2fs", "-h", copy).stdout
        changes = mystfuse("diff", mountpoint).stdout.splitlines()
        assert any(line.endswith("early150 -> renamed") or "renamed" in line for line in changes)
        assert any(line.startswith("A") and line.endswith("new") for line in changes)
        assert not any("early151" in line for line in changes)


def test_a_new_image_has_a_clean_journal(dirty: Path, expected: Path, tmp_path: Path) -> None:
    new, roothash = tmp_path / "new", ("--trust-self",)
    with mounted(dirty, tmp_path / "mount", "--insecure") as mountpoint:
        assert mystfuse("commit", mountpoint, new).returncode == 0
    with (
        mounted(new, tmp_path / "mount", *roothash) as mountpoint,
        mounted(expected, tmp_path / "expected", "--insecure", "--read-only") as other,
    ):
        assert_same(other, mountpoint)
        assert status_of(mountpoint)["overlay_used"] == 0


def test_commands_that_need_no_mount_see_the_recovered_tree(dirty: Path, expected: Path, tmp_path: Path) -> None:
    for image, target in ((dirty, tmp_path / "ours"), (expected, tmp_path / "expected")):
        assert mystfuse("extract", "--insecure", image, "/", target).returncode == 0
    assert_same(tmp_path / "expected", tmp_path / "ours", "--ignore", "st_ino,st_ctime_ns,st_atime_ns")
    assert mystfuse("cat", "--insecure", dirty, "/sub/late7").stdout.encode("utf-8", "surrogateescape").count(b"late 7")
    assert mystfuse("diff", "--insecure", dirty, expected).stdout == ""


def test_too_little_room_for_the_journal_is_one_line(dirty: Path, tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    result = mystfuse("mount", "--insecure", "--overlay-limit=1M", dirty, tmp_path / "mount")
    assert result.returncode == 6, result.stderr
    assert "journal" in result.stderr and "Traceback" not in result.stderr


def test_what_does_not_fit_into_memory_goes_to_the_store(dirty: Path, expected: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with (
        mounted(dirty, tmp_path / "mount", "--insecure", "--overlay-limit=1M", f"--overlay-store={store}") as mount,
        mounted(expected, tmp_path / "expected", "--insecure", "--read-only") as other,
    ):
        assert status_of(mount)["overlay_store_used"] > 0
        assert_same(other, mount)
