"""mkext2: what it makes is accepted by everybody else's tools, equals its source, and never appears half-done."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mystfuse.errors import MystfuseError
from mystfuse.ext2.constants import SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.ext2.superblock import Superblock
from mystfuse.system.atomic_file import AtomicFile
from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, SBIN, USER, mystfuse, run
from tests.support.mounts import mounted

MIB = 1 << 20
EPOCH = 1_600_000_000


def fssig(image: Path) -> dict[str, str]:
    """The lines of ``mystfuse fssig``."""
    result = in_process("fssig", image)
    assert result.returncode == 0, result.stderr
    return dict(line.split("=", 1) for line in result.stdout.splitlines())


def make(directory: Path, image: Path, *options: str | Path, **kwargs: Any) -> dict[str, str]:
    """Run mkext2, which must succeed in silence, and return the image's fssig."""
    arguments = ("mkext2", *options, directory, image)
    result = mystfuse(*arguments, **kwargs) if kwargs else in_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""
    return fssig(image)


def assert_refused(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """The command failed with this status and one line on stderr that has these words."""
    assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
    assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


@contextlib.contextmanager
def loop_mounted(image: Path, mountpoint: Path) -> Iterator[Path]:
    """The kernel's own mount of an image."""
    mountpoint.mkdir(exist_ok=True)
    run("mount", "-t", "ext2", "-o", "loop,ro,noatime", image, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)


def contents(root: Path, with_owners: bool = True) -> dict[str, dict[str, object]]:
    """Everything below and including ``root`` that an image keeps, by path; without lost+found."""
    found: dict[str, dict[str, object]] = {}
    links: dict[tuple[int, int], list[str]] = {}
    paths = [os.fsencode(root)]
    for directory, subdirectories, files in os.walk(os.fsencode(root)):
        if directory == paths[0] and b"lost+found" in subdirectories:
            subdirectories.remove(b"lost+found")
        paths += [os.path.join(directory, name) for name in subdirectories + files]
    for path in paths:
        status = os.lstat(path)
        name = os.fsdecode(os.path.relpath(path, paths[0]))
        entry: dict[str, object] = {"mode": oct(status.st_mode), "mtime": int(status.st_mtime // 1)}
        if with_owners:
            entry |= {"uid": status.st_uid, "gid": status.st_gid}
            entry["xattrs"] = {key: os.getxattr(path, key, follow_symlinks=False)
                               for key in os.listxattr(path, follow_symlinks=False)}  # fmt: skip
        if not stat.S_ISDIR(status.st_mode):
            entry["nlink"] = status.st_nlink
            links.setdefault((status.st_dev, status.st_ino), []).append(name)
        if stat.S_ISREG(status.st_mode):
            entry["size"] = status.st_size
            entry["sha256"] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            entry["target"] = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            entry["rdev"] = status.st_rdev
        found[name] = entry
    for names in links.values():
        for name in names:
            found[name]["same file as"] = sorted(names)
    return found


def assert_clean(image: Path) -> None:
    result = run("e2fsck", "-fn", image, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def assert_tree_accepted(image: Path, fields: dict[str, str]) -> None:
    run("veritysetup", "verify", image, image, fields["root_hash"], f"--hash-offset={fields['hash_offset']}")


@pytest.fixture(scope="module")
def rich_tree(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_tree`` and what else root can put into a directory; the root directory has attributes of its own."""
    root = tmp_path_factory.mktemp("rich") / "tree"
    run("cp", "-a", small_tree, root)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "large device", stat.S_IFBLK | 0o660, os.makedev(300, 70_000))
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    (root / "setuid").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "setuid", 100_000, 70_000)
    os.chmod(root / "setuid", 0o6755)
    (root / "sticky").mkdir()
    os.chmod(root / "sticky", 0o1777)
    os.chown(root / "link", 7, 8, follow_symlinks=False)
    os.setxattr(root / "fifo", "trusted.of-a-fifo", b"1")
    os.setxattr(root / "setuid", "user.long", b"v" * 250)
    os.setxattr(root / "setuid", "user.binary", bytes(range(256)))
    os.setxattr(root / "setuid", "user.empty", b"")
    os.setxattr(root / "sub", "security.made-up", b"2")
    (root / "old").write_text("before 1970")
    os.utime(root / "old", (-1e8, -1e8))
    os.utime(root / "link", (1_234_567_890, 1_234_567_890), follow_symlinks=False)
    names = root / "names"
    names.mkdir()
    for number in range(300):
        (names / f"{number:03} {'x' * (number % 200)}").write_text(str(number))
    (names / "line\nbreak").write_text("odd")
    (names / "-rf").write_text("odd")
    run("setfacl", "-m", "u:1234:rwx,g:4321:r,m:rwx", root)
    os.setxattr(root, "user.of-the-root", b"3")
    os.chown(root, 11, 12)
    os.chmod(root, 0o2750)
    os.utime(root, (1_400_000_000, 1_400_000_000))
    return root


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 files of a few bytes: 0.5 MB as du counts, 20 MB in blocks of 1 KiB, and 20,000 inodes."""
    root = tmp_path_factory.mktemp("tiny") / "tree"
    for directory in range(100):
        (root / str(directory)).mkdir(parents=True)
        for number in range(200):
            with (root / str(directory) / str(number)).open("w") as file:
                file.write(f"{directory} {number}\n")
    return root


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 2 MiB."""
    mountpoint = tmp_path_factory.mktemp("full")
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)


# The judges


@pytest.mark.parametrize(
    "options", [(), ("--size=80M",), ("--block-size=4096",), ("--salt=",), ("--salt=" + "ab" * 256,)]
)
def test_the_judges_accept_the_image(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(small_tree, image, *options)
    assert_tree_accepted(image, fields)
    assert_clean(image)
    assert in_process("verify", f"--roothash={fields['root_hash']}", image).returncode == 0


def test_content_equals_the_source(rich_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(rich_tree, image)
    assert_clean(image)
    assert_tree_accepted(image, fields)
    expected = contents(rich_tree)
    assert len(expected) > 320
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        assert contents(kernel) == expected
        for name in (".", "sub/deep", "sub/deep/data.bin"):
            assert run("getfacl", "-pn", name, cwd=kernel).stdout == run("getfacl", "-pn", name, cwd=rich_tree).stdout
    with mounted(image, tmp_path / "ours") as ours:
        assert contents(ours) == expected


def test_times_after_2038_are_kept(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "future").touch()
    os.utime(source / "future", (2_300_000_000, 2_300_000_000))
    make(source, image)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        assert int((kernel / "future").stat().st_mtime) == 2_300_000_000


@pytest.mark.parametrize("block_size", ["1024", "2k", "4K", "8192", "16K", "32K", "64K"])
def test_every_block_size(block_size: str, small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(small_tree, image, f"--block-size={block_size}")
    size = int(block_size.rstrip("kK")) * (1024 if block_size[-1] in "kK" else 1)
    assert f"\nBlock size:               {size}\n" in run("dumpe2fs", "-h", image).stdout
    assert int(fields["hash_offset"]) % max(size, 4096) == 0
    assert_clean(image)
    assert_tree_accepted(image, fields)
    expected = contents(small_tree)
    if size <= 4096:
        with loop_mounted(image, tmp_path / "kernel") as kernel:
            assert contents(kernel) == expected
    else:
        dumped = tmp_path / "dumped"
        dumped.mkdir()
        run("debugfs", "-R", f'rdump / "{dumped}"', image)
        for name in ("hello.txt", "sub/deep/data.bin", "sparse", "n" * 255, os.fsdecode(b"latin-\xe9")):
            assert (dumped / name).read_bytes() == (small_tree / name).read_bytes(), name
        assert os.readlink(dumped / "long-link") == os.readlink(small_tree / "long-link")
    with mounted(image, tmp_path / "ours") as ours:
        assert contents(ours) == expected


@pytest.mark.parametrize("options", [("--size=80M",), ("--block-size=4096",), ("--salt=",)])
def test_hash_tree_is_byte_identical_to_veritysetups(
    options: tuple[str, ...], small_tree: Path, tmp_path: Path
) -> None:
    image, data, tree = tmp_path / "image", tmp_path / "data", tmp_path / "tree"
    fields = make(small_tree, image, *options)
    offset = int(fields["hash_offset"])
    shutil.copyfile(image, data)
    os.truncate(data, offset)
    with image.open("rb") as file:
        file.seek(offset)
        ours = file.read()[:-4096]
    salt_size = int.from_bytes(ours[80:82], "little")
    salt = ours[88 : 88 + salt_size].hex() or "-"
    uuid = run("blkid", "-p", "-s", "UUID", "-o", "value", "-O", str(offset), image, check=False).stdout.strip()
    said = run("veritysetup", "format", f"--salt={salt}", f"--uuid={uuid}", data, tree).stdout
    assert tree.read_bytes() == ours
    assert f"Root hash:      \t{fields['root_hash']}" in said


def test_default_salt_is_32_random_bytes_and_the_identities_differ(small_tree: Path, tmp_path: Path) -> None:
    seen = []
    for name in ("one", "two"):
        fields = make(small_tree, tmp_path / name)
        dump = run("veritysetup", "dump", tmp_path / name, f"--hash-offset={fields['hash_offset']}").stdout
        salt = re.search(r"Salt:\s+([0-9a-f]+)", dump)
        tree_uuid = re.search(r"UUID:\s+(\S+)", dump)
        uuid = re.search(r"Filesystem UUID:\s+(\S+)", run("dumpe2fs", "-h", tmp_path / name).stdout)
        assert salt and tree_uuid and uuid
        assert len(salt[1]) == 64
        seen.append({salt[1], tree_uuid[1], uuid[1]})
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(("bits", "exponent"), [(2048, 65537), (3072, 3), (4096, 2**32 + 15)])
def test_openssl_accepts_the_signature(
    bits: int, exponent: int, small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys(f"mkext2-{bits}-{exponent}", bits, exponent)
    image, root, signature = tmp_path / "image", tmp_path / "root", tmp_path / "signature"
    fields = make(small_tree, image, f"--sign={public}:{private}")
    assert int(fields["signature_size"]) == bits // 8
    root.write_bytes(bytes.fromhex(fields["root_hash"]))
    signature.write_bytes(bytes.fromhex(fields["signature"]))
    check = ("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-pkeyopt", "digest:sha256",
             "-in", root, "-sigfile", signature)  # fmt: skip
    run(*check)
    modulus = bytes.fromhex(run("openssl", "rsa", "-pubin", "-in", public, "-noout", "-modulus").stdout[8:].strip())
    assert fields["signer"] == hashlib.sha256(modulus).hexdigest()
    root.write_bytes(bytes(32))
    assert run(*check, check=False).returncode != 0


# Sizes


def rule(directory: Path) -> int:
    """The original's: du -b rounded up to 1 MiB, times 1.5, at least 8 MiB."""
    # As du counted until coreutils 9.2, which leaves out directories.
    used = sum(path.lstat().st_size for path in (directory, *directory.rglob("*")))
    return max(-(-used // MIB) * MIB * 3 // 2, 8 * MIB)


@pytest.mark.parametrize("size", [0, 10_000_000, 7 * MIB - 4096, 7 * MIB - 4095])
def test_size_is_by_the_originals_rule(size: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if size:
        (source / "file").write_bytes(os.urandom(1000) * (size // 1000) + bytes(size % 1000))
    fields = make(source, tmp_path / "image")
    assert int(fields["hash_offset"]) == rule(source)
    assert_clean(tmp_path / "image")


def test_size_option_raises_but_never_lowers(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(9 * MIB))
    least = rule(source)
    assert least > 8 * MIB
    for given, expected in (("8M", least), ("8388608", least), ("20971520", 20 * MIB), ("100m", 100 * MIB)):
        assert int(make(source, image, f"--size={given}", "--force")["hash_offset"]) == expected, given
    odd = int(make(source, image, "--size=50000001", "--force")["hash_offset"])
    assert odd % 4096 == 0
    assert 50_000_001 <= odd < 50_000_001 + MIB
    assert_clean(image)


@pytest.mark.parametrize("given", ["8388607", "1", "4k", "7M", "-1", "8X", "", "1e9", "9999999999999999999"])
def test_sizes_that_cannot_be_are_refused(given: str, small_tree: Path, tmp_path: Path) -> None:
    assert_refused(in_process("mkext2", f"--size={given}", small_tree, tmp_path / "image"), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["512", "3000", "128K", "0", "x"])
def test_block_sizes_that_cannot_be_are_refused(given: str, small_tree: Path, tmp_path: Path) -> None:
    assert_refused(in_process("mkext2", f"--block-size={given}", small_tree, tmp_path / "image"), 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [("--free=30M",), ("--free=30M", "--block-size=4096"), ("--free=30M", "--size=20M")]
)
def test_free_leaves_that_room(options: tuple[str, ...], small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(small_tree, image, *options)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        status = os.statvfs(kernel)
        assert 30 * MIB <= status.f_bavail * status.f_frsize < 40 * MIB


def inodes_of(image: Path) -> int:
    with image.open("rb") as file:
        return Superblock.parse(os.pread(file.fileno(), SUPERBLOCK_SIZE, SUPERBLOCK_OFFSET)).s_inodes_count


def inodes_by_default(size: int, environment: dict[str, str]) -> int:
    """How many inodes mke2fs makes when it is left to it."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(size)
        run("mke2fs", "-q", "-F", "-t", "ext2", file.name, f"{size >> 10}k", env=environment)
        return inodes_of(Path(file.name))


@pytest.mark.parametrize("free", ["0", "300M", "400M", "480M", "1G"])
def test_there_are_as_many_inodes_as_mke2fs_gives(free: str, small_tree: Path, tmp_path: Path) -> None:
    """Also where a first size was not enough: all of the free space must be of use."""
    image = tmp_path / "image"
    size = int(make(small_tree, image, f"--free={free}")["hash_offset"])
    assert inodes_of(image) >= inodes_by_default(size, dict(os.environ)) > size // 20000
    assert_clean(image)


@pytest.mark.parametrize("ratio", [1024, 1 << 20])
def test_another_mke2fs_conf_counts_and_everything_fits(ratio: int, tiny_files: Path, tmp_path: Path) -> None:
    """With more inodes than ours would be, and with fewer than the directory needs."""
    image, configuration = tmp_path / "image", tmp_path / "mke2fs.conf"
    configuration.write_text(
        f"[defaults]\nbase_features = filetype\nblocksize = 1024\ninode_size = 256\ninode_ratio = {ratio}\n"
    )
    environment = {**os.environ, "MKE2FS_CONFIG": str(configuration)}
    size = int(make(tiny_files, image, "--free=60M", env=environment)["hash_offset"])
    assert inodes_of(image) >= max(inodes_by_default(size, environment), 20_000)
    assert_clean(image)


@pytest.mark.parametrize("options", [(), ("--block-size=4096", "--free=5M")])
def test_many_tiny_files_are_made_to_fit(options: tuple[str, ...], tiny_files: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(tiny_files, image, *options)
    assert rule(tiny_files) == 8 * MIB < int(fields["hash_offset"]) < 140 * MIB
    assert_clean(image)
    with loop_mounted(image, tmp_path / "kernel") as kernel:
        found = {path.relative_to(kernel): path.read_bytes() for path in kernel.glob("*/*")}
        assert found == {path.relative_to(tiny_files): path.read_bytes() for path in tiny_files.glob("*/*")}
        if "--free=5M" in options:
            status = os.statvfs(kernel)
            assert status.f_bavail * status.f_frsize >= 5 * MIB


def test_a_full_directory_of_small_blocks_is_grown_not_failed(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    for number in range(1500):
        (source / f"{number}").write_bytes(b"x" * 200)
    fields = make(source, image, "--block-size=65536")
    assert int(fields["hash_offset"]) > 1500 * 65536
    assert_clean(image)


def test_a_large_sparse_size_stays_sparse(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    fields = make(small_tree, image, "--size=2G")
    assert int(fields["hash_offset"]) == 2 << 30
    assert image.stat().st_blocks * 512 < 60 * MIB
    assert_clean(image)


# Options


def test_uuid_and_salt_are_taken(small_tree: Path, tmp_path: Path) -> None:
    image, uuid = tmp_path / "image", "01234567-89ab-4cde-8f01-23456789abcd"
    for salt, shown in (("00FF" * 8, "00ff" * 8), ("", "-"), ("-", "-"), ("ab", "ab"), ("7c" * 256, "7c" * 256)):
        fields = make(small_tree, image, f"--uuid={uuid}", f"--salt={salt}", "--force")
        assert f"Filesystem UUID:          {uuid}" in run("dumpe2fs", "-h", image).stdout
        dump = run("veritysetup", "dump", image, f"--hash-offset={fields['hash_offset']}").stdout
        assert re.search(r"Salt:\s+(\S+)", dump)[1] == shown  # type: ignore[index]
        assert_tree_accepted(image, fields)


@pytest.mark.parametrize(
    "option",
    ["--salt=abc", "--salt=xy", "--salt=" + "00" * 257, "--salt=0 0", "--uuid=1234", "--uuid=", "--uuid=clear",
     "--sign=onlyone", "--sign=:", "--free=-1", "--nonsense"],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(option: str, small_tree: Path, tmp_path: Path) -> None:
    assert_refused(in_process("mkext2", option, small_tree, tmp_path / "image"), 2)
    assert not list(tmp_path.iterdir())


def test_keys_that_cannot_sign_are_refused(
    small_tree: Path, tmp_path: Path, make_keys: Callable[..., tuple[Path, Path]]
) -> None:
    public, private = make_keys("mkext2-right", 2048, 65537)
    other_public, _ = make_keys("mkext2-other", 2048, 65537)
    small_public, small_private = make_keys("mkext2-small", 1024, 65537)
    keys, target = tmp_path / "keys", tmp_path / "target"
    keys.mkdir()
    target.mkdir()
    ec_private, ec_public, locked, garbage = (keys / name for name in ("ec", "ec.pub", "locked", "garbage"))
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", ec_private)
    run("openssl", "ec", "-in", ec_private, "-pubout", "-out", ec_public)
    run("openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", private, "-out", locked)
    garbage.write_bytes(os.urandom(2000))
    for pair, word in (
        (f"{private}:{public}", "public key"),
        (f"{other_public}:{private}", "not the public key of"),
        (f"{public}:{keys}/missing", "No such file"),
        (f"{keys}/missing:{private}", "No such file"),
        (f"{keys}:{private}", "directory"),
        (f"{ec_public}:{ec_private}", "not an RSA key"),
        (f"{public}:{ec_private}", "not an RSA key"),
        (f"{public}:{locked}", "encrypted"),
        (f"{public}:{garbage}", "not a PEM"),
        (f"{garbage}:{private}", "not a PEM"),
        (f"{public}:/dev/zero", "a device, not a regular file"),
        (f"{small_public}:{small_private}", "1024 bits"),
    ):
        assert_refused(in_process("mkext2", f"--sign={pair}", small_tree, target / "image"), 2, word)
        assert not list(target.iterdir()), pair


def test_trace_shows_the_command(small_tree: Path, tmp_path: Path) -> None:
    result = mystfuse("mkext2", "--trace", small_tree, tmp_path / "image")
    assert result.returncode == 0
    assert re.match(r"\+ \S*mke2fs .*-t ext2.* -d " + re.escape(str(small_tree)), result.stderr)


def test_odd_and_relative_paths(small_tree: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd \xff 'name\"\n")
    odd.mkdir()
    run("cp", "-a", small_tree, odd / "-d")
    for directory, image in (("./-d", "-image"), ("-d/", "second image")):
        assert mystfuse("mkext2", "--", directory, image, cwd=odd).returncode == 0
        assert_clean(odd / image)
    assert_refused(mystfuse("mkext2", "--force", "./-d", "..", cwd=odd), 1, "is a directory")
    assert_refused(mystfuse("mkext2", "./-d", "-image", cwd=odd), 2)
    assert_refused(mystfuse("mkext2", "./-d", odd / "-image"), 2, "no such directory")
    os.symlink(odd / "-d", tmp_path / "to-directory")
    with loop_mounted(odd / "second image", tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(small_tree)
    make(tmp_path / "to-directory", tmp_path / "image")
    with loop_mounted(tmp_path / "image", tmp_path / "kernel") as kernel:
        assert contents(kernel) == contents(small_tree)


# The target


def test_an_existing_target_is_kept_unless_forced(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_text("precious")
    assert_refused(mystfuse("mkext2", small_tree, image), 1, "already exists", "--force")
    assert image.read_text() == "precious"
    for failing in (("--salt=x", small_tree), ("--force", tmp_path / "missing"), ("--force", "--size=1", small_tree)):
        assert mystfuse("mkext2", "--force", *failing, image).returncode == 2
        assert image.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
    with image.open() as still_open:
        make(small_tree, image, "--force")
        assert still_open.read() == "precious", "it has to be replaced, not written over"
    assert_clean(image)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_dangling_link_or_a_directory_is_no_target(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "link"), 1, "already exists")
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "directory"), 1)
    assert_refused(mystfuse("mkext2", "--force", small_tree, tmp_path / "directory"), 1, "is a directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "link"]


def test_the_new_image_gets_ordinary_permissions(small_tree: Path, tmp_path: Path) -> None:
    result = run("sh", "-c", 'umask 027; exec "$@"', "sh", sys.executable, "-m", "mystfuse", "mkext2", small_tree,
                 tmp_path / "image")  # fmt: skip
    assert result.returncode == 0
    assert stat.S_IMODE((tmp_path / "image").stat().st_mode) == 0o640


def test_targets_that_cannot_be_written_are_told_and_nothing_is_left(small_tree: Path, tmp_path: Path) -> None:
    readonly = tmp_path / "read-only"
    readonly.mkdir()
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", readonly)
    try:
        assert_refused(mystfuse("mkext2", small_tree, readonly / "image"), 1, "Read-only file system")
        assert not list(readonly.iterdir())
    finally:
        run("umount", readonly)
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "missing/image"), 1, "there is no directory")
    (tmp_path / "file").touch()
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "file/image"), 1, "Not a directory")
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / ("x" * 256)), 1, "name too long")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "read-only"]


def test_sources_that_are_none_are_refused(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert_refused(mystfuse("mkext2", tmp_path / "missing", image), 2, "no such directory")
    assert_refused(mystfuse("mkext2", small_tree / "hello.txt", image), 2, "not a directory")
    assert_refused(mystfuse("mkext2", small_tree), 2)
    assert not list(tmp_path.iterdir())


def test_an_unreadable_source_fails_and_leaves_nothing(open_tmp_path: Path, ordinary_user: list[str]) -> None:
    source, target = open_tmp_path / "source", open_tmp_path / "target"
    source.mkdir()
    target.mkdir()
    os.chown(target, USER, GROUP)
    (source / "secret").write_text("root's")
    (source / "secret").chmod(0o600)
    result = run(*ordinary_user, "mkext2", source, target / "image", check=False, cwd=open_tmp_path)
    assert_refused(result, 1, "Permission denied")
    assert not list(target.iterdir())
    (source / "secret").chmod(0o644)
    run(*ordinary_user, "mkext2", source, target / "image", cwd=open_tmp_path)
    assert_clean(target / "image")


@pytest.mark.parametrize("options", [(), ("--size=400M", "--block-size=4096")])
def test_a_full_disk_is_told_and_nothing_is_left(
    options: tuple[str, ...], full_disk: Path, rich_tree: Path, tmp_path: Path
) -> None:
    """Full while mke2fs copies, and full while the hash tree is written."""
    source = tmp_path / "source"
    source.mkdir()
    if not options:
        (source / "large").write_bytes(os.urandom(3 * MIB))
    assert_refused(mystfuse("mkext2", *options, source, full_disk / "image"), 1)
    assert not list(full_disk.iterdir())
    assert os.statvfs(full_disk).f_bfree * os.statvfs(full_disk).f_frsize == 2 * MIB


def is_mke2fs(pid: int) -> bool:
    """Whether this process, which was our child's child, is still there."""
    try:
        return b"mke2fs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def is_copying(pid: int) -> bool:
    """Whether this process is mke2fs, filling a file system: not the dry run before, nor what becomes mke2fs later."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return arguments[0].endswith(b"/mke2fs") and b"-d" in arguments


@pytest.mark.parametrize("phase", ["copying", "hashing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing_behind(number: int, phase: str, tiny_files: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    options = ["--size=16G"] if phase == "hashing" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mkext2", *options, tiny_files, target / "image"],
        env={**os.environ, "PATH": SBIN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child = 0
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            child = next(filter(is_copying, map(int, children)), child)
            if child and (phase == "copying" or not children):
                break
            time.sleep(0.002)
        assert child
        if phase == "copying":
            # It takes half a second, and we may be held up for longer: it must not come to its end meanwhile.
            os.kill(child, signal.SIGSTOP)
            assert is_copying(child)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(number)
        if phase == "copying":
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
        _, error = process.communicate(timeout=20)
        assert time.monotonic() - started < 5
        if number == signal.SIGINT:
            assert process.returncode == 1
            assert error == "mystfuse: interrupted\n"
        elif number == signal.SIGTERM:
            assert process.returncode in (1, -signal.SIGTERM)
            assert "Traceback" not in error
        assert not list(target.iterdir())
        # The helper ends too: it would go on filling the disk, unseen.
        deadline = time.monotonic() + 0.25
        while is_mke2fs(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_mke2fs(child)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if child and is_mke2fs(child):
            os.kill(child, signal.SIGKILL)


def test_without_nameless_files_a_hidden_name_is_used_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file system here lacks O_TMPFILE, so this one refusal is played."""
    real_open = os.open

    def open_without_tmpfile(path: Any, flags: int, *arguments: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, *arguments, **kwargs)

    monkeypatch.setattr(os, "open", open_without_tmpfile)
    target = tmp_path / "target"
    with AtomicFile(target, False) as file:
        os.write(file.fd, b"one")
        assert [path.name.startswith(".target.") for path in tmp_path.iterdir()] == [True]
        file.commit()
    assert target.read_bytes() == b"one"
    with pytest.raises(ZeroDivisionError), AtomicFile(target, True) as file:
        os.write(file.fd, b"two")
        raise ZeroDivisionError
    with pytest.raises(MystfuseError), AtomicFile(tmp_path / "raced", False) as file:
        (tmp_path / "raced").write_text("was first")
        file.commit()
    assert (tmp_path / "raced").read_text() == "was first"
    (tmp_path / "raced").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_bytes() == b"one"
    with AtomicFile(target, True) as file:
        os.write(file.fd, b"three")
        file.commit()
    assert target.read_bytes() == b"three"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


# What is shown


def test_progress_is_shown_on_a_terminal_only(small_tree: Path, tmp_path: Path) -> None:
    piped = mystfuse("mkext2", small_tree, tmp_path / "piped")
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, "", "")
    master, slave = pty.openpty()
    shown = b""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "mystfuse", "mkext2", "--size=4G", small_tree, tmp_path / "shown"],
            env={**os.environ, "PATH": SBIN, "TERM": "xterm"},
            stderr=slave,
        )
        os.close(slave)
        try:
            while select.select([master], [], [], 30)[0]:
                try:
                    part = os.read(master, 65536)
                except OSError:
                    break
                if not part:
                    break
                shown += part
        finally:
            if process.wait(30):
                pytest.fail(shown.decode(errors="replace"))
    finally:
        os.close(master)
    assert b"copying files" in shown
    assert b"hashing" in shown


# The same bytes


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
    """No file here has several extended attributes: mke2fs stores them in the order in which the system lists them."""
    first, copied, copy = (tmp_path / name for name in ("first", "copied", "copy of it"))
    fields = make(small_tree, first, env=at_epoch(EPOCH))
    run("cp", "-a", small_tree, copy)
    for path in copy.rglob("*"):
        status = path.lstat()
        os.utime(path, ns=(status.st_atime_ns + 10**15, status.st_mtime_ns), follow_symlinks=False)
    assert make(copy, copied, env=at_epoch(EPOCH)) == fields
    assert copied.read_bytes() == first.read_bytes()
    # What is different is different.
    (copy / "hello.txt").write_text("HELLO\n")
    os.utime(copy / "hello.txt", (1_500_000_000, 1_500_000_000))
    assert make(copy, copied, "--force", env=at_epoch(EPOCH))["root_hash"] != fields["root_hash"]


def test_source_date_epoch_does_not_depend_on_how_directories_grew(tmp_path: Path) -> None:
    """A directory that once held many names stays large, and its copy is small; both hold the same."""
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


def test_large_extended_attributes_get_larger_blocks(tmp_path: Path) -> None:
    source, image = tmp_path / "source", tmp_path / "image"
    source.mkdir()
    (source / "file").touch()
    try:
        os.setxattr(source / "file", "user.large", b"v" * 3000)
    except OSError as error:
        pytest.skip(f"this file system has no room for such an attribute: {error}")
    make(source, image)
    assert_clean(image)
    with mounted(image, tmp_path / "mount") as mountpoint:
        assert os.getxattr(mountpoint / "file", "user.large") == b"v" * 3000
    result = mystfuse("mkext2", "--block-size=1024", "--force", source, image)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "extended attributes" in result.stderr
