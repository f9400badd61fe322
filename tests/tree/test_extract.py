"""``ls``, ``cat``, ``extract`` and ``tar``: judged by mounts of the same image, cp, GNU tar, and by what is left.

Hostile images hold what no file system makes; nothing of them may get outside the destination.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pty
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import USER, mystfuse, run
from tests.support.ext2_editor import ROOT, Editor, debugfs, kernel_mount, make_image
from tests.support.mounts import mounted

COMPARE = Path(__file__).parents[2] / "scripts/compare-trees"
COPY = "--ignore=st_ino,st_ctime_ns,st_blocks,st_blksize,st_atime_ns"
FAILED, USAGE, NOT_TRUSTED, INTEGRITY, FORMAT = 1, 2, 3, 4, 6


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Commands that run within this process set up its logging."""
    logger = logging.getLogger("mystfuse")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate, level = before
    logger.setLevel(level)


@pytest.fixture(scope="module")
def rich_image(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_tree`` and more: owners, devices, set-user-ID, odd times, closed directories, holes, capabilities."""
    root = tmp_path_factory.mktemp("rich") / "tree"
    run("cp", "-a", small_tree, root)
    (root / "setuid").write_bytes(b"program")
    os.chown(root / "setuid", 1234, 5678)
    (root / "setuid").chmod(0o6755)
    (root / "capable").write_bytes(b"program")
    run("setfattr", "-n", "security.capability", "-v", "0x0100000200200000000000000000000000000000", root / "capable")
    os.setxattr(root / "sub", b"trusted.secret", b"\0\xff=")
    os.setxattr(root / "sub", b"user.a=b%c", b"")
    os.setxattr(root / "link", b"trusted.of-link", b"l", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o700)
    for name, mode in (("fifo", 0o640), ("null", 0o666), ("disk", 0o660), ("socket", 0o700)):
        (root / name).chmod(mode)
    os.chown(root / "long-link", 77, 88, follow_symlinks=False)
    os.link(root / "null", root / "sub/hard-null")
    (root / "closed/inner").mkdir(parents=True)
    os.link(root / "hello.txt", root / "closed/inner/again")
    os.link(root / "long-link", root / "closed/hard-symlink", follow_symlinks=False)
    (root / "closed/inner").chmod(0)
    (root / "closed").chmod(0o500)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3777)
    with (root / "holes").open("wb") as file:
        for position in (0, 100_000, 9_000_000):
            file.seek(position)
            file.write(b"data" * 2000)
        file.truncate(30_000_000)
    for name, time_ns in (("empty", -5_000_000_000), ("sub", 4_000_000_000_000_000_000), ("fifo", 1), ("link", 7)):
        os.utime(root / name, ns=(time_ns, time_ns), follow_symlinks=False)
    image = root.with_name("image")
    assert mystfuse("mkext2", "--block-size=1024", root, image).returncode == 0
    return image


@pytest.fixture(scope="module")
def rich_mount(rich_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    options = ("-r", "--allow-other", "-o", "dev,suid")
    with mounted(rich_image, tmp_path_factory.mktemp("rich-mount") / "mount", *options) as mountpoint:
        yield mountpoint


def assert_same(left: Path, right: Path, ignore: str = "") -> None:
    """The trees are the same but for what a copy cannot keep: numbers of inodes, ctimes, sizes of directories, and
    atimes once it is read."""
    result = run(sys.executable, COMPARE, left, right, f"{COPY}{ignore}", check=False)
    # A directory's size is its file system's own.
    differences = [
        line
        for line in result.stdout.splitlines()[:-1]
        if not (": st_size:" in line and os.path.isdir(os.path.join(left, line.partition(": ")[0])))
    ]
    assert differences == []


def extract(image: Path, *arguments: str | Path) -> None:
    result = in_process("extract", image, *arguments)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert result.stderr.splitlines() == [f"mystfuse: warning: {image} is trusted by nobody but itself"]


def refused(status: int, *arguments: str | Path) -> str:
    """Run a command that must fail with this status and one line; returns that line."""
    result = in_process(*arguments)
    lines = [line for line in result.stderr.splitlines() if "warning:" not in line]
    assert (result.returncode, len(lines)) == (status, 1), result.stderr
    return lines[0]


# Extracting


def test_a_copy_is_what_a_mount_shows(rich_image: Path, rich_mount: Path, tmp_path: Path) -> None:
    extract(rich_image, "/", tmp_path / "copy")
    for name in ("empty", "sub", "link", "fifo", "hello.txt"):
        assert (tmp_path / "copy" / name).lstat().st_atime_ns == (rich_mount / name).lstat().st_atime_ns
    assert_same(rich_mount, tmp_path / "copy")
    assert os.listdir(tmp_path) == ["copy"]
    # Holes are holes, and names of one file one file.
    assert (tmp_path / "copy/holes").stat().st_blocks * 512 < 100_000
    assert (tmp_path / "copy/closed/inner/again").samefile(tmp_path / "copy/hello.txt")
    assert (tmp_path / "copy/sub/hard-null").samefile(tmp_path / "copy/null")
    run("cp", "-a", rich_mount, tmp_path / "cp")
    assert_same(tmp_path / "cp", tmp_path / "copy")


@pytest.mark.parametrize("path", ["sub", "/link", "hello.txt", "null", "closed", "./sub/../sub/deep/"])
def test_a_part_of_an_image(path: str, rich_image: Path, rich_mount: Path, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    extract(rich_image, path, tmp_path / "ours/copy")
    run("cp", "-a", rich_mount / path.strip("/"), tmp_path / "theirs/copy")
    for name in ("ours", "theirs"):
        os.utime(tmp_path / name, (0, 0))
    # Names that are not copied do not count.
    assert_same(tmp_path / "theirs", tmp_path / "ours", ",st_nlink")
    assert os.listdir(tmp_path / "ours") == ["copy"]


def test_times_have_nanoseconds(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", "-I", "256")
    with kernel_mount(image, tmp_path / "kernel", "rw") as mount:
        (mount / "directory").mkdir()
        (mount / "file").touch()
        (mount / "link").symlink_to("file")
        times = {"file": 1_600_000_000_123_456_789, "link": -1_500_000_000, "directory": 5_000_000_000_000_000_001}
        for name, time_ns in times.items():
            os.utime(mount / name, ns=(time_ns + 7, time_ns), follow_symlinks=False)
    assert in_process("extract", "--insecure", image, "/", tmp_path / "copy").returncode == 0
    for name, time_ns in times.items():
        status = (tmp_path / "copy" / name).lstat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (time_ns + 7, time_ns)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    command = ["tar", "-x", "--warning=no-timestamp", "-C", str(unpacked)]
    subprocess.run(command, input=archive(image, "--insecure"), timeout=60, check=True)
    assert {name: (unpacked / name).lstat().st_mtime_ns for name in times} == times


def test_what_the_destinations_directory_hands_down_is_not_in_the_image(
    rich_image: Path, rich_mount: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    run("setfacl", "-d", "-m", "u:4321:rwx", target)
    extract(rich_image, "sub", target / "copy")
    extract(rich_image, "empty", target / "file")
    assert_same(rich_mount / "sub", target / "copy", ",st_nlink")
    assert run("getfacl", "-cn", target / "file").stdout.split() == ["user::rw-", "group::r--", "other::r--"]


def test_an_ordinary_user_gets_what_he_may_have(
    rich_image: Path, rich_mount: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image, target = open_tmp_path / "image", open_tmp_path / "target"
    run("cp", rich_image, image)
    target.mkdir()
    os.chown(target, USER, USER)
    result = run(*ordinary_user, "extract", image, "/", target / "copy", check=False)
    assert result.returncode == 0, result.stderr
    warning = result.stderr.splitlines()[-1]
    for omitted in ("device (3)", "security.capability (1)", "trusted.secret (1)", "trusted.of-link (1)"):
        assert omitted in warning
    assert os.listdir(target) == ["copy"]
    copy = target / "copy"
    assert not (copy / "null").exists() and not (copy / "sub/hard-null").exists()
    assert stat.S_ISFIFO((copy / "fifo").stat().st_mode)
    for path in (copy, copy / "setuid", copy / "link"):
        assert path.lstat().st_uid == USER
    assert stat.S_IMODE((copy / "setuid").stat().st_mode) == 0o755
    assert stat.S_IMODE((copy / "sticky").stat().st_mode) == 0o1777
    assert stat.S_IMODE((copy / "closed").stat().st_mode) == 0o500
    assert (copy / "closed/inner/again").samefile(copy / "hello.txt")
    for path in (copy / "null", copy / "disk", copy / "sub/hard-null"):
        assert not os.path.lexists(path)
    result = run(sys.executable, COMPARE, rich_mount, copy, f"{COPY},st_uid,st_gid,st_rdev", check=False)
    expected = ("null: ", "disk: ", "sub/hard-null: ", "setuid: st_mode", "sticky: st_mode", "capable: xattrs",
                "sub: xattrs", "link: xattrs", ".: names", "sub: names")  # fmt: skip
    for line in result.stdout.splitlines()[:-1]:
        assert line.startswith(expected) or ": st_size:" in line, line


def test_the_destination_must_not_exist(rich_image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "directory", "dangling", "directory/", "."):
        assert "already exists" in refused(FAILED, "extract", rich_image, "/sub", f"{tmp_path}/{name}")
    assert "there is no directory" in refused(FAILED, "extract", rich_image, "/sub", tmp_path / "no/such")
    assert "/nope: No such file" in refused(FAILED, "extract", rich_image, "/nope", tmp_path / "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "directory", "file"]


@pytest.mark.parametrize("command", ["extract", "tar"])
def test_a_damaged_block_leaves_nothing(command: str, rich_image: Path, tmp_path: Path) -> None:
    data = bytearray(rich_image.read_bytes())
    data[data.index(b"longest name\n")] ^= 1
    image = tmp_path / "damaged"
    image.write_bytes(data)
    line = refused(INTEGRITY, command, image, "/", *([tmp_path / "copy"] if command == "extract" else []))
    assert "damaged: " in line and ": verity: data block" in line
    assert os.listdir(tmp_path) == ["damaged"]


def test_an_image_that_nobody_vouches_for(rich_image: Path, tmp_path: Path) -> None:
    wrong = "--roothash=" + "0" * 64
    for command in (("ls",), ("tar",), ("cat", "/empty"), ("extract", "/", str(tmp_path / "copy"))):
        refused(NOT_TRUSTED, command[0], wrong, rich_image, *command[1:])
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(rich_image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk)
    try:
        assert "No space left" in refused(FAILED, "extract", rich_image, "/", disk / "copy")
        assert os.listdir(disk) == []
    finally:
        run("umount", disk)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_extraction_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for index in range(6):
        with (source / f"file-{index}").open("wb") as file:
            file.write(os.urandom(20 << 20))
    image = make_image(tmp_path / "image", size="140M", tree=source)
    run("rm", "-r", source)
    target = tmp_path / "target"
    target.mkdir()
    command = [sys.executable, "-m", "mystfuse", "extract", "--insecure", image, "/", target / "copy"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in target.glob(".copy.*.tmp/*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    assert not (target / "copy").exists()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.splitlines()[-1]) == (FAILED, "mystfuse: interrupted")
    assert os.listdir(target) == []


# Hostile images


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory that a hostile image would like to write into; what is in it must stay as it is."""
    path = tmp_path / "victim"
    path.mkdir()
    (path / "passwd").write_text("root")
    return path


@pytest.fixture
def hostile(tmp_path: Path, victim: Path) -> Editor:
    """A file system to be broken: directories d1 (with dfile), d2 (with inner), links to the victim, files."""
    source = tmp_path / "source"
    (source / "d1").mkdir(parents=True)
    (source / "d2/inner").mkdir(parents=True)
    (source / "d1/dfile").write_text("hostile")
    (source / "d2/inner/passwd").write_text("hostile")
    (source / "d2/passwd").write_text("hostile")
    (source / "link1").symlink_to(victim)
    (source / "link2").symlink_to("../victim")
    (source / "file1").write_text("hostile")
    (source / "file2").write_text("other")
    run("chattr", "-R", "-i", source, check=False)
    return Editor(make_image(tmp_path / "plain", size="1M", tree=source).read_bytes())


def root_entries(editor: Editor) -> dict[bytes, int]:
    names = (b"d1", b"d2", b"link1", b"link2", b"file1", b"file2")
    return {name: editor.find(ROOT, name)[1] for name in names}


def with_root(editor: Editor, *entries: tuple[int, bytes]) -> None:
    """Replace what the root directory holds."""
    editor.write_entries(editor.block(ROOT), [(ROOT, b"."), (ROOT, b".."), *entries])


def save(editor: Editor, tmp_path: Path) -> Path:
    image = tmp_path / "image"
    image.write_bytes(editor.data)
    return image


def assert_confined(tmp_path: Path, victim: Path, *more: str) -> None:
    """Nothing has changed but what is in ``more``."""
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"passwd": "root"}
    assert sorted(os.listdir(tmp_path)) == sorted(["image", "plain", "source", "victim", *more])


