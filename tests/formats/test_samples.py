"""What recognizers of other files may read is bounded, whatever the file says; and what they make of fields."""

from __future__ import annotations

import shlex
import struct
import tarfile
from io import BytesIO

import pytest

from mystfuse.formats.others import archives, disks, kind, texts
from mystfuse.formats.others.kind import Kind, Sample
from mystfuse.image.identify import identify_sample


class Reads:
    """Bytes that count how they are read."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self.count = self.length = 0

    def __call__(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= self.size
        self.count += 1
        self.length += length
        return self.data[offset : offset + length].ljust(length, b"\0")

    def sample(self, name: str = "") -> Sample:
        return Sample(self, self.size, name)


def test_a_sample_gives_no_more_than_its_bounds() -> None:
    reads = Reads(b"", 1 << 40)
    sample = reads.sample()
    got = sum(len(sample.at(1 << 20, 4096)) for _ in range(kind.MAX_READS + 50))
    assert got <= kind.MAX_BYTES and reads.count <= kind.MAX_READS + 2
    assert sample.at(1 << 20, 4096) == b"" and sample.part(1 << 20, 1 << 20) is None
    many = Reads(b"", 1 << 40).sample()
    assert sum(bool(many.at(1 << 20, 1)) for _ in range(kind.MAX_READS + 50)) == kind.MAX_READS
    # What has been read already costs nothing.
    assert len(sample.at(100, 200)) == 200


def test_nothing_is_read_outside_the_file() -> None:
    reads = Reads(bytes(100_000))
    sample = reads.sample()
    assert len(sample.at(99_990, 100)) == 10
    assert sample.at(-5, 10) == sample.at(100_000, 10) == sample.at(1 << 70, 10) == b""
    assert sample.part(99_000, 1 << 60) is not None and sample.part(100_000, 10) is None


def test_an_archive_of_many_members_is_read_in_part() -> None:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(archives.MAX_MEMBERS * 3):
            tar.addfile(tarfile.TarInfo(f"file-{number}"))
        tar.addfile(tarfile.TarInfo("oci-layout"))
    reads = Reads(buffer.getvalue())
    found = identify_sample(reads.sample())
    assert found.name == "tar" and reads.count <= archives.MAX_MEMBERS + 2


def test_a_member_that_never_ends_ends_the_search() -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\x80" + b"\xff" * 11
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    reads = Reads(bytes(header).ljust(10_240, b"\0"))
    assert identify_sample(reads.sample()).name == "tar" and reads.count <= 3


def record(first: tuple[int, int, int], second: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    """An MBR with two partitions: type, start, length."""
    data = bytearray(512)
    for at, (type_, start, length) in ((446, first), (462, second)):
        data[at : at + 16] = struct.pack("<B3sB3sII", 0, b"", type_, b"", start, length)
    data[510:] = b"\x55\xaa"
    return bytes(data)


def test_a_ring_of_logical_partitions_is_left() -> None:
    """The second logical partition's record leads to the first one's."""
    disk = bytearray(400 * 512)
    disk[:512] = record((0x83, 1, 5), (5, 100, 200))
    disk[100 * 512 : 101 * 512] = record((0x83, 1, 5), (5, 50, 10))
    disk[150 * 512 : 151 * 512] = record((0x83, 1, 5), (5, 0, 10))
    found = identify_sample(Reads(bytes(disk)).sample())
    assert [(part.number, part.offset // 512) for part in found.parts] == [(1, 1), (2, 100), (5, 101), (6, 151)]


def test_a_long_chain_of_logical_partitions_is_cut() -> None:
    disk = bytearray(record((5, 1, 1000)))
    for _ in range(disks.MAX_LOGICAL * 2):
        number = len(disk) // 512
        disk += record((0x83, 1, 1), (5, number, 1))
    found = identify_sample(Reads(bytes(disk)).sample())
    assert len(found.parts) == 1 + disks.MAX_LOGICAL


def test_a_gpt_of_any_number_of_entries_is_bounded() -> None:
    header = struct.pack("<8sIIIIQQQQ16sQII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 100, b"", 2, 1 << 31, 4096)
    entry = struct.pack("<16s16sQQQ72s", b"\1" * 16, b"", 40, 50, 0, "n".encode("utf-16-le")).ljust(4096, b"\0")
    reads = Reads(bytes(512) + header.ljust(512, b"\0") + entry * 300)
    found = identify_sample(reads.sample())
    assert len(found.parts) == disks.MAX_PARTITIONS and reads.length <= kind.MAX_BYTES + (1 << 18)


def test_a_device_with_a_hole_in_its_table_is_no_partition_outside() -> None:
    disk = bytes(record((0x83, 4, 1 << 30))).ljust(4096, b"\0")
    found = identify_sample(Reads(disk).sample())
    assert "truncated" in found.parts[0].contents and "truncated" in found.advice and not found.commands


@pytest.mark.parametrize(
    ("path", "suffix", "new", "image"),
    [
        ("a.img.gz", ".gz", "a.img", "a.img"), ("/x/a.tar", ".tar", "a", "a.img"), ("a", "", "a.img", "new-a.img"),
        ("a.img", "", "new-a.img", "new-a.img"), ("-a.gz", ".gz", "./-a", "./-a.img"), (".gz", ".gz", "..", ".gz.img"),
        ("b c.gz", ".gz", "b c", "b c.img"),
    ],
)  # fmt: skip
def test_names_of_what_is_made(path: str, suffix: str, new: str, image: str) -> None:
    made = Kind("x", "x", commands=("{file}|{new}|{image}",), suffix=suffix).commands_for(path)[0].split("|")
    file = f"./{path}" if path.startswith("-") else path
    assert made[0] == shlex.quote(file)
    for name in made[1:]:
        assert shlex.split(name)[0] not in (path, file, "")
    if path not in (".gz", "a"):
        assert made[1:] == [shlex.quote(new), shlex.quote(image)]


@pytest.mark.parametrize(
    ("data", "is_text"),
    [
        (b"hello\n", True), ("käse".encode(), True), ("käse".encode()[:-3], True), (b"", False), (b"a\0b", False),
        (b"\xff\xfea\0", True), (b"\x80\x81abcdefgh", False), (b"\x1b[31mred", True), (b"\x7f", False),
    ],
)  # fmt: skip
def test_text_is_told_from_other_bytes(data: bytes, is_text: bool) -> None:
    assert texts.is_text(data) is is_text
