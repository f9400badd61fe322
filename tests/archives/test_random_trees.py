"""Random trees through the programs that write archives: what comes back is what the directory has."""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mystfuse.archives.file_tree import Entry
from mystfuse.archives.tar_tree import ArchiveTree, open_tar
from mystfuse.build.source_tree import scan
from tests.support.commands import run
from tests.support.tar_archives import archive, member, packed

ATTRIBUTES = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")
PROGRAMS = {
    "gnu": ("tar", "--format=gnu", "--sparse"), "posix 0.0": ("tar", "--format=posix", "-S", "--sparse-version=0.0"),
    "pax 0.1": ("tar", "--format=pax", *ATTRIBUTES, "-S", "--sparse-version=0.1"),
    "pax 1.0": ("tar", "--format=pax", *ATTRIBUTES, "-S", "--sparse-version=1.0"),
    "bsdtar": ("bsdtar", "--format=pax", "--read-sparse", "--xattrs", "--acls"), "busybox": ("busybox", "tar"),
}  # fmt: skip
WITH_ATTRIBUTES = {"pax 0.1", "pax 1.0", "bsdtar"}


def grow(root: Path, generator: random.Random, with_attributes: bool) -> None:
    """A tree of everything that a directory may have."""
    directories, files = [root], []
    root.mkdir()
    for number in range(60):
        above = generator.choice(directories)
        name = os.fsdecode(
            bytes(generator.choice(b"ab \n\xe9\xc3\xa9=%*-") for _ in range(generator.choice((1, 9, 70))))
        )
        path = above / f"{number}{name}"
        kind = generator.randrange(10)
        if kind < 2:
            path.mkdir()
            directories.append(path)
        elif kind == 2:
            path.symlink_to("t" * generator.choice((1, 99, 101, 200)))
        elif kind == 3:
            os.mknod(path, generator.choice((0o20600, 0o60640)), os.makedev(generator.randrange(4096), number))
        elif kind == 4:
            os.mkfifo(path)
        elif kind == 5 and files:
            os.link(generator.choice(files), path)
            continue
        else:
            with path.open("wb") as file:
                for _ in range(generator.randrange(4)):
                    file.seek(generator.choice((0, 3, 4096, 70_000)), os.SEEK_CUR)
                    file.write(generator.randbytes(generator.choice((0, 1, 511, 512, 5000))))
            files.append(path)
        if with_attributes and kind in (0, 1, 8, 9):
            for count in range(generator.randrange(3)):
                os.setxattr(
                    path, f"user.{count}{generator.choice('a=%.')}", generator.randbytes(generator.randrange(99))
                )
            if generator.random() < 0.3:
                os.setxattr(path, "security.capability", bytes.fromhex("010000020004" + "00" * 14))
                run("setfacl", "-m", f"u:{generator.randrange(1, 99_999)}:rx,g:{number}:w", path)
        os.chown(path, generator.randrange(2_000_000), generator.randrange(2_000_000), follow_symlinks=False)
        if kind != 2:
            os.chmod(path, generator.randrange(0o10000))
    # Not by rglob, which passes over some names with newlines.
    for above, directory_names, file_names in os.walk(root, topdown=False):
        for name in (*directory_names, *file_names, "."):
            os.utime(os.path.join(above, name), (0, generator.randrange(1, 1 << 33)), follow_symlinks=False)


def assert_same(found: Entry, expected: Entry, with_attributes: bool) -> None:
    for field in ("mode", "uid", "gid", "size", "rdev", "target", "mtime_ns"):
        assert getattr(found, field) == getattr(expected, field), (found.path, field)
    if not found.is_directory and not found.target:
        assert found.names == expected.names, found.path
    if with_attributes:
        assert sorted(found.attributes) == sorted(expected.attributes), found.path
    assert found.children.keys() == expected.children.keys()
    for name, child in found.children.items():
        assert_same(child, expected.children[name], with_attributes)