@pytest.mark.parametrize("order", ["link first", "directory first", "two links", "two files", "link and file"])
def test_a_name_twice(order: str, hostile: Editor, tmp_path: Path, victim: Path) -> None:
    ino = root_entries(hostile)
    first, second = {
        "link first": (b"link1", b"d2"),
        "directory first": (b"d2", b"link1"),
        "two links": (b"link1", b"link2"),
        "two files": (b"file1", b"file2"),
        "link and file": (b"link2", b"file1"),
    }[order]
    with_root(hostile, (ino[first], b"same"), (ino[b"d1"], b"d1"), (ino[second], b"same"))
    image = save(hostile, tmp_path)
    assert "twice" in refused(FORMAT, "extract", "--insecure", image, "/", tmp_path / "copy")
    assert_confined(tmp_path, victim)
    assert "twice" in refused(FORMAT, "tar", "--insecure", image)


@pytest.mark.parametrize("cycle", ["itself", "above", "root", "sibling"])
def test_directories_in_two_places(cycle: str, hostile: Editor, tmp_path: Path, victim: Path) -> None:
    ino = root_entries(hostile)
    position, inner = hostile.find(ino[b"d2"], b"inner")
    child = {"itself": inner, "above": ino[b"d2"], "root": ROOT, "sibling": ino[b"d1"]}[cycle]
    if cycle == "itself":
        position, _ = hostile.find(inner, b"passwd")
    hostile.put("<I", position, child)
    image = save(hostile, tmp_path)
    for command in (("extract", "--insecure", image, "/", tmp_path / "copy"), ("tar", "--insecure", image)):
        line = refused(FORMAT, *command)
        assert "more than one place" in line or "root directory" in line
    refused(FORMAT, "ls", "-R", "--insecure", image)
    assert_confined(tmp_path, victim)


