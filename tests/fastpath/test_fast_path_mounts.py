"""What the fast path of a mount answers, and what it leaves to Python."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import mystfuse, wait_until
from tests.support.mounts import HAS_FAST_PATH, drop_caches, mounted, status_of

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="the native kernels are missing, or the fast path is off")

CONTENT = bytes(range(256)) * 1000
NAMES = [f"file{number}" for number in range(40)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("answers")
    tree = directory / "tree"
    (tree / "directory").mkdir(parents=True)
    for name in NAMES:
        (tree / "directory" / name).write_bytes(name.encode())
    (tree / "large").write_bytes(CONTENT)
    (tree / "link").symlink_to("large")
    result = mystfuse("mkext2", "--free=8M", tree, directory / "image")
    assert result.returncode == 0, result.stderr
    return directory / "image"


@pytest.fixture
def mount(image: Path, mountpoint: Path) -> Iterator[Path]:
    with mounted(image, mountpoint, "--insecure"):
        yield mountpoint


def requests(mount: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Those answered in C, and those handed over, by kind."""
    status = status_of(mount)
    assert status["fastpath"]
    return status["requests_answered"], status["requests_forwarded"]


def test_a_read_only_visit_is_answered_in_c(mount: Path) -> None:
    _, before = requests(mount)
    assert sorted(os.listdir(mount / "directory")) == sorted(NAMES)
    assert (mount / "large").read_bytes() == CONTENT
    assert os.readlink(mount / "link") == "large"
    assert not (mount / "absent").exists()
    with pytest.raises(OSError, match="No data") as raised:
        os.getxattr(mount / "large", "security.capability")
    assert raised.value.errno == errno.ENODATA
    assert os.listxattr(mount / "large") == []
    answered, after = requests(mount)
    for kind in ("lookup", "readdirplus", "open", "read", "readlink", "getxattr", "listxattr", "opendir"):
        assert answered[kind] > 0, kind
    # The status itself: the control directory is Python's.
    assert {kind for kind in after if after[kind] != before.get(kind, 0)} <= {
        "lookup", "getattr", "open", "read", "release", "flush", "ioctl"
    }  # fmt: skip


def test_a_listing_is_kept_by_the_kernel_until_the_directory_changes(mount: Path) -> None:
    def listings() -> int:
        return requests(mount)[0].get("readdirplus", 0)

    os.listdir(mount / "directory")
    first = listings()
    assert sorted(os.listdir(mount / "directory")) == sorted(NAMES)
    assert listings() == first
    (mount / "directory" / "new").touch()
    assert sorted(os.listdir(mount / "directory")) == sorted([*NAMES, "new"])
    assert listings() > first


def test_what_has_been_written_is_answered_in_c(mount: Path) -> None:
    (mount / "new").write_bytes(CONTENT[:5000])
    (mount / "large").write_bytes(CONTENT[::-1])
    with open(mount / "large", "r+b") as file:
        file.truncate(100_000)
    os.rename(mount / "new", mount / "newer")
    os.chmod(mount / "newer", 0o640)
    drop_caches()
    before = requests(mount)[1].get("read", 0)
    assert (mount / "newer").read_bytes() == CONTENT[:5000]
    assert (mount / "newer").stat().st_mode & 0o7777 == 0o640
    assert (mount / "large").read_bytes() == CONTENT[::-1][:100_000]
    assert not (mount / "new").exists()
    # Reading the status takes some reads of its own.
    assert requests(mount)[1].get("read", 0) <= before + 4


def test_capabilities_are_not_asked_for_before_each_write(mount: Path) -> None:
    with open(mount / "log", "wb", buffering=0) as file:
        file.write(b"first")
        before = requests(mount)[0].get("getxattr", 0)
        for _ in range(100):
            file.write(b"more")
    assert requests(mount)[0].get("getxattr", 0) == before


def test_a_removed_file_lives_until_it_is_closed_and_is_freed_then(mount: Path) -> None:
    (mount / "removed").write_bytes(CONTENT)
    free = os.statvfs(mount).f_bfree
    # By a handle that C has given, which nobody counts.
    with open(mount / "removed", "rb", buffering=0) as file:
        os.unlink(mount / "removed")
        drop_caches()
        assert os.pread(file.fileno(), 100, 5000) == CONTENT[5000:5100]
        assert os.fstat(file.fileno()).st_nlink == 0
        assert status_of(mount)["unlinked_inodes"] == 1
    wait_until(lambda: status_of(mount)["unlinked_inodes"] == 0)
    assert os.statvfs(mount).f_bfree > free


def test_an_inode_is_used_again_without_the_old_files_answers(mount: Path) -> None:
    for number in range(50):
        name = mount / f"again{number}"
        name.write_bytes(b"%d" % number * 2000)
        assert name.read_bytes() == b"%d" % number * 2000
        assert name.stat().st_size == len(b"%d" % number * 2000)
        name.unlink()
        assert not name.exists()


def test_without_the_fast_path_python_answers_everything(image: Path, mountpoint: Path) -> None:
    with mounted(image, mountpoint, "--insecure", "-o", "nofastpath"):
        assert (mountpoint / "large").read_bytes() == CONTENT
        status = status_of(mountpoint)
        assert not status["fastpath"]
        assert status["requests_answered"] == status["requests_forwarded"] == {}
        assert status["blocks_verified"] > 0


def test_open_files_keep_a_mount_from_ending_as_idle(image: Path, mountpoint: Path) -> None:
    with mounted(image, mountpoint, "--insecure", "--idle-timeout=1"):
        with open(mountpoint / "large", "rb"), pytest.raises(AssertionError):
            wait_until(lambda: not os.path.ismount(mountpoint), 3)
        wait_until(lambda: not os.path.ismount(mountpoint), 10)
