"""Targets: what a file is said to be, whatever its bytes are."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from functools import cache

from mystfuse.errors import one_line
from mystfuse.ext2.constants import EXT2_SUPER_MAGIC
from mystfuse.ext2.summary import FileSystemSummary
from mystfuse.formats.fssig import FSSIG_MAGIC, FSSIG_VERSION
from mystfuse.formats.luks import CipherSpec, KeyDigest, LuksHeader, Pbkdf2
from mystfuse.formats.luks2 import BINARY_HEADER_SIZE, pack_luks2
from mystfuse.formats.luks_summary import describe_luks, header_bytes
from mystfuse.formats.others.kind import END_SIZE, MAX_BYTES, MAX_READS, START_SIZE, Sample
from mystfuse.formats.package import PACKAGE_HEADER
from mystfuse.image.identify import identify_sample
from tests.fuzz.harness import Choices, Target, ensure
from tests.fuzz.targets_formats import LUKS2_WORDS, luks1_seeds, luks2_seeds

PLACES = (0, 510, 1024, 1080, 3072, 4096, 0x8000, 0x10000)
"""Where formats have their magic numbers, and a few blocks on."""


class File:
    """A long sparse file of which the input says some pieces, and that counts what is read."""

    def __init__(self, choices: Choices) -> None:
        self.size = choices.number(choices.below(8))
        self.pieces: list[tuple[int, bytes]] = []
        self.reads = self.length = 0
        while choices and len(self.pieces) < 8:
            place = choices.pick(PLACES) if choices.below(4) else self.size - choices.number(2)
            self.pieces.append((place, choices.take(choices.number(2) % 1025)))

    def read(self, offset: int, length: int) -> bytes:
        ensure(offset >= 0 and length >= 0 and offset + length <= self.size, "a read outside the file")
        self.reads += 1
        self.length += length
        data = bytearray(length)
        for place, piece in self.pieces:
            start, end = max(place, offset), min(place + len(piece), offset + length)
            if start < end:
                data[start - offset : end - offset] = piece[start - place : end - place]
        return bytes(data)


def identify(data: bytes) -> None:
    """Every file is something, told from a bounded number of bytes, with command lines that can be formed."""
    file = File(Choices(data))
    kind = identify_sample(Sample(file.read, file.size, "name.tar.gz"))
    ensure(file.reads <= MAX_READS + 2, f"{file.reads} reads")
    ensure(file.length <= MAX_BYTES + START_SIZE + END_SIZE, f"{file.length} bytes are read")
    ensure(bool(kind.name and kind.title and kind.advice), f"{kind} says nothing")
    ensure(len(kind.parts) <= 200, f"{len(kind.parts)} partitions")
    for text in (kind.title, kind.explain("a b"), *kind.commands_for("a b"), *map(str, kind.facts.values())):
        ensure(one_line(text).isprintable() and len(text) < 60_000, "a text that cannot be shown")
    ensure("insecure" not in kind.explain("a b"), "checks are to be switched off")


def identify_seeds() -> list[bytes]:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("manifest.json"))
        tar.addfile(tarfile.TarInfo("layer.tar"))
    mbr = bytearray(512)
    mbr[446:462] = struct.pack("<B3sB3sII", 0x80, b"", 5, b"", 1, 100)
    mbr[510:] = b"\x55\xaa"
    gpt = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 100, b"", 2, 128, 128, 0)
    ext = bytearray(1024)
    struct.pack_into("<IIIII", ext, 0, 16, 64, 0, 8, 4)
    struct.pack_into("<H", ext, 56, EXT2_SUPER_MAGIC)
    fssig = struct.pack("<QQQ", FSSIG_MAGIC, FSSIG_VERSION, 65536)
    qcow2 = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 200, 20, 16, 1 << 30)
    iso = b"\1CD001\1".ljust(2048, b" ")
    starts = [
        (0, archive.getvalue()[:1024]), (0, bytes(mbr)), (0, gpt), (2, bytes(ext)), (0, qcow2), (6, iso[:1024]),
        (0, gzip.compress(b"x")), (0, b"<html>"), (0, b"hsqs" + bytes(92)), (0, PACKAGE_HEADER), (0, luks1_seeds()[0]),
        (0, b"070701" + b"0" * 104), (0, b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"), (0, fssig),
    ]  # fmt: skip
    # The size's length, the size; then for each piece its place, and its length.
    return [
        bytes([4])
        + struct.pack("<I", 1 << 20)
        + bytes([1, place])
        + struct.pack("<H", len(piece[:1024]))
        + piece[:1024]
        for place, piece in starts
    ]


@cache
def luks2_header() -> bytes:
    """The first copy of a header of LUKS2: 16 KiB."""
    cipher = CipherSpec.parse("aes-xts-plain64")
    digest = KeyDigest(Pbkdf2("sha256", bytes(32), 1000), bytes(32))
    header = LuksHeader(2, "u" * 36, cipher, (64,), 16 << 20, None, 512, 0, (), digest)
    return pack_luks2(header, 1, (bytes(64), bytes(64)))[:16384]


def with_json(area: bytes) -> bytes:
    """The header with this JSON area, and its checksum."""
    header = bytearray(luks2_header()[:BINARY_HEADER_SIZE] + area[:12288].ljust(12288, b"\0"))
    header[0x1C0 : 0x1C0 + 64] = bytes(64)
    header[0x1C0 : 0x1C0 + 32] = hashlib.sha256(header).digest()
    return bytes(header)


def luks_summary(data: bytes) -> None:
    """A description of a header has bounded parts, whatever it says."""
    if data.startswith(b"{"):
        data = with_json(data)
        ensure(describe_luks(data) is not None or not data, "a header with a good checksum is none")
    ensure(0 < header_bytes(data[:4096]) <= 4 << 20, "too much is to be read")
    found = describe_luks(data)
    if found is None:
        return
    ensure(len(found.slots) <= 32 and len(found.tokens) <= 32, "more slots or tokens than there can be")
    for text in (found.cipher, found.uuid, found.label, *found.tokens, *(slot.kdf for slot in found.slots)):
        ensure(len(text) <= 300 and one_line(text).isprintable(), "a text that cannot be shown")
    for number in (found.payload_offset, found.payload_size, found.sector_size, found.key_bits):
        ensure(number is None or 0 <= number < 1 << 80, f"{number} is out of bounds")
    found.is_detached(len(data))


def luks_summary_seeds() -> list[bytes]:
    document = luks2_seeds()[2].removeprefix(b"\0")
    return [*luks1_seeds(), document, luks2_header()[:4096], b"{}"]


def superblock_summary(data: bytes) -> None:
    """A description of a superblock has numbers that make sense together."""
    found = FileSystemSummary.parse(data.ljust(1024, b"\0"))
    if found is None:
        return
    ensure(found.used + found.free == found.size >= found.free >= 0, "sizes do not add up")
    ensure(1024 <= found.block_size <= 65536 and set(found.unsupported) <= set(found.features), "an impossible field")
    ensure(found.type in ("ext2", "ext3", "ext4", "jbd"), found.type)
    ensure(not found.unsupported or found.fault is not None, "what we do not have is no fault")


def superblock_seeds() -> list[bytes]:
    seeds = []
    for compat, incompat, ro_compat in (0x38, 2, 3), (0x3C, 0x6, 3), (0x3C, 0x2C2, 0x46B), (0, 8, 0):
        block = bytearray(400)
        struct.pack_into("<IIIII", block, 0, 2048, 8192, 0, 7000, 2000)
        struct.pack_into("<H", block, 56, EXT2_SUPER_MAGIC)
        struct.pack_into("<III", block, 92, compat, incompat, ro_compat)
        struct.pack_into("<I", block, 336, 1)
        seeds.append(bytes(block))
    return seeds


TARGETS = [
    Target("identify", identify, identify_seeds, 4096, [
        b"hsqs", b"\xe2\xe1\xf5\xe0", b"XFSB", b"_BHRfS_M", b"CD001", b"EFI PART", b"\x55\xaa", b"QFI\xfb", b"KDMV",
        b"conectix", b"vhdxfile", b"ustar", b"070707", b"\xfd7zXZ\0", b"PK\3\4", b"!<arch>\n", b"\x7fELF",
        b"verity\0\0", b"SWAPSPACE2", b"LUKS\xba\xbe\0\2", b"SKUL\xba\xbe\0\2",
        struct.pack("<Q", FSSIG_MAGIC), struct.pack("<I", 0xED26FF3A),
    ]),
    Target("luks-summary", luks_summary, luks_summary_seeds, 4096, LUKS2_WORDS),
    Target("superblock-summary", superblock_summary, superblock_seeds, 1024),
]  # fmt: skip
