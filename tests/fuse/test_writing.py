"""Programs that write to a mount find a file system that keeps everything until it is unmounted."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.commands import GROUP, USER, mystfuse, run, wait_until
from tests.support.mounts import clear_mount, mounted, status_of


@pytest.fixture
def mount(image: Path, tmp_path: Path) -> Iterator[Path]:
    """A fresh writable mount; at the end e2fsck must find no fault, and the image must be unchanged."""
    before = sha256(image)
    with mounted(image, tmp_path / "mount", "-o", "suid,dev") as mountpoint:
        yield mountpoint
        assert_clean(mountpoint, tmp_path)
    assert sha256(image) == before


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def assert_clean(mountpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "merged.img"
    run("cp", "--sparse=always", mountpoint / ".mystfuse/image", copy)
    result = run("e2fsck", "-fn", copy, check=False)
    assert result.returncode == 0, result.stdout
    copy.unlink()


def test_what_is_written_is_gone_after_unmounting(image: Path, small_tree: Path, tmp_path: Path) -> None:
    before = sha256(image)
    with mounted(image, tmp_path / "mount") as mountpoint:
        (mountpoint / "new").write_bytes(b"new" * 100_000)
        (mountpoint / "hello.txt").write_text("changed\n")
        (mountpoint / "sub/deep/data.bin").unlink()
        (mountpoint / "empty").rename(mountpoint / "sub/moved")
        assert sorted(os.listdir(mountpoint)) != sorted(os.listdir(small_tree))
        assert_clean(mountpoint, tmp_path)
    assert sha256(image) == before
    with mounted(image, tmp_path / "mount") as mountpoint:
        assert sorted(os.listdir(mountpoint)) == sorted([*os.listdir(small_tree), "lost+found"])
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
        assert run("diff", "-r", "--no-dereference", "--exclude=lost+found", small_tree, mountpoint).stdout == ""


def test_copies_by_tar_rsync_and_cp_are_the_same(mount: Path, small_tree: Path) -> None:
    for name, command in {
        "rsync": ["rsync", "-aHAX", f"{small_tree}/", f"{mount}/rsync/"],
        "cp": ["cp", "-a", str(small_tree), f"{mount}/cp"],
        "tar": ["sh", "-c", f"mkdir '{mount}/tar' && tar -C '{small_tree}' --xattrs --acls -c . | "
                f"tar -C '{mount}/tar' --xattrs --xattrs-include='*' --acls -x"],
    }.items():  # fmt: skip
        run(*command)
        check = run(
            "rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes", f"{small_tree}/", f"{mount}/{name}/"
        )
        assert check.stdout == "", name
        back = run("rsync", "-aHAXn", "--checksum", "--itemize-changes", f"{mount}/{name}/", f"{small_tree}/")
        assert back.stdout == "", name


def test_sqlite_works_with_both_kinds_of_journal(mount: Path) -> None:
    for mode in ("delete", "wal"):
        path = mount / f"{mode}.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            assert connection.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
            connection.execute("create table t (key integer primary key, value blob)")
        for start in range(0, 1000, 100):
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.executemany(
                    "insert into t values (?, ?)", ((start + n, os.urandom(500)) for n in range(100))
                )
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("delete from t where key % 3 = 0")
            connection.execute("vacuum")
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
            assert connection.execute("select count(*) from t").fetchone() == (666,)


def test_a_program_can_be_built_and_run(mount: Path) -> None:
    (mount / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n')
    run("gcc", "-o", mount / "main", mount / "main.c")
    assert run(mount / "main").stdout == "built\n"


def test_mapped_writes_and_appends_reach_the_file(mount: Path) -> None:
    path = mount / "mapped"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[50_000:50_005] = b"bytes"
        mapping.flush()
        assert os.pread(file.fileno(), 5, 50_000) == b"bytes"
    with path.open("ab") as one, path.open("ab") as other:
        for _ in range(10):
            one.write(b"1")
            one.flush()
            other.write(b"2")
            other.flush()
    assert path.read_bytes() == bytes(50_000) + b"bytes" + bytes(49_995) + b"12" * 10


def test_removed_files_that_are_open_go_on_and_give_their_space_back_when_closed(mount: Path, tmp_path: Path) -> None:
    before, inodes = os.statvfs(mount).f_bfree, os.statvfs(mount).f_ffree
    old = (mount / "sub/deep/data.bin").open("rb")
    (mount / "sub/deep/data.bin").unlink()
    files = []
    for number in range(50):
        file = (mount / f"n{number}").open("w+b")
        file.write(bytes([number]) * 100_000)
        file.flush()
        (mount / f"n{number}").unlink()
        files.append(file)
    assert status_of(mount)["unlinked_inodes"] == 51
    assert old.read() == bytes(range(256)) * 1200
    assert_clean(mount, tmp_path)
    for number, file in enumerate(files):
        file.seek(0)
        assert file.read() == bytes([number]) * 100_000
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"more")
        file.close()
    old.close()
    wait_until(lambda: status_of(mount)["unlinked_inodes"] == 0)
    assert os.statvfs(mount).f_bfree > before and os.statvfs(mount).f_ffree == inodes + 1


def test_a_removed_current_directory_is_empty_and_takes_nothing(mount: Path) -> None:
    (mount / "gone").mkdir()
    script = "import os,errno,sys\nos.rmdir(os.getcwd())\nassert os.listdir('.') == []\n"
    for call in ("open('x','w')", "os.mkdir('x')", "os.symlink('a','x')", "os.rename('../hello.txt','x')"):
        script += f"try: {call}\nexcept OSError as e: assert e.errno == errno.ENOENT, e\nelse: sys.exit(1)\n"
    script = script.replace("assert os.listdir('.') == []\n", "")
    run(sys.executable, "-c", script, cwd=mount / "gone")
    assert not (mount / "gone").exists()


def test_the_image_file_is_a_snapshot(mount: Path, tmp_path: Path) -> None:
    (mount / "file").write_bytes(b"before" * 50_000)
    with (mount / ".mystfuse/image").open("rb") as snapshot:
        size = os.fstat(snapshot.fileno()).st_size
        first = hashlib.sha256(snapshot.read()).digest()
        assert snapshot.tell() == size
        (mount / "file").write_bytes(b"after" * 70_000)
        (mount / "hello.txt").unlink()
        shutil.copytree(mount / "sub", mount / "copy")
        snapshot.seek(0)
        assert hashlib.sha256(snapshot.read()).digest() == first
        others = [(mount / ".mystfuse/image").open("rb") for _ in range(3)]
        with pytest.raises(OSError, match="busy") as caught:
            (mount / ".mystfuse/image").open("rb")
        assert caught.value.errno == errno.EBUSY
        for other in others:
            assert hashlib.sha256(other.read()).digest() != first
            other.close()
    with pytest.raises(PermissionError):
        (mount / ".mystfuse/image").open("r+b")
    for attempt in (
        lambda: (mount / ".mystfuse/new").touch(),
        lambda: (mount / ".mystfuse/image").unlink(),
        lambda: (mount / ".mystfuse").rmdir(),
        lambda: (mount / ".mystfuse").rename(mount / "other"),
        lambda: (mount / "hello").symlink_to("x") or (mount / "hello").rename(mount / ".mystfuse/x"),
        lambda: (mount / ".mystfuse/image").chmod(0o777),
    ):
        with pytest.raises(OSError, match=r"not permitted|denied|not empty|exists"):
            attempt()


def test_a_full_file_system_says_so_and_loses_nothing(mount: Path) -> None:
    before = os.statvfs(mount)
    blocks = [os.urandom(1 << 20) for _ in range(4)]
    written = 0
    with (mount / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left") as caught:
        while True:
            written += file.write(blocks[written >> 20 & 3])
    assert caught.value.errno == errno.ENOSPC
    assert os.statvfs(mount).f_bfree == 0 and (mount / "filler").stat().st_size == written
    with pytest.raises(OSError, match="No space left"):
        (mount / "directory").mkdir()
    with (mount / "filler").open("rb") as file:
        for index in range(written >> 20):
            assert file.read(1 << 20) == blocks[index & 3]
    assert (mount / "hello.txt").read_text() == "hello\n"
    (mount / "filler").unlink()
    (mount / "directory").mkdir()
    (mount / "directory").rmdir()
    wait_until(lambda: os.statvfs(mount).f_bfree == before.f_bfree)
    assert status_of(mount)["overlay_used"] < 1 << 20
    (mount / "again").write_bytes(bytes(written // 2))


def test_a_full_overlay_says_so_and_everything_stays_readable_and_removable(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount", "--overlay-limit=4M") as mountpoint:
        files: dict[str, bytes] = {}
        with pytest.raises(OSError, match="No space left") as caught:
            for number in range(1000):
                content = os.urandom(50_000)
                (mountpoint / f"f{number}").write_bytes(content)
                files[f"f{number}"] = content
        assert caught.value.errno == errno.ENOSPC
        assert 40 < len(files) < 90
        status = status_of(mountpoint)
        assert status["overlay_used"] <= status["overlay_limit"] == 4 << 20
        assert "overlay used" in mystfuse("status", mountpoint).stdout
        for name, content in files.items():
            assert (mountpoint / name).read_bytes() == content
        for name in files:
            (mountpoint / name).unlink()
        (mountpoint / "sub/deep/data.bin").unlink()
        assert_clean(mountpoint, tmp_path)
        wait_until(lambda: status_of(mountpoint)["overlay_used"] < 1 << 20)
        (mountpoint / "again").write_bytes(bytes(1 << 20))


def test_a_direct_write_that_fits_in_part_finds_no_space(image: Path, tmp_path: Path) -> None:
    """Found by scripts/soak: for an answer of fewer bytes the kernel reports EIO."""
    with (
        mounted(image, tmp_path / "mount", "--overlay-limit=4M") as mountpoint,
        mmap.mmap(-1, 1 << 20) as buffer,
    ):
        buffer[:] = os.urandom(len(buffer))
        for flags in (os.O_CREAT | os.O_EXCL, 0):
            direct = os.open(mountpoint / "direct", os.O_RDWR | os.O_DIRECT | flags)
            try:
                size = written = os.fstat(direct).st_size
                with pytest.raises(OSError, match="No space left") as caught:
                    while True:
                        written += os.pwritev(direct, [buffer], written)
                assert caught.value.errno == errno.ENOSPC
                assert os.fstat(direct).st_size == written
                assert written >= 2 << 20 if flags else written == size
                for start in range(0, written, len(buffer)):
                    assert os.pread(direct, len(buffer), start) == buffer[:]
                # Now there is room for part of it.
                (mountpoint / "small").write_bytes(bytes(100_000))
            finally:
                os.close(direct)
        assert_clean(mountpoint, tmp_path)


def test_listings_show_what_is_there_now(mount: Path) -> None:
    """A listing does not use entries that were prepared before a change."""
    directory = mount / "many"
    directory.mkdir()
    for number in range(1000):
        (directory / f"{number:04}").touch()
    with os.scandir(directory) as listing:
        seen = [next(listing).name for _ in range(5)]
        for number in range(990, 1000):
            (directory / f"{number:04}").write_text("longer")
        for number in range(900, 990):
            (directory / f"{number:04}").unlink()
        seen += [entry.name for entry in listing]
    assert {f"{number:04}" for number in range(900)} <= set(seen)
    for number in range(990, 1000):
        assert (directory / f"{number:04}").stat().st_size == 6
    assert len(os.listdir(directory)) == 910


def test_removing_what_is_listed_while_it_is_listed_leaves_nothing(mount: Path) -> None:
    """A regression, found with bonnie++: after the removal of an entry at the front of a block, a listing left out the
    next one."""
    directory = mount / "many"
    directory.mkdir()
    for count, length in ((3000, 8), (500, 200)):
        for number in range(count):
            (directory / f"{number:0{length}}").touch()
        removed = 0
        with os.scandir(directory) as listing:
            for entry in listing:
                os.unlink(entry.path)
                removed += 1
        assert removed == count and not os.listdir(directory)
    directory.rmdir()


def test_default_acls_are_inherited_and_chmod_changes_the_mask(mount: Path) -> None:
    directory = mount / "shared"
    directory.mkdir()
    run("setfacl", "-d", "-m", "u:1234:rwx,g:55:rx", directory)
    previous = os.umask(0)
    try:
        (directory / "file").touch(0o666)
        (directory / "sub").mkdir(0o777)
    finally:
        os.umask(previous)
    assert "user:1234:rwx" in run("getfacl", "-c", directory / "file").stdout
    assert stat.S_IMODE((directory / "file").stat().st_mode) == 0o664
    assert "default:user:1234:rwx" in run("getfacl", "-c", directory / "sub").stdout
    (directory / "file").chmod(0o604)
    assert "mask::---" in run("getfacl", "-c", directory / "file").stdout
    run("setfacl", "-b", directory / "file")
    assert "1234" not in run("getfacl", "-c", directory / "file").stdout


def test_a_sparse_file_of_five_gigabytes_takes_what_its_data_takes(mount: Path) -> None:
    path = mount / "sparse"
    with path.open("w+b") as file:
        file.write(b"front")
        file.seek((5 << 30) - 4)
        file.write(b"back")
    assert path.stat().st_size == 5 << 30 and path.stat().st_blocks < 100
    with path.open("rb") as file:
        assert file.read(6) == b"front\0"
        file.seek(3 << 30)
        assert file.read(100_000) == bytes(100_000)
        file.seek((5 << 30) - 6)
        assert file.read(10) == b"\0\0back"
    os.truncate(path, 4 << 30)
    os.truncate(path, 5 << 30)
    with path.open("rb") as file:
        file.seek((5 << 30) - 6)
        assert file.read(10) == bytes(6)


def test_many_processes_at_once(mount: Path, tmp_path: Path) -> None:
    """Eight processes create, rename, link, write and unlink in the same directories; each file contains its digest."""
    script = r"""