def assert_data(tree: ArchiveTree, root: Path) -> None:
    """All of each file at once, and its holes lie where there are none but zeros."""
    for entry in tree.root.walk():
        path = os.path.join(os.fsencode(root), entry.path)
        if not os.path.isfile(path) or os.path.islink(path):
            continue
        with open(path, "rb") as file:
            expected = file.read()
        opened = tree.contents.open(entry)
        assert opened.read(0, len(expected) + 1) == expected
        assert opened.read(100, 700) == expected[100:800]
        position, data = 0, bytearray(entry.size)
        while position < entry.size:
            try:
                position = opened.seek(position, os.SEEK_DATA)
            except OSError:
                break
            end = opened.seek(position, os.SEEK_HOLE)
            assert end > position
            data[position:end] = opened.read(position, end - position)
            position = end
        assert data == expected


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program(program: str, tmp_path: Path) -> None:
    for seed in range(5):
        with_attributes = program in WITH_ATTRIBUTES
        grow(tmp_path / f"tree{seed}", random.Random(f"{seed}{program}"), with_attributes)
        run(*PROGRAMS[program], "-C", tmp_path / f"tree{seed}", "-cf", tmp_path / "x.tar", ".")
        expected = scan(tmp_path / f"tree{seed}", keep=True).root
        assert expected is not None
        with open_tar([str(tmp_path / "x.tar")]) as tree:
            assert_same(tree.root, expected, with_attributes)
            assert_data(tree, tmp_path / f"tree{seed}")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_python(form: int, tmp_path: Path) -> None:
    for seed in range(5):
        grow(tmp_path / f"tree{seed}", random.Random(seed), False)
        (tmp_path / "x.tar").write_bytes(packed(tmp_path / f"tree{seed}", format=form))
        expected = scan(tmp_path / f"tree{seed}", keep=True).root
        assert expected is not None
        with open_tar([str(tmp_path / "x.tar")]) as tree:
            assert_same(tree.root, expected, False)
            assert_data(tree, tmp_path / f"tree{seed}")


NAME = st.binary(min_size=1, max_size=150).filter(
    lambda name: not set(name) & {0, 47} and name not in (b".", b"..")
)  # fmt: skip
NUMBER = st.integers(0, 2**32 - 2)


@settings(deadline=None)
@given(
    NAME, NUMBER, NUMBER, st.integers(0, 0o7777), st.integers(-(2**31), 2**34 - 2**31 - 1),
    st.dictionaries(st.binary(min_size=1, max_size=9).filter(lambda name: not set(name) & {0, 10, 37, 61}),
                    st.binary(max_size=300)),
)  # fmt: skip
def test_pax_records_are_bytes(
    name: bytes, uid: int, gid: int, mode: int, mtime: int, attributes: dict[bytes, bytes]
) -> None:
    """Names and values that are no UTF-8 as well, numbers of any size."""
    pax = {
        "path": name, "uid": str(uid).encode(), "gid": str(gid).encode(), "mtime": f"{mtime}.25".encode(),
        **{f"SCHILY.xattr.user.{os.fsdecode(key)}": value for key, value in attributes.items()},
    }  # fmt: skip
    descriptor = os.memfd_create("archive")
    try:
        os.write(descriptor, archive(member("other", mode=mode, pax=pax)))
        with open_tar([f"/proc/self/fd/{descriptor}"]) as tree:
            (found,) = tree.root.children.items()
    finally:
        os.close(descriptor)
    entry = found[1]
    sign = -1 if mtime < 0 else 1
    assert (found[0], entry.uid, entry.gid, entry.mode & 0o7777) == (name, uid, gid, mode)
    assert entry.mtime_ns == mtime * 1_000_000_000 + sign * 250_000_000
    assert dict(entry.attributes) == {b"user." + key: value for key, value in attributes.items()}


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damage_is_an_error_or_another_tree(data: st.DataObject) -> None:
    """Nothing but FormatError and MystfuseError, whatever is changed."""
    from mystfuse.errors import MystfuseError

    good = bytearray(archive(
        member("d", kind=tarfile.DIRTYPE), member("d/file", b"x" * 700, pax={"SCHILY.xattr.user.a": b"b"}),
        member("s", b"0123456789", pax={"GNU.sparse.size": b"90", "GNU.sparse.map": b"5,5,50,5"}),
        member("l", kind=tarfile.LNKTYPE, linkname="d/file"), member("n" * 150, b"long"),
    ))  # fmt: skip
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    block = data.draw(st.integers(0, len(good) // 512 - 1)) * 512
    if data.draw(st.booleans()):
        # Headers whose sum is right get further.
        header = good[block : block + 512]
        header[148:156] = b" " * 8
        good[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    descriptor = os.memfd_create("archive")
    try:
        os.write(descriptor, good)
        with open_tar([f"/proc/self/fd/{descriptor}"]) as tree:
            for entry in tree.root.walk():
                if entry.size and not entry.is_directory and not entry.target:
                    assert len(tree.contents.open(entry).read(0, 5000)) == min(entry.size, 5000)
    except MystfuseError as error:
        assert str(error)
    finally:
        os.close(descriptor)