@pytest.mark.parametrize(
    "name", [b"..", b".", b"../victim/passwd", b"/etc/passwd", b"a/b", b"nul\0nul", b"../victim/new"]
)
def test_names_that_cannot_be(name: bytes, hostile: Editor, tmp_path: Path, victim: Path) -> None:
    ino = root_entries(hostile)
    with_root(hostile, (ino[b"file1"], b"good"), (ino[b"d2"], name), (ino[b"file2"], name), (ino[b"link1"], b"link"))
    image = save(hostile, tmp_path)
    result = in_process("extract", "--insecure", image, "/", tmp_path / "copy")
    assert result.returncode == 0
    assert "impossible name" in result.stderr
    assert sorted(os.listdir(tmp_path / "copy")) == ["good", "link"]
    assert_confined(tmp_path, victim, "copy")


def test_links_are_only_copied(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    image = save(hostile, tmp_path)
    assert in_process("extract", "--insecure", image, "/", tmp_path / "copy").returncode == 0
    assert os.readlink(tmp_path / "copy/link1") == str(victim)
    # Neither are they followed out of the image.
    for path in ("link1/passwd", "link2/passwd"):
        refused(FAILED, "cat", "--insecure", image, path)
        refused(FAILED, "extract", "--insecure", image, path, tmp_path / "other")
    assert_confined(tmp_path, victim, "copy")


def test_a_target_with_nul(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    link = root_entries(hostile)[b"link2"]
    hostile.put("4s", hostile.pointer(link, 0), b"a\0b\n")
    image = save(hostile, tmp_path)
    assert "NUL" in refused(FORMAT, "extract", "--insecure", image, "/", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_a_file_that_is_the_directory_of_another(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    """A hard link to a directory, counted as one."""
    ino = root_entries(hostile)
    with_root(hostile, (ino[b"d1"], b"one"), (ino[b"d1"], b"two"))
    hostile.put("<H", hostile.inode(ino[b"d1"]) + 26, 3)
    image = save(hostile, tmp_path)
    assert "more than one place" in refused(FORMAT, "extract", "--insecure", image, "/", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_blocks_in_two_files(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    """Every pointer of a large map leads to the same block: the copy would have gigabytes."""
    file = root_entries(hostile)[b"file1"]
    block = hostile.get("<I", hostile.pointer(file, 0))
    spare = hostile.get("<I", hostile.pointer(root_entries(hostile)[b"file2"], 0))
    hostile.data[spare * 1024 : spare * 1024 + 1024] = spare.to_bytes(4, "little") * 256
    for index in range(12):
        hostile.put("<I", hostile.pointer(file, index), block)
    for index in (12, 13, 14):
        hostile.put("<I", hostile.pointer(file, index), spare)
    hostile.put("<I", hostile.inode(file) + 4, 0xF0000000)
    hostile.put("<I", hostile.inode(file) + 108, 3)
    image = save(hostile, tmp_path)
    assert "more blocks" in refused(FORMAT, "extract", "--insecure", image, "/file1", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_tables_in_many_places(hostile: Editor, tmp_path: Path, victim: Path) -> None:
    """A map of 65536 tables, all of them the same empty one: a hole that takes long to look through."""
    ino = root_entries(hostile)
    file = ino[b"file1"]
    spares = [hostile.find(ino[b"d1"], b"dfile")[1], hostile.find(ino[b"d2"], b"passwd")[1], ino[b"file2"]]
    top, middle, empty = (hostile.get("<I", hostile.pointer(spare, 0)) for spare in spares)
    for table, child in ((top, middle), (middle, empty), (empty, 0)):
        hostile.data[table * 1024 : table * 1024 + 1024] = child.to_bytes(4, "little") * 256
    hostile.put("<I", hostile.pointer(file, 14), top)
    hostile.put("<I", hostile.inode(file) + 4, 0xF0000000)
    hostile.put("<I", hostile.inode(file) + 108, 3)
    image = save(hostile, tmp_path)
    assert "more tables" in refused(FORMAT, "extract", "--insecure", image, "/file1", tmp_path / "copy")
    assert_confined(tmp_path, victim)


def test_an_absurd_size_stays_a_hole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("begin")
    editor = Editor(make_image(tmp_path / "plain", "-b", "4096", size="1M", tree=source).read_bytes())
    _, file = editor.find(ROOT, b"file")
    # 2 TiB, and the pointers of three levels lead to empty tables.
    editor.put("<I", editor.inode(file) + 4, 5)
    editor.put("<I", editor.inode(file) + 108, 512)
    image = save(editor, tmp_path)
    started = time.monotonic()
    assert in_process("extract", "--insecure", image, "/file", tmp_path / "copy").returncode == 0
    assert time.monotonic() - started < 10
    status = (tmp_path / "copy").stat()
    assert status.st_size == (2 << 40) + 5
    assert status.st_blocks <= 16
    with (tmp_path / "copy").open("rb") as copy:
        assert copy.read(8) == b"begin\0\0\0"
    editor.put("<I", editor.inode(file) + 108, 0x7FFFFFFF)
    (tmp_path / "copy").unlink()
    refused(FORMAT, "extract", "--insecure", save(editor, tmp_path), "/file", tmp_path / "copy")


def test_directories_deeper_than_files_may_be_open(tmp_path: Path) -> None:
    source = tmp_path / "source"
    path = source
    for _ in range(150):
        path = path / "d"
    path.mkdir(parents=True)
    image = make_image(tmp_path / "image", size="2M", tree=source)
    command = (sys.executable, "-m", "mystfuse", "extract", "--insecure", image, "/", tmp_path / "copy")
    result = run("prlimit", "--nofile=50:100", *command, check=False)
    assert result.returncode == FAILED
    assert "directories lie in each other, and no more files may be open" in result.stderr.splitlines()[-1]
    assert sorted(os.listdir(tmp_path)) == ["image", "source"]
    run("prlimit", "--nofile=50:400", *command)
    assert (tmp_path / "copy").joinpath(*["d"] * 150).is_dir()


def test_devices_of_a_hostile_image_are_not_an_ordinary_users(
    tmp_path: Path, open_tmp_path: Path, ordinary_user: list[str]
) -> None:
    image = make_image(open_tmp_path / "image")
    debugfs(image, "mknod sda b 8 0", "sif sda mode 060666")
    image.chmod(0o644)
    target = open_tmp_path / "target"
    target.mkdir()
    os.chown(target, USER, USER)
    result = run(*ordinary_user, "extract", "--insecure", image, "/sda", target / "disk", check=False)
    assert result.returncode == FAILED
    assert result.stderr.splitlines()[-1] == f"mystfuse: {target}/disk: Operation not permitted"
    assert os.listdir(target) == []


# Archives


def archive(image: Path, *arguments: str) -> bytes:
    command = [sys.executable, "-m", "mystfuse", "tar", str(image), *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout


def test_an_archive_unpacks_to_what_a_mount_shows(rich_image: Path, rich_mount: Path, tmp_path: Path) -> None:
    data = archive(rich_image)
    assert len(data) % 10240 == 0
    copy = tmp_path / "copy"
    copy.mkdir()
    unpack = ["tar", "-x", "--xattrs", "--xattrs-include=*", "--acls", "-p", "--numeric-owner",
              "--warning=no-timestamp", "-C", str(copy)]  # fmt: skip
    result = subprocess.run(unpack, input=data, capture_output=True, timeout=60, check=True)
    assert result.stderr == b""
    os.mknod(copy / "socket", stat.S_IFSOCK | 0o700)
    times = rich_mount.lstat()
    os.utime(copy / "socket", ns=((rich_mount / "socket").lstat().st_mtime_ns,) * 2)
    os.utime(copy, ns=(times.st_mtime_ns,) * 2)
    assert_same(rich_mount, copy)
    assert (copy / "closed/inner/again").samefile(copy / "hello.txt")


def test_an_archive_is_the_same_every_time_and_sorted(rich_image: Path, rich_mount: Path) -> None:
    data = archive(rich_image)
    assert hashlib.sha256(archive(rich_image, "/")).digest() == hashlib.sha256(data).digest()
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        names = members.getnames()
        assert members.getmember("./sub").pax_headers["SCHILY.xattr.user.a%3Db%25c"] == ""
        assert members.getmember("./empty").mtime == -5
    assert names[0] == "." and len(names) == len(set(names))
    assert [name for name in names if name.count("/") == 1] == sorted(name for name in names if name.count("/") == 1)
    assert "./sub/deep/data.bin" in names and "./" + "n" * 255 in names
    with tarfile.open(fileobj=io.BytesIO(archive(rich_image, "sub/deep/data.bin"))) as members:
        assert members.getnames() == ["data.bin"]
        content = members.extractfile("data.bin")
        assert content is not None and content.read() == (rich_mount / "sub/deep/data.bin").read_bytes()


def test_an_archive_says_what_is_not_in_it(rich_image: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mystfuse", "tar", rich_image], capture_output=True, timeout=60, check=True
    )
    assert result.stderr.splitlines()[-1] == b"mystfuse: warning: not in the archive: socket (1)"


def test_an_archive_does_not_go_to_a_terminal(rich_image: Path) -> None:
    master, slave = pty.openpty()
    try:
        command = [sys.executable, "-m", "mystfuse", "tar", rich_image]
        result = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(master)
        os.close(slave)
    assert result.returncode == USAGE
    assert b"terminal" in result.stderr


# Looking


def test_cat_writes_files_one_after_the_other(rich_image: Path, rich_mount: Path) -> None:
    command = [sys.executable, "-m", "mystfuse", "cat", rich_image, "/link", "hello.txt", "holes"]
    said = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    assert said == b"".join((rich_mount / name).read_bytes() for name in ("sub/deep/data.bin", "hello.txt", "holes"))
    assert "/sub: Is a directory" in refused(FAILED, "cat", rich_image, "/sub")
    assert "nope: No such file" in refused(FAILED, "cat", rich_image, "nope")


def test_cat_ends_when_its_reader_does(rich_image: Path) -> None:
    command = f'"{sys.executable}" -m mystfuse cat "{rich_image}" holes holes 2>&1 >&3 3>&- | cat >&2'
    result = run("bash", "-c", f"{{ {command}; }} 3>&1 | head -c 4; true")
    assert result.stdout == "data"
    assert result.stderr.splitlines() == [f"mystfuse: warning: {rich_image} is trusted by nobody but itself"]


def test_cat_can_be_ended_while_nobody_reads(rich_image: Path) -> None:
    command = [sys.executable, "-m", "mystfuse", "cat", rich_image, "holes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(4) == b"data"
    time.sleep(0.3)
    process.terminate()
    assert process.wait(timeout=10) == FAILED
    process.stdout.close()


def test_ls_shows_what_ls_shows(rich_image: Path, rich_mount: Path) -> None:
    environment = {"TZ": "UTC", "LC_ALL": "C"}
    for path in ("/", "/sub", "/sticky"):
        ours = in_process("ls", "-la", rich_image, path)
        assert ours.returncode == 0
        style = "--time-style=+%Y-%m-%dT%H:%M:%SZ"
        listed = run("ls", "-lAn", "-N", style, rich_mount / path[1:], env=environment).stdout.splitlines()[1:]
        # ls marks who has an ACL, and leaves bytes that are no characters as they are.
        expected = [line[:10] + " " + line[11:].lstrip() for line in listed]
        expected = [" ".join(line.split()).replace("\udce9", "\\udce9") for line in expected]
        assert [" ".join(line.split()) for line in ours.stdout.splitlines()] == expected
    names = in_process("ls", rich_image).stdout.splitlines()
    assert names == sorted(names) and "hello.txt" in names
    assert in_process("ls", rich_image, "/hello.txt").stdout == "/hello.txt\n"
    assert in_process("ls", "-l", rich_image, "/link").stdout.endswith(" /link -> sub/deep/data.bin\n")


def test_ls_goes_down_and_hides(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "b/c").mkdir(parents=True)
    for name in (".hidden", "b/x\x1b[31m\n", "a"):
        (source / name).touch()
    image = make_image(tmp_path / "image", tree=source)
    result = in_process("ls", "-R", "--insecure", image)
    assert result.stdout == "/:\na\nb\nlost+found\n\n/b:\nc\nx\\x1b[31m\\n\n\n/b/c:\n\n/lost+found:\n"
    assert ".hidden" in in_process("ls", "-a", "--insecure", image).stdout.splitlines()


def test_ls_as_json(rich_image: Path, rich_mount: Path) -> None:
    documents = json.loads(in_process("ls", "-Ra", "--json", rich_image).stdout)
    found = {document["path"]: document for document in documents}
    paths = ["/" + str(path.relative_to(rich_mount)) for path in rich_mount.rglob("*")]
    assert sorted(found, key=os.fsencode) == sorted(paths, key=os.fsencode)
    assert found["/disk"] | {"inode": 0, "mtime": "", "mtime_ns": 0} == {
        "path": "/disk", "inode": 0, "type": "block device", "mode": "0660", "links": 1, "uid": 0, "gid": 0, "size": 0,
        "mtime": "", "mtime_ns": 0, "major": 259, "minor": 70000,
    }  # fmt: skip
    assert (found["/sub"]["mtime_ns"], found["/sub"]["mtime"]) == (4_000_000_000_000_000_000, "2096-10-02T07:06:40Z")
    assert found["/link"]["target"] == "sub/deep/data.bin"
    assert json.loads(in_process("ls", "--json", rich_image, "/sticky").stdout) == []


def test_ls_lists_names_whose_inodes_are_broken(hostile: Editor, tmp_path: Path) -> None:
    ino = root_entries(hostile)
    hostile.put("<H", hostile.inode(ino[b"file2"]), 0)
    image = save(hostile, tmp_path)
    result = in_process("ls", "-l", "--insecure", image)
    assert result.returncode == FORMAT
    assert "?????????? ? ? ? ? ? file2" in [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"/file2: inode {ino[b'file2']}" in result.stderr
