"""LUKS2 headers: fields where the specification has them, checksums, bad values refused, unsupported features named."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError, UnsupportedFeature
from mystfuse.formats.luks import (
    HASHES,
    MAX_ARGON2_COST,
    MAX_ARGON2_CPUS,
    MAX_ARGON2_MEMORY,
    MAX_ITERATIONS,
    MAX_STRIPES,
    Argon2,
    CipherSpec,
    KeyDigest,
    Keyslot,
    LuksHeader,
    Pbkdf2,
)
from mystfuse.formats.luks2 import HEADER_SIZES, HeaderCopy, pack_luks2, parse_luks2
from tests.support.luks_headers import (
    CIPHERS,
    GOOD_LUKS2,
    MIB,
    b64,
    changed,
    document,
    flipped,
    luks2,
    luks2_copy,
    parse,
    read,
    with_checksum,
)


def checked(copy: HeaderCopy, data: bytes) -> dict[str, Any]:
    copy.check(data)
    return copy.document(data)


def test_the_fields_of_luks2_lie_where_the_specification_has_them() -> None:
    data = luks2()
    copy = HeaderCopy.parse(data, 0)
    assert copy == HeaderCopy(0, 0x4000, 1, "01234567-89ab-cdef-0123-456789abcdef", "sha256")
    assert checked(copy, data[:0x4000]) == document()
    assert parse_luks2(copy, document()) == GOOD_LUKS2
    assert HeaderCopy.parse(data[0x4000:], 0x4000) == replace(copy, offset=0x4000)


@st.composite
def luks2_headers(draw: st.DrawFn) -> LuksHeader:
    name, area_name = draw(st.sampled_from(list(CIPHERS))), draw(st.sampled_from(list(CIPHERS)))
    sizes = draw(st.lists(st.sampled_from(CIPHERS[name]), max_size=4))
    slots: list[Keyslot] = []
    for number, key_size in enumerate(sizes):
        cpus = draw(st.integers(1, MAX_ARGON2_CPUS))
        memory = draw(st.integers(8 * cpus, MAX_ARGON2_MEMORY))
        slots.append(
            Keyslot(
                number,
                Argon2(
                    draw(st.sampled_from(["argon2i", "argon2id"])),
                    draw(st.binary(min_size=8, max_size=64)),
                    draw(st.integers(1, MAX_ARGON2_COST // memory)),
                    memory,
                    cpus,
                ),
                key_size,
                CipherSpec.parse(area_name),
                draw(st.sampled_from(CIPHERS[area_name])),
                0x8000 + number * 0x40000,
                draw(st.integers(1, 4000)),
                draw(st.sampled_from(list(HASHES))),
            )
        )
    sector_size = draw(st.sampled_from([512, 1024, 2048, 4096]))
    return LuksHeader(
        version=2,
        uuid=str(draw(st.uuids())),
        cipher=CipherSpec.parse(name),
        key_sizes=tuple(sorted(set(sizes))) or CIPHERS[name],
        payload_offset=512 * draw(st.integers(16 * MIB // 512, 1 << 50)),
        payload_size=draw(st.none() | st.integers(1, 1 << 50).map(lambda count: count * sector_size)),
        sector_size=sector_size,
        iv_tweak=draw(st.integers(0, (1 << 63) - 1)),
        keyslots=tuple(slots),
        digest=KeyDigest(
            Pbkdf2(draw(st.sampled_from(list(HASHES))), draw(st.binary(max_size=64)), draw(st.integers(1, 1 << 24))),
            draw(st.binary(min_size=20, max_size=64)),
        ),
    )


@given(luks2_headers(), st.integers(0, (1 << 64) - 1))
def test_a_luks2_header_is_read_back_as_it_was_written(header: LuksHeader, seqid: int) -> None:
    packed = pack_luks2(header, seqid, (b"a" * 64, b"b" * 64))
    assert len(packed) == 0x8000
    assert read(packed) == header
    for offset in (0, 0x4000):
        data = packed[offset : offset + 0x4000]
        copy = HeaderCopy.parse(data, offset)
        assert copy is not None and copy.seqid == seqid
        assert parse_luks2(copy, checked(copy, data)) == header
        # The checksum is the one that the specification describes.
        assert with_checksum(bytearray(data)) == data
    assert packed[0x68:0xA8] == b"a" * 64 and packed[0x4068:0x40A8] == b"b" * 64


def test_a_luks2_header_that_does_not_fit_is_not_written() -> None:
    slots = tuple(replace(GOOD_LUKS2.keyslots[0], number=number) for number in range(100))
    with pytest.raises(ValueError):
        pack_luks2(replace(GOOD_LUKS2, keyslots=slots), 1, (bytes(64), bytes(64)))


@pytest.mark.logs(r"^mystfuse\.image\.unlock")
@pytest.mark.parametrize("size", HEADER_SIZES)
def test_headers_of_every_size_are_found(size: int) -> None:
    area = changed("segments 0 offset", str(16 * MIB))
    for slot in ("0", "1"):
        area["keyslots"][slot]["area"]["offset"] = str(2 * size + 258048 * int(slot))
    whole = luks2(area, size)
    header = read(whole)
    assert header is not None and header.keyslots[0].offset == 2 * size
    assert read(bytes(size) + whole[size:]) == header
    assert read(whole[:size] + bytes(size)) == header


@pytest.mark.logs(r"^mystfuse\.image\.unlock")
@pytest.mark.parametrize("algorithm", HASHES)
def test_headers_with_every_checksum_are_read(algorithm: str) -> None:
    data = luks2_copy(document(), csum_alg=algorithm.encode())
    assert read(data) == GOOD_LUKS2
    for position in (0x1C0, 0x1C0 + hashlib.new(algorithm).digest_size - 1, 0x1BF, 0x200, 0x3FFF):
        with pytest.raises(FormatError):
            read(flipped(data, position))


BAD_AREAS = {
    "nothing": b"",
    "not JSON": b"keyslots: {}",
    "cut short": json.dumps(document()).encode()[:-1],
    "something behind": json.dumps(document()).encode() + b"}",
    "not UTF-8": b'{"keyslots": "\xff\xfe"}',
    "lone byte of UTF-8": b'{"\xc3": 1}',
    "byte order mark of UTF-16": b"\xff\xfe{}",
    "a list": b"[]",
    "a string": b'"keyslots"',
    "a number": b"1",
    "null": b"null",
    "an endless number": b'{"config": ' + b"9" * 10_000 + b"}",
    "nested lists": b"[" * 10_000 + b"]" * 10_000,
    "nested and not closed": b"[" * 12_000,
}


@pytest.mark.parametrize("case", BAD_AREAS)
def test_a_json_area_that_is_none_is_refused(case: str) -> None:
    size = 0x8000
    area = BAD_AREAS[case]
    data = luks2_copy(area, size=size)
    copy = HeaderCopy.parse(data, 0)
    assert copy is not None
    with pytest.raises(FormatError):
        checked(copy, data)
    with pytest.raises(FormatError):
        read(luks2(area, size))
    # A good second header counts.
    assert read(data + luks2_copy(document_for(size), size, size)) is not None


def test_objects_nested_deeply_are_refused() -> None:
    """Whether as JSON or as a LUKS2 area depends on how deep Python parses: 3.13 takes more than 3.11."""
    with pytest.raises(FormatError):
        read(luks2(b'{"a":' * 2_000 + b"1" + b"}" * 2_000, 0x8000))


def document_for(size: int) -> dict[str, Any]:
    """The good JSON area for a header of another size."""
    area = document()
    for slot in ("0", "1"):
        area["keyslots"][slot]["area"]["offset"] = str(2 * size + 258048 * int(slot))
    return area


@pytest.mark.parametrize("filling", [b"[", b'{"a":', b'{"a":[', b'"', b"\\u", b"1", b" ", b"[1,"])
def test_4_mib_of_anything_are_refused_in_a_moment(filling: bytes) -> None:
    area = (filling * (0x400000 // len(filling) + 1))[: 0x400000 - 4096]
    begin = time.process_time()
    with pytest.raises(FormatError):
        read(luks2(area, 0x400000))
    assert time.process_time() - begin < 5


def test_a_wrong_checksum_is_reported() -> None:
    data = luks2_copy(document())
    for position in (0x20, 0x68, 0x1C0, 0x1DF, 0x200, 4096, 0x3FFF):
        copy = HeaderCopy.parse(data, 0)
        assert copy is not None
        with pytest.raises(FormatError, match="checksum"):
            checked(copy, flipped(data, position))
    # Behind a SHA-256 the field has 32 more bytes, which do not count.
    assert checked(copy, flipped(data, 0x1E0)) == document()
    assert checked(copy, data) == document()
    with pytest.raises(FormatError):
        checked(copy, data[:-1])


@pytest.mark.parametrize("algorithm", [b"", b"md5", b"crc32c", b"sha256 ", b"\xff" * 32, b"shake_128"])
def test_an_unknown_checksum_is_unsupported(algorithm: bytes) -> None:
    data = luks2_copy(document(), csum_alg=algorithm)
    copy = HeaderCopy.parse(data, 0)
    assert copy is not None
    with pytest.raises(UnsupportedFeature) as caught:
        checked(copy, data)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "offset, fields",
    [
        (0, {"magic": b"SKUL\xba\xbe"}),
        (0, {"magic": b"LUKS\xba\xbf"}),
        (0, {"version": 1}),
        (0, {"version": 3}),
        (0, {"hdr_size": 0}),
        (0, {"hdr_size": 0x3FFF}),
        (0, {"hdr_size": 0x2000}),
        (0, {"hdr_size": 0x6000}),
        (0, {"hdr_size": 0x800000}),
        (0, {"hdr_size": (1 << 64) - 1}),
        (0, {"hdr_offset": 0x4000}),
        (0, {"hdr_offset": 1}),
        (0x4000, {"magic": b"LUKS\xba\xbe"}),
        (0x4000, {"hdr_size": 0x8000}),
        (0x4000, {"hdr_offset": 0}),
        (0x4000, {"hdr_offset": 0x8000}),
    ],
)
def test_what_is_no_copy_of_a_luks2_header_is_none(offset: int, fields: dict[str, Any]) -> None:
    assert HeaderCopy.parse(luks2_copy(document(), offset), offset) is not None
    assert HeaderCopy.parse(luks2_copy(document(), offset, **fields), offset) is None


def test_a_binary_header_cut_short_is_none() -> None:
    data = luks2_copy(document())
    for length in (0, 1, 6, 8, 511):
        assert HeaderCopy.parse(data[:length], 0) is None
    assert HeaderCopy.parse(data[:512], 0) is not None


# Additions to the good JSON area, and the words of the refusal.
UNSUPPORTED = {
    "integrity": (changed("segments 0 integrity", {"type": "hmac(sha256)"}), "hmac(sha256)"),
    "integrity, AEAD": (changed("segments 0 integrity", {"type": "aead\n"}), r"aead\n"),
    "a requirement": (changed("config requirements", {"mandatory": ["online-reencrypt-v2"]}), "online-reencrypt-v2"),
    "requirements": (changed("config requirements", {"mandatory": ["x\x1b", "y"]}), r"x\x1b"),
    "two segments": (changed("segments 1", document()["segments"]["0"]), "2 segments"),
    "no segment": (document(segments={}), "0 segments"),
    "a linear segment": (changed("segments 0 type", "linear"), "linear"),
    "cipher": (changed("segments 0 encryption", "serpent-xts-plain64"), "serpent-xts-plain64"),
    "mode": (changed("segments 0 encryption", "aes-xts-random"), "aes-xts-random"),
    "no mode": (changed("segments 0 encryption", "aes"), "'aes'"),
    "cipher of the null": (changed("segments 0 encryption", "cipher_null-ecb"), "cipher_null-ecb"),
    "hash of the digest": (changed("digests 0 hash", "md5"), "md5"),
    "digest": (changed("digests 0 type", "argon2id"), "argon2id"),
    "a long name": (changed("segments 0 encryption", "a" * 5000), "a" * 64 + "'"),
    "half a surrogate pair": (changed("segments 0 encryption", "\ud800"), r"\ud800"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_features_of_luks2_are_named(case: str) -> None:
    area, named = UNSUPPORTED[case]
    with pytest.raises(UnsupportedFeature) as caught:
        parse(area)
    assert named in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    with pytest.raises(UnsupportedFeature):
        read(luks2(area))


UNUSABLE = {
    "cipher of a slot": (changed("keyslots 0 area encryption", "serpent-xts-plain64"), "serpent-xts-plain64"),
    "hash of a slot": (changed("keyslots 1 kdf hash", "whirlpool"), "whirlpool"),
    "hash of the splitter": (changed("keyslots 0 af hash", "ripemd160"), "ripemd160"),
    "key derivation": (changed("keyslots 0 kdf type", "argon2d"), "argon2d"),
    "area": (changed("keyslots 0 area type", "datashift"), "slot 0"),
    "splitter": (changed("keyslots 1 af type", "luks2"), "slot 1"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_slot_that_we_cannot_use_leaves_the_others(case: str) -> None:
    area, named = UNUSABLE[case]
    header = parse(area)
    (reason,) = header.unusable
    assert named in reason and reason.isprintable() and len(reason) < 300
    assert len(header.keyslots) == 1


def test_hashes_are_named_in_either_case() -> None:
    area = document()
    area["digests"]["0"]["hash"] = area["keyslots"]["0"]["af"]["hash"] = "SHA256"
    area["keyslots"]["1"]["kdf"]["hash"] = "Sha512"
    assert parse(area) == parse(document())


SEGMENT = document()["segments"]["0"]


def with_slot_called(name: str) -> dict[str, Any]:
    digest = document()["digests"]["0"] | {"keyslots": [name]}
    return document(keyslots={name: document()["keyslots"]["0"]}, digests={"0": digest})


IMPOSSIBLE = {
    "argon2 over 2^40 KiB": changed("keyslots 0 kdf memory", 1 << 40),
    "argon2 over one KiB too many": changed("keyslots 0 kdf memory", MAX_ARGON2_MEMORY + 1),
    "argon2 over 0": changed("keyslots 0 kdf memory", 0),
    "argon2 over less than its lanes need": changed("keyslots 0 kdf memory", 15),
    "argon2, 2^40 passes": changed("keyslots 0 kdf time", 1 << 40),
    "argon2, one pass too many": changed("keyslots 0 kdf time", MAX_ARGON2_COST // 65536 + 1),
    "argon2, no pass": changed("keyslots 0 kdf time", 0),
    "argon2, no lane": changed("keyslots 0 kdf cpus", 0),
    "argon2, a lane too many": changed("keyslots 0 kdf cpus", MAX_ARGON2_CPUS + 1),
    "argon2, 2^62 lanes": changed("keyslots 0 kdf cpus", 1 << 62),
    "argon2 with a short salt": changed("keyslots 0 kdf salt", b64(b"7 bytes")),
    "salt that is not base64": changed("keyslots 0 kdf salt", "@@@@"),
    "salt that is not ASCII": changed("keyslots 0 kdf salt", "\xe9\xe9\xe9\xe9"),
    "salt without padding": changed("keyslots 1 kdf salt", "QUI"),
    "salt with a line end": changed("keyslots 1 kdf salt", "QUJD\n"),
    "pbkdf2, no iteration": changed("keyslots 1 kdf iterations", 0),
    "pbkdf2, too many iterations": changed("keyslots 1 kdf iterations", MAX_ITERATIONS + 1),
    "digest, no iteration": changed("digests 0 iterations", 0),
    "digest, too many iterations": changed("digests 0 iterations", 1 << 62),
    "no stripe": changed("keyslots 0 af stripes", 0),
    "too many stripes": changed("keyslots 0 af stripes", MAX_STRIPES + 1),
    "key of 0 bytes": changed("keyslots 0 key_size", 0),
    "key of 2^62 bytes": changed("keyslots 0 key_size", 1 << 62),
    "key of 16 bytes for XTS": changed("keyslots 0 key_size", 16),
    "key of a slot's cipher of 16 bytes": changed("keyslots 0 area key_size", 16),
    "area smaller than its material": changed("keyslots 0 area size", "255999"),
    "area in the header": changed("keyslots 0 area offset", "32767"),
    "area at 0": changed("keyslots 0 area offset", "0"),
    "area at 2^63-1": changed("keyslots 0 area offset", str((1 << 63) - 1)),
    "area over the payload's begin": changed("keyslots 0 area offset", str(16 * MIB - 255999)),
    "sector_size 0": changed("segments 0 sector_size", 0),
    "sector_size 256": changed("segments 0 sector_size", 256),
    "sector_size 8192": changed("segments 0 sector_size", 8192),
    "payload at 0": changed("segments 0 offset", "0"),
    "payload in the header": changed("segments 0 offset", "32256"),
    "payload at a byte": changed("segments 0 offset", str(16 * MIB + 1)),
    "payload at 2^63": changed("segments 0 offset", str(1 << 63)),
    "payload of no bytes": changed("segments 0 size", "0"),
    "payload of 513 bytes": changed("segments 0 size", "513"),
    "payload of half a sector": changed("segments 0", SEGMENT | {"sector_size": 4096, "size": "6144"}),
    "payload of 2^63 bytes": changed("segments 0 size", str(1 << 63)),
    "number with a sign": changed("segments 0 offset", "+16777216"),
    "number with a blank": changed("segments 0 offset", " 16777216"),
    "number with an underline": changed("segments 0 offset", "16_777_216"),
    "number in Arabic": changed("segments 0 offset", "١٦٧٧٧٢١٦"),
    "number with a line end": changed("segments 0 offset", "16777216\n"),
    "number with 5000 digits": changed("segments 0 offset", "1" * 5000),
    "iv_tweak of 2^64": changed("segments 0 iv_tweak", str(1 << 64)),
    "no digest": document(digests={}),
    "digest of another segment": changed("digests 0 segments", ["1"]),
    "slot called x": with_slot_called("x"),
    "slot called -1": with_slot_called("-1"),
    "slot called ²": with_slot_called("²"),
    "slot called 1000": with_slot_called("1000"),
    "slot called 32": with_slot_called("32"),
    "slot called 00": with_slot_called("00"),
    "slots that nobody asks for": changed("keyslots nobody's", {}),
    "digest of no bytes, which fits every key": changed("digests 0 digest", ""),
    "digest of one byte": changed("digests 0 digest", b64(b"1")),
    "digest that takes for ever": changed("digests 0 digest", b64(bytes(65))),
    "salt of 257 bytes": changed("digests 0 salt", b64(bytes(257))),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_luks2_header_is_refused(case: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(IMPOSSIBLE[case])
    assert not isinstance(caught.value, UnsupportedFeature)
    assert len(str(caught.value)) < 300


def test_extremes_of_luks2_that_can_be_are_read() -> None:
    assert parse(changed("segments 0 iv_tweak", str((1 << 63) - 1))).iv_tweak == (1 << 63) - 1
    assert parse(changed("keyslots 0 kdf memory", 16)).keyslots[0].kdf == Argon2("argon2id", b"\x11" * 32, 4, 16, 2)
    assert parse(changed("keyslots 0 kdf time", MAX_ARGON2_COST // 65536)).keyslots[0].number == 0
    assert parse(changed("digests 0 keyslots", [])).key_sizes == (32, 48, 64)
    assert parse(document(keyslots={})).keyslots == ()
    assert parse(changed("keyslots 1 priority", 0)).keyslots[1].priority == 0
    assert parse(changed("config requirements", {"mandatory": []})) == parse(document())
    assert parse(changed("segments 0 size", "4096")).payload_size == 4096
    assert parse(changed("segments 0", document()["segments"]["0"] | {"sector_size": 4096})).sector_size == 4096
    # Slots that are not of the segment's key do not count.
    assert parse(changed("keyslots 3", {"type": "luks2"})) == parse(document())
