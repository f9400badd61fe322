"""Hostile tar archives: each costs one line that names what is wrong, or is contained."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mystfuse.archives import layers, spool, tar_members
from mystfuse.archives.tar_tree import open_tar
from mystfuse.errors import FormatError, MystfuseError
from tests.support.cli_in_process import in_process
from tests.support.commands import run
from tests.support.made_images import assert_refused
from tests.support.tar_archives import archive, member, pax_header, record, with_sum

LINK, SYMLINK, DIRECTORY, DEVICE = tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE


@dataclass(frozen=True)
class Hostile:
    """An archive, and what the error says of it."""

    data: bytes
    words: str


def sparse(*numbers: str, size: str = "10", data: bytes = b"0123456789") -> bytes:
    pax = {"GNU.sparse.size": size.encode(), "GNU.sparse.map": ",".join(numbers).encode()}
    return member("sparse", data, pax=pax)


def negative_size(kind: bytes = tarfile.REGTYPE) -> bytes:
    """Base 256, all ones: -1, with which readers have gone round for ever (CVE-2025-8194)."""
    header = bytearray(member("x", kind=kind)[:512])
    header[124:136] = b"\xff" * 12
    return with_sum(bytes(header))


def far_time() -> bytes:
    """A time of 2^70 seconds."""
    header = bytearray(member("x"))
    header[136:148] = b"\x80" + (1 << 70).to_bytes(11, "big")
    return with_sum(bytes(header))


def chain(kind: bytes, count: int) -> bytes:
    """Headers that are about a header that is about a header ..."""
    one = pax_header({"comment": b"x"}) if kind == tarfile.XHDTYPE else member("././@LongLink", b"name\0", kind)
    return one * count + member()


HOSTILE = {
    "absolute": Hostile(archive(member("/etc/passwd", b"root")), "/etc/passwd: an absolute path"),
    "dot dot": Hostile(archive(member("a/../../etc/passwd")), "a/../../etc/passwd: a path through .."),
    "absolute by pax": Hostile(archive(member("x", pax={"path": b"/root/.ssh"})), "an absolute path"),
    "no name": Hostile(archive(member("x", pax={"path": b""})), "a member without a name: an empty name"),
    "zero in the name": Hostile(archive(member("x", pax={"path": b"a\0b"})), "a zero byte in its path"),
    "long path": Hostile(archive(member("a/" * 3000 + "b")), "a path of 6001 bytes, more than 4095"),
    "long name": Hostile(archive(member("d/" + "n" * 300)), "its name has 300 bytes"),
    "root that is a file": Hostile(archive(member(".", b"x")), "the root of the tree"),
    "link to nothing": Hostile(archive(member("a", kind=LINK, linkname="b")), "a hard link to b, which is not there"),
    "link out": Hostile(archive(member("a", kind=LINK, linkname="../b")), "a: a hard link to: a path through .."),
    "absolute link": Hostile(archive(member("a", kind=LINK, linkname="/etc/shadow")), "a hard link to: an absolute"),
    "link to a later file": Hostile(archive(member("a", kind=LINK, linkname="b"), member("b")), "which is not there"),
    "link to a directory": Hostile(
        archive(member("d", kind=DIRECTORY), member("a", kind=LINK, linkname="d")), "a hard link to d, a directory"
    ),
    "link to itself": Hostile(archive(member("a", kind=LINK, linkname="a")), "a hard link to a, which is not there"),
    "symbolic link to nothing": Hostile(archive(member("a", kind=SYMLINK, linkname="")), "a symbolic link to a path"),
    "path through a file": Hostile(archive(member("a", b"x"), member("a/b")), "a/b: its path leads through a, which"),
    "path through links in a circle": Hostile(
        archive(member("a", kind=SYMLINK, linkname="b"), member("b", kind=SYMLINK, linkname="a"), member("a/x")),
        "a/x: its path leads through too many symbolic links",
    ),
    "directory becomes a file": Hostile(archive(member("a/b"), member("a", b"x")), "a: a directory with files, and"),
    "lost+found is a file": Hostile(archive(member("lost+found", b"x")), "lost+found: every ext2 file system has"),
    "unknown type": Hostile(archive(member("x", kind=b"Q")), "x: a member of unknown type 'Q'"),
    "negative device": Hostile(archive(member("x", kind=DEVICE, devmajor=-1)), "device -1:0 is none of Linux"),
    "large device": Hostile(archive(member("x", kind=DEVICE, devmajor=4096)), "device 4096:0 is none of Linux"),
    "negative user": Hostile(archive(member("x", pax={"uid": b"-1"})), "x: -1 is no user or group"),
    "large group": Hostile(archive(member("x", pax={"gid": b"4294967295"})), "4294967295 is no user or group"),
    "time that is none": Hostile(archive(member("x", pax={"mtime": b"nan"})), "'nan' is no time"),
    "time after 2446": Hostile(
        archive(member(".", kind=DIRECTORY), member("x", pax={"mtime": b"99999999999"})), "x: does not fit an ext2"
    ),
    "huge header": Hostile(archive(pax_header(b"", size=1 << 40), member()), "a header of 1099511627776 bytes"),
    "huge long name": Hostile(
        archive(member("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME, size=1 << 33), member()), "a header of 858993"
    ),
    "negative header": Hostile(archive(negative_size(tarfile.XHDTYPE)), "end of file header"),
    "negative size": Hostile(archive(negative_size()), "x: "),
    "chain of pax headers": Hostile(archive(chain(tarfile.XHDTYPE, 2000)), "headers about headers"),
    "chain of long names": Hostile(archive(chain(tarfile.GNUTYPE_LONGNAME, 2000)), "headers about headers"),
    "global headers without end": Hostile(
        archive(*(pax_header({f"k{n}": b"v" * 1000}, tarfile.XGLTYPE) + member(f"f{n}") for n in range(80))),
        "global headers of more than 65536 characters",
    ),
    "record of no length": Hostile(archive(pax_header(b"0 a=b\n"), member()), "invalid header"),
    "record that is too long": Hostile(archive(pax_header(b"99 a=b\n"), member()), "invalid header"),
    "record without end": Hostile(archive(pax_header(b"7" * 5000), member()), "invalid header"),
    "data beyond the end": Hostile(member("x", size=1 << 50), "x: cut short"),
    "cut short": Hostile(member("x", b"d" * 5000)[:3000], "x: cut short"),
    "cut in a header": Hostile(member("x") + member("y")[:100], "no member of a tar archive"),
    "damaged header": Hostile(archive(member("x"), b"\1" + member("y")[1:]), "byte 512: no member of a tar archive"),
    "sparse pieces overlap": Hostile(archive(sparse("0", "5", "3", "5")), "pieces are not in order"),
    "sparse pieces backwards": Hostile(archive(sparse("8", "2", "0", "2")), "pieces are not in order"),
    "sparse beyond its size": Hostile(archive(sparse("0", "10", size="5")), "a sparse file of 5 bytes with data up to"),
    "sparse of more than is there": Hostile(archive(sparse("0", "99999", size="99999")), "cut short"),
    "sparse of a negative length": Hostile(archive(sparse("0", "-5", "20", "5", size="99")), "not in order"),
    "sparse map of letters": Hostile(archive(sparse("a", "b")), "not a tar archive: a number that is none"),
    "sparse map without end": Hostile(
        archive(member("s", b"9" * 600, pax={"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0"})), "a number that is"
    ),
    "sparse file that is too large": Hostile(archive(sparse("0", "1", size=str(1 << 60), data=b"x")), "does not fit"),
    "attribute that is no base64": Hostile(archive(member("x", pax={"LIBARCHIVE.xattr.user.a": b"%"})), "not base64"),
    "attribute that is too large": Hostile(
        archive(member("x", pax={"SCHILY.xattr.user.a": b"v" * 65537})), "attribute user.a: 65537 bytes"
    ),
    "attribute that fits no block": Hostile(
        archive(member("x", pax={"SCHILY.xattr.user.a": b"v" * 5000})), "x: does not fit an ext2 file system: extended"
    ),
    "ACL that is none": Hostile(archive(member("x", pax={"SCHILY.acl.access": b"user::rwx"})), "x: ACL"),
    "ACL of somebody": Hostile(
        archive(member("x", pax={"SCHILY.acl.access": b"u::rwx,u:no such one:r,g::r,m::r,o::r"})), "--numeric-owner"
    ),
    "ACL of somebody with a zero byte": Hostile(
        archive(member("x", pax={"SCHILY.acl.access": b"u::rwx,u:a\0b:r,g::r,m::r,o::r"})), "--numeric-owner"
    ),
    "time in base 256": Hostile(archive(far_time()), "x: 1180591620717411303424 is no time"),
    "many global records": Hostile(
        archive(*(pax_header({f"k{number}": b"v"}, tarfile.XGLTYPE) + member(f"x{number}") for number in range(300))),
        "more than 256 records in global headers",
    ),
    "links with long targets": Hostile(
        archive(
            member("d", kind=DIRECTORY),
            *(
                member(f"l{number}", kind=SYMLINK, linkname=f"l{number + 1}/" + "../d/" * 400 + "..")
                for number in range(9)
            ),
            member("l9", kind=SYMLINK, linkname="d/.."),
            member("l0/d/x"),
        ),
        "l0/d/x: its path, with the links in it, has too many names",
    ),
    "ACL in binary that is none": Hostile(
        archive(member("x", pax={"SCHILY.xattr.system.posix_acl_access": b"x"})), "posix_acl_access: not an ACL"
    ),
    "empty": Hostile(b"", "empty, not a tar archive"),
    "text": Hostile(b"hello\n" * 1000, "not a tar archive"),
    "gzip cut short": Hostile(gzip.compress(archive(member("x", bytes(99999))))[:-9], "cut short: the gzip data"),
    "gzip damaged": Hostile(gzip.compress(archive(member("x")))[:-8] + bytes(8), "damaged: gzip"),
    "gzip and something else": Hostile(gzip.compress(archive(member("x"))) + b"garbage", "follows the compressed data"),
    "xz for much memory": Hostile(
        lzma.compress(archive(member()), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]), "damaged: xz"
    ),
    "zstd damaged": Hostile(b"\x28\xb5\x2f\xfd" + b"\xff" * 40, "damaged: zstd"),
    "lz4": Hostile(b"\x04\x22\x4d\x18" + bytes(100), "compressed by lz4"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_one_line_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar"
    path.write_bytes(HOSTILE[name].data)
    result = in_process("mkext2", "--tar", path, tmp_path / "image")
    assert_refused(result, result.returncode, "hostile.tar", HOSTILE[name].words)
    assert result.returncode in (1, 6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["hostile.tar"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_decompression_bombs_are_refused(
    compress: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "FREE_BYTES", 1 << 20)
    (tmp_path / "bomb").write_bytes(compress(archive(member("zeros", bytes(64 << 20)))))
    with pytest.raises(FormatError, match=r"bomb: a decompression bomb\? "), open_tar([str(tmp_path / "bomb")]):
        pass


@pytest.mark.parametrize(
    ("module", "limit", "value", "words"),
    [(tar_members, "MAX_MEMBERS", 9, "more than 9 members"), (layers, "MAX_BYTES", 30, "of more than 30 bytes")],
)
def test_what_is_in_memory_has_a_bound(
    module: object, limit: str, value: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, limit, value)
    (tmp_path / "many").write_bytes(archive(*(member(f"name{number}") for number in range(10))))
    with pytest.raises(FormatError, match=words), open_tar([str(tmp_path / "many")]):
        pass


def test_directories_without_members_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MAX_BYTES", 1 << 20)
    (tmp_path / "deep").write_bytes(archive(*(member(f"{number}" + "/a" * 1000 + "/f") for number in range(3))))
    with pytest.raises(FormatError, match="maps of holes of more than"), open_tar([str(tmp_path / "deep")]):
        pass


def test_members_that_are_waited_for_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several archives, all members are read before any is put into the tree."""
    monkeypatch.setattr(layers, "MAX_BYTES", 100_000)
    puts: list[object] = []
    monkeypatch.setattr(layers.Layers, "_put", lambda self, member, *rest: puts.append(member))
    header = pax_header({"SCHILY.xattr.user.a": b"v" * 3000}, tarfile.XGLTYPE)
    (tmp_path / "a").write_bytes(archive())
    (tmp_path / "b").write_bytes(archive(header, *(member(f"x{number}") for number in range(99))))
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(FormatError, match="maps of holes of more than"), open_tar(paths):
        pass
    assert not puts