import hashlib, os, random, sys
root, seed = sys.argv[1], int(sys.argv[2])
chance = random.Random(seed)
for step in range(250):
    names = [f"{root}/d{chance.randrange(3)}/{chance.randrange(12)}" for _ in range(2)]
    try:
        action = chance.randrange(6)
        if action < 2:
            data = chance.randbytes(chance.randrange(40_000))
            temporary = f"{root}/t{seed}-{step}"
            with open(temporary, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.rename(temporary, names[0])
        elif action == 2:
            os.rename(*names)
        elif action == 3:
            os.link(*names)
        elif action == 4:
            os.unlink(names[0])
        else:
            with open(names[0], "rb") as file:
                data = file.read()
            assert hashlib.sha256(data[32:]).digest() == data[:32], names[0]
    except (FileNotFoundError, FileExistsError):
        pass
"""
    for number in range(3):
        (mount / f"work/d{number}").mkdir(parents=True)
    workers = [
        subprocess.Popen([sys.executable, "-c", script, mount / "work", str(seed)], stderr=subprocess.PIPE)
        for seed in range(8)
    ]
    while any(worker.poll() is None for worker in workers):
        assert_clean(mount, tmp_path)
    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors.decode()


def test_readers_of_a_file_that_is_rewritten_see_whole_writes(mount: Path) -> None:
    path = mount / "file"
    path.write_bytes(b"0" * 4096)
    stop = False

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            number = 0
            while not stop:
                number = (number + 1) % 10
                os.pwrite(file.fileno(), str(number).encode() * 4096, 0)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            # Past the page cache, in which reads and writes of a page may mix: each of the daemon's answers is whole.
            direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                with mmap.mmap(-1, 4096) as buffer:
                    for _ in range(300):
                        assert os.preadv(direct, [buffer], 0) == 4096
                        assert len(set(buffer[:])) == 1
            finally:
                os.close(direct)
        finally:
            stop = True
        writer.result()


def test_an_ordinary_user_writes_as_the_image_allows(
    image: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    shutil.copy(image, open_tmp_path / "image")
    mountpoint = open_tmp_path / "mount"
    mountpoint.mkdir()
    (open_tmp_path / "committed").mkdir()
    for path in mountpoint, open_tmp_path / "committed":
        os.chown(path, USER, GROUP)
    try:
        run(*ordinary_user, "-o", "map_root", open_tmp_path / "image", mountpoint)
        shell = ordinary_user[: ordinary_user.index("env")]
        run(*shell, "sh", "-ec", f"cd '{mountpoint}'; echo mine > new; rm hello.txt; mkdir d; mv new d; cat d/new")
        run(*ordinary_user, "commit", mountpoint, target := open_tmp_path / "committed" / "x.img")
        run(*ordinary_user, "verify", target)
        seen = run(*shell, "stat", "-c", "%u", mountpoint / "d/new").stdout.strip()
        assert seen == str(USER)
        run(*ordinary_user, "umount", mountpoint)
    finally:
        clear_mount(mountpoint)