def test_many_pieces_are_read_in_time_that_grows_with_them(tmp_path: Path) -> None:
    count = 20_000
    pieces = [text for number in range(count) for text in (str(number * 8192), "1")]
    (tmp_path / "sparse").write_bytes(archive(sparse(*pieces, size=str(count * 8192), data=b"x" * count)))
    with open_tar([str(tmp_path / "sparse")]) as tree:
        file = tree.contents.open(tree.root.children[b"sparse"])
        started = time.process_time()
        position = found = 0
        while position < count * 8192 - 8192:
            position = file.seek(position, os.SEEK_DATA)
            found += file.read(position, 1) == b"x"
            position = file.seek(position, os.SEEK_HOLE)
        assert found == count
        assert time.process_time() - started < 5


def test_a_terminal_is_no_archive() -> None:
    command = f"{sys.executable} -m mystfuse mkext2 --tar - x.img"
    said = run("script", "-qec", command, "/dev/null", check=False)
    assert "stdin is a terminal: pipe an archive to it" in said.stdout


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(archive(member())))
    with (
        pytest.raises(MystfuseError, match=r"missing: no room for .*set TMPDIR"),
        open_tar([str(tmp_path / "x.tar.gz")]),
    ):
        pass


def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    """A member behind links that lead out is in the tree all the same."""
    outside = tmp_path / "outside"
    outside.mkdir()
    data = archive(
        member("etc", kind=DIRECTORY, mode=0o711),
        member("up", kind=SYMLINK, linkname="../../../../../../etc"), member("up/passwd", b"root"),
        member("out", kind=SYMLINK, linkname=str(outside)), member("out/file", b"x"),
    )  # fmt: skip
    (tmp_path / "x.tar").write_bytes(data)
    with open_tar([str(tmp_path / "x.tar")]) as tree:
        assert set(tree.root.children[b"etc"].children) == {b"passwd"}
        place = tree.root
        for name in (*str(outside).split("/")[1:], "file"):
            place = place.children[name.encode()]
        assert place.size == 1
    assert not list(outside.iterdir())


def test_the_last_of_several_counts(tmp_path: Path) -> None:
    data = archive(
        member("a", b"first"), member("b", kind=LINK, linkname="a"), member("a", b"second", mode=0o600),
        member("d", kind=DIRECTORY, mode=0o700), member("d/x"), member("d", kind=DIRECTORY, mode=0o755, uid=7),
        member("empty", kind=DIRECTORY), member("empty", b"file"), member("l", kind=SYMLINK, linkname="d"),
        member("l", kind=DIRECTORY), member("l/y"),
    )  # fmt: skip
    (tmp_path / "x.tar").write_bytes(data)
    with open_tar([str(tmp_path / "x.tar")]) as tree:
        found = tree.root.children
        assert (found[b"a"].size, found[b"a"].names, found[b"b"].size, found[b"b"].names) == (6, 1, 5, 1)
        assert (found[b"d"].mode & 0o777, found[b"d"].uid, set(found[b"d"].children)) == (0o755, 7, {b"x"})
        assert stat.S_ISREG(found[b"empty"].mode)
        assert set(found[b"l"].children) == {b"y"}


@pytest.mark.parametrize("name", ["BZhello.txt", "BZh91AY", "LZIP/readme", "]", "\x1f\x9d"])
def test_a_plain_archive_may_begin_with_any_name(name: str, tmp_path: Path) -> None:
    """Even one like the first bytes of compressed data."""
    (tmp_path / "x").write_bytes(archive(member(name, b"data")))
    with open_tar([str(tmp_path / "x")]) as tree:
        assert list(tree.root.children) == [name.partition("/")[0].encode()]


def test_records_of_nothing_are_not_believed(tmp_path: Path) -> None:
    """Their number in front is theirs; two of the same key are the last one."""
    records = record("path", b"first") + record("path", b"last")
    (tmp_path / "x.tar").write_bytes(archive(pax_header(records), member("other", b"data")))
    with open_tar([str(tmp_path / "x.tar")]) as tree:
        assert list(tree.root.children) == [b"last"]
