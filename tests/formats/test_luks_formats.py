"""LUKS headers: what is written is read back, what cannot be is refused, and what opens an image opens it.

The headers and encrypted payloads here are made from the specifications with struct, json and OpenSSL's modes.
"""

from __future__ import annotations

import base64
import copy as copying
import hashlib
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from hypothesis import given, settings
from hypothesis import strategies as st

import mystfuse.image.keys
import mystfuse.image.unlock
from mystfuse.crypto.key_derivation import split_key
from mystfuse.crypto.secret import Secret
from mystfuse.crypto.sectors import XtsCipher
from mystfuse.devices.device import Extent
from mystfuse.errors import FormatError, ImageReadError, IntegrityError, MystfuseError, UnsupportedFeature, WrongKey
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
from mystfuse.formats.luks1 import keyslot_offset, pack_luks1, parse_luks1, payload_offset_for
from mystfuse.formats.luks2 import HEADER_SIZES, HeaderCopy, pack_luks2, parse_luks2
from mystfuse.image.keys import Keys, derive_key
from mystfuse.image.unlock import Unlocked, read_luks_header, unlock
from tests.support.ext2_editor import MemoryDevice

CIPHERS = {
    "aes-xts-plain64": (32, 48, 64),
    "aes-xts-plain": (32, 48, 64),
    "aes-cbc-essiv:sha256": (16, 24, 32),
    "aes-cbc-plain64": (16, 24, 32),
    "aes-cbc-plain": (16, 24, 32),
    "aes-ecb": (16, 24, 32),
}
XTS = CipherSpec("xts", "plain64")
MIB = 1 << 20
U32 = (1 << 32) - 1


def randbytes(size: int, seed: object = 0) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


def read(data: bytes) -> LuksHeader | None:
    """What ``read_luks_header`` finds on a device with these bytes."""
    return trio.run(read_luks_header, MemoryDevice(data))


# -- LUKS1, from figures 1 and 2 of the specification


def luks1_slot(**fields: Any) -> bytes:
    values = {"active": 0x00AC71F3, "iterations": 1000, "salt": b"\x11" * 32, "offset": 8, "stripes": 4000} | fields
    return struct.pack(">II32sII", *values.values())


DISABLED = luks1_slot(active=0x0000DEAD, iterations=0, salt=b"", offset=8)


def luks1(slots: dict[int, bytes] | None = None, **fields: Any) -> bytes:
    """A good header whose slot 0 is active, with some fields different."""
    values = {
        "magic": b"LUKS\xba\xbe",
        "version": 1,
        "cipher_name": b"aes",
        "cipher_mode": b"xts-plain64",
        "hash_spec": b"sha256",
        "payload_offset": 4096,
        "key_bytes": 64,
        "mk_digest": b"\x22" * 20,
        "mk_digest_salt": b"\x33" * 32,
        "mk_digest_iter": 1000,
        "uuid": b"01234567-89ab-cdef-0123-456789abcdef",
    } | fields
    header = struct.pack(">6sH32s32s32sII20s32sI40s", *values.values())
    all_slots = {0: luks1_slot()} | (slots or {})
    return header + b"".join(all_slots.get(number, DISABLED) for number in range(8))


def test_the_fields_of_luks1_lie_where_the_specification_has_them() -> None:
    header = parse_luks1(luks1({5: luks1_slot(iterations=77, salt=b"\x44" * 32, offset=600, stripes=12)}))
    assert header == LuksHeader(
        version=1,
        uuid="01234567-89ab-cdef-0123-456789abcdef",
        cipher=CipherSpec("xts", "plain64"),
        key_sizes=(64,),
        payload_offset=2 * MIB,
        payload_size=None,
        sector_size=512,
        iv_tweak=0,
        keyslots=(
            Keyslot(0, Pbkdf2("sha256", b"\x11" * 32, 1000), 64, XTS, 64, 4096, 4000, "sha256"),
            Keyslot(5, Pbkdf2("sha256", b"\x44" * 32, 77), 64, XTS, 64, 600 * 512, 12, "sha256"),
        ),
        digest=KeyDigest(Pbkdf2("sha256", b"\x33" * 32, 1000), b"\x22" * 20),
    )


@st.composite
def luks1_headers(draw: st.DrawFn) -> LuksHeader:
    cipher_name = draw(st.sampled_from(list(CIPHERS)))
    cipher, key_size = CipherSpec.parse(cipher_name), draw(st.sampled_from(CIPHERS[cipher_name]))
    hash_name, salts = draw(st.sampled_from(list(HASHES))), st.binary(min_size=32, max_size=32)
    iterations = st.integers(1, MAX_ITERATIONS // 4)
    slots = [
        Keyslot(
            number,
            Pbkdf2(hash_name, draw(salts), draw(iterations)),
            key_size,
            cipher,
            key_size,
            keyslot_offset(number, key_size),
            draw(st.integers(1, 4000)),
            hash_name,
        )
        for number in sorted(draw(st.sets(st.integers(0, 7))))
    ]
    return LuksHeader(
        version=1,
        uuid=draw(st.uuids()).hex,
        cipher=cipher,
        key_sizes=(key_size,),
        payload_offset=payload_offset_for(key_size),
        payload_size=None,
        sector_size=512,
        iv_tweak=0,
        keyslots=tuple(slots),
        digest=KeyDigest(Pbkdf2(hash_name, draw(salts), draw(iterations)), draw(st.binary(min_size=20, max_size=20))),
    )


@given(luks1_headers())
@settings(deadline=None)
def test_a_luks1_header_is_read_back_as_it_was_written(header: LuksHeader) -> None:
    packed = pack_luks1(header)
    assert len(packed) == 592
    assert parse_luks1(packed) == header
    assert read(packed.ljust(8 * MIB, b"\0")) == header


def test_a_luks1_header_is_written_as_cryptsetup_does() -> None:
    header = parse_luks1(luks1())
    disabled = {
        number: luks1_slot(active=0xDEAD, iterations=0, salt=b"", offset=8 + 504 * number) for number in range(1, 8)
    }
    # A slot of 64 * 4000 bytes takes 504 sectors: 500 rounded up to 4 KiB.
    assert pack_luks1(header) == luks1(disabled)
    assert payload_offset_for(64) == 2 * MIB and payload_offset_for(32) == 2 * MIB


BAD_LUKS1: dict[str, tuple[bytes, str]] = {
    "magic": (luks1(magic=b"LUKS\xba\xbf"), "not a LUKS1"),
    "version 2": (luks1(version=2), "not a LUKS1"),
    "key_bytes 0": (luks1(key_bytes=0), "0 bytes for aes-xts-plain64"),
    "key_bytes 15": (luks1(key_bytes=15), "15 bytes for aes-xts-plain64"),
    "key_bytes 16, for XTS": (luks1(key_bytes=16), "16 bytes"),
    "key_bytes 64, for CBC": (luks1(key_bytes=64, cipher_mode=b"cbc-plain"), "64 bytes for aes-cbc-plain"),
    "key_bytes 2^32-1": (luks1(key_bytes=U32), "4294967295 bytes"),
    "digest iterations 0": (luks1(mk_digest_iter=0), "0 PBKDF2"),
    "digest iterations 2^32-1": (luks1(mk_digest_iter=U32), "4294967295 PBKDF2"),
    "digest iterations too many": (luks1(mk_digest_iter=MAX_ITERATIONS + 1), "100000001 PBKDF2"),
    "slot iterations 0": (luks1({3: luks1_slot(iterations=0)}), "0 PBKDF2"),
    "slot iterations 2^32-1": (luks1({3: luks1_slot(iterations=U32)}), "4294967295 PBKDF2"),
    "stripes 0": (luks1({3: luks1_slot(stripes=0)}), "slot 3: 0 stripes"),
    "stripes 2^32-1": (luks1({3: luks1_slot(stripes=U32)}), "slot 3: 4294967295 stripes"),
    "stripes too many": (luks1({3: luks1_slot(stripes=MAX_STRIPES + 1)}), "slot 3: 65537 stripes"),
    "material at 0": (luks1({3: luks1_slot(offset=0)}), "slot 3: its key material"),
    "material in the header": (luks1({3: luks1_slot(offset=1)}), "slot 3: its key material"),
    "material at 2^32-1": (luks1({3: luks1_slot(offset=U32)}), "slot 3: its key material"),
    "material in the payload": (luks1({3: luks1_slot(offset=4096)}), "slot 3: its key material"),
    "material over the payload's begin": (luks1({3: luks1_slot(offset=4096 - 499)}), "slot 3: its key material"),
    "payload at 0": (luks1(payload_offset=0), "payload"),
    "payload in the header": (luks1(payload_offset=1), "payload"),
    "payload at 0, no slot": (luks1({0: DISABLED}, payload_offset=0), "in the header"),
    "payload in the header, no slot": (luks1({0: DISABLED}, payload_offset=1), "in the header"),
    "payload before the material": (luks1(payload_offset=8), "key material"),
    "slot neither enabled nor disabled": (luks1({7: luks1_slot(active=0x00AC71F4)}), "slot 7: neither"),
    "slot active 0": (luks1({7: luks1_slot(active=0)}), "0x00000000"),
    "slot active 2^32-1": (luks1({7: luks1_slot(active=U32)}), "0xffffffff"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LUKS1)
def test_a_luks1_header_that_cannot_be_is_refused(case: str) -> None:
    header, said = BAD_LUKS1[case]
    with pytest.raises(FormatError, match=said) as caught:
        parse_luks1(header)
    assert not isinstance(caught.value, UnsupportedFeature)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"cipher_name": b"twofish"}, "twofish-xts-plain64"),
        ({"cipher_name": b"AES"}, "AES-xts-plain64"),
        ({"cipher_name": b""}, "'-xts-plain64'"),
        ({"cipher_mode": b"lrw-benbi"}, "aes-lrw-benbi"),
        ({"cipher_mode": b"xts-plain65"}, "aes-xts-plain65"),
        ({"cipher_mode": b"xts-essiv:sha256"}, "aes-xts-essiv:sha256"),
        ({"cipher_mode": b"cbc-essiv:sha1"}, "aes-cbc-essiv:sha1"),
        ({"cipher_mode": b"plain"}, "aes-plain"),
        ({"cipher_mode": b""}, "'aes-'"),
        ({"cipher_mode": b"x" * 32}, "aes-" + "x" * 32),
        ({"hash_spec": b"whirlpool"}, "whirlpool"),
        ({"hash_spec": b"md5"}, "md5"),
        ({"hash_spec": b""}, "''"),
        ({"cipher_name": b"a\xe9s\x1b[2J\n"}, r"a\\xe9s\x1b[2J\n"),
        ({"hash_spec": b"\xff" * 32}, r"\\xff"),
    ],
)
def test_what_luks1_has_and_we_do_not_is_named(fields: dict[str, bytes], named: str) -> None:
    for slots in (None, {0: DISABLED}):
        with pytest.raises(UnsupportedFeature) as caught:
            parse_luks1(luks1(slots, **fields))
        assert named in str(caught.value)
        assert str(caught.value).isprintable()


def test_extremes_of_luks1_that_can_be_are_read() -> None:
    header = parse_luks1(
        luks1({0: luks1_slot(stripes=1, iterations=1, offset=2), 1: luks1_slot(stripes=4000, offset=4096 - 500)})
    )
    assert [slot.stripes for slot in header.keyslots] == [1, 4000]
    # Of a slot that is not in use nothing counts.
    garbage = luks1_slot(active=0xDEAD, iterations=U32, offset=U32, stripes=U32)
    assert parse_luks1(luks1(dict.fromkeys(range(8), garbage))).keyslots == ()
    assert parse_luks1(luks1(hash_spec=b"SHA512")).digest.kdf.hash_name == "sha512"
    assert parse_luks1(luks1(uuid=b"\xff\n" * 20)).uuid == "\\xff\n" * 20
    for name, sizes in CIPHERS.items():
        for size in sizes:
            mode = name.removeprefix("aes-").encode()
            parsed = parse_luks1(luks1(cipher_mode=mode, key_bytes=size))
            assert (str(parsed.cipher), parsed.key_sizes) == (name, (size,))


def test_a_luks1_header_cut_short_is_refused() -> None:
    whole = luks1()
    for length in range(592):
        with pytest.raises(FormatError):
            parse_luks1(whole[:length])
        if length >= 8:
            with pytest.raises(FormatError):
                read(whole[:length])
    assert parse_luks1(whole + b"anything") == parse_luks1(whole)


@given(st.lists(st.tuples(st.integers(0, 591), st.integers(1, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=300)
def test_bytes_flipped_in_a_luks1_header_raise_format_errors_or_nothing(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(luks1())
    for position, mask in flips:
        damaged[position] ^= mask
    try:
        header = parse_luks1(bytes(damaged))
        header.check_fits(16 * MIB)
    except FormatError:
        return
    check_sane(header)


def test_payload_and_key_material_must_be_there() -> None:
    header = parse_luks1(luks1())
    assert header.check_fits(2 * MIB + 512) == 512
    assert header.check_fits(2 * MIB + 5000) == 4608
    for size in (0, 1, 592, 4096, MIB, 2 * MIB - 512, 2 * MIB):
        with pytest.raises(FormatError):
            header.check_fits(size)
    far = parse_luks1(luks1(payload_offset=U32))
    assert far.payload_offset == U32 * 512
    for size in (0, 16 * MIB, U32 * 512):
        with pytest.raises(FormatError, match="truncated"):
            far.check_fits(size)
    assert far.check_fits(U32 * 512 + 512) == 512


def test_a_payload_of_a_given_size_must_fit() -> None:
    header = replace(parse_luks1(luks1()), payload_size=8192, sector_size=4096)
    assert header.check_fits(2 * MIB + 8192) == 8192
    assert header.check_fits(3 * MIB) == 8192
    for size in (2 * MIB, 2 * MIB + 4096, 2 * MIB + 8191):
        with pytest.raises(FormatError):
            header.check_fits(size)


def check_sane(header: LuksHeader) -> None:
    """Nothing of a header that was accepted is out of bounds."""
    assert header.payload_offset >= 592
    assert header.payload_size is None or header.payload_size % header.sector_size == 0 < header.payload_size
    assert header.sector_size in (512, 1024, 2048, 4096)
    assert 0 <= header.iv_tweak < 1 << 63
    assert set(header.key_sizes) <= set(CIPHERS[str(header.cipher)])
    for kdf in (header.digest.kdf, *(slot.kdf for slot in header.keyslots)):
        if isinstance(kdf, Pbkdf2):
            assert kdf.hash_name in HASHES and 1 <= kdf.iterations <= MAX_ITERATIONS
        else:
            assert kdf.variant in ("argon2i", "argon2id") and len(kdf.salt) >= 8
            assert 1 <= kdf.cpus <= MAX_ARGON2_CPUS and 8 * kdf.cpus <= kdf.memory <= MAX_ARGON2_MEMORY
            assert kdf.time >= 1 and kdf.time * kdf.memory <= MAX_ARGON2_COST
    for slot in header.keyslots:
        assert slot.key_size in header.key_sizes and slot.cipher_key_size in slot.cipher.key_sizes
        assert slot.af_hash in HASHES and 1 <= slot.stripes <= MAX_STRIPES
        assert slot.offset > 0 and slot.offset + slot.material_size <= header.payload_offset


# -- LUKS2, from section 2 and 3 of the specification


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def document(**changes: Any) -> dict[str, Any]:
    """A good JSON area with two slots of ours, one of another type and one of another key."""

    def slot(kdf: dict[str, Any], offset: int, **fields: Any) -> dict[str, Any]:
        return {
            "type": "luks2",
            "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw",
                "offset": str(offset),
                "size": "258048",
                "encryption": "aes-xts-plain64",
                "key_size": 64,
            },
            "kdf": kdf,
            **fields,
        }

    salt = b64(b"\x11" * 32)
    return {
        "keyslots": {
            "0": slot({"type": "argon2id", "time": 4, "memory": 65536, "cpus": 2, "salt": salt}, 32768),
            "1": slot({"type": "pbkdf2", "hash": "sha512", "iterations": 1000, "salt": salt}, 290816, priority=2),
            "2": {"type": "reencrypt", "mode": "encrypt"},
            "3": slot({"type": "nobody knows"}, 0),
        },
        "tokens": {"0": {"type": "systemd-tpm2", "keyslots": ["1"]}},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": str(16 * MIB),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": "aes-xts-plain64",
                "sector_size": 512,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": ["0", "1", "2"],
                "segments": ["0"],
                "hash": "sha256",
                "iterations": 1000,
                "salt": salt,
                "digest": b64(b"\x22" * 32),
            },
            "1": {"type": "pbkdf2", "keyslots": ["3"], "segments": []},
        },
        "config": {"json_size": "12288", "keyslots_size": str(16 * MIB - 32768)},
    } | changes


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good JSON area with one thing in it replaced; ``path`` is joined by blanks."""
    result = document()
    *way, last = path.split()
    place: Any = result
    for name in way:
        place = place[name]
    place[last] = value
    return result


def luks2_copy(
    json_area: dict[str, Any] | bytes, offset: int = 0, size: int = 0x4000, seqid: int = 1, **fields: Any
) -> bytes:
    """One copy of the header, with its checksum."""
    values = {
        "magic": b"SKUL\xba\xbe" if offset else b"LUKS\xba\xbe",
        "version": 2,
        "hdr_size": size,
        "seqid": seqid,
        "label": b"label",
        "csum_alg": b"sha256",
        "salt": bytes([1 + bool(offset)]) * 64,
        "uuid": b"01234567-89ab-cdef-0123-456789abcdef",
        "subsystem": b"",
        "hdr_offset": offset,
    } | fields
    if isinstance(json_area, dict):
        json_area = json.dumps(json_area).encode()
    header = struct.pack(">6sHQQ48s32s64s40s48sQ", *values.values())
    copy = bytearray((header.ljust(4096, b"\0") + json_area).ljust(size, b"\0"))
    assert len(copy) == size
    return with_checksum(copy)


def with_checksum(copy: bytearray) -> bytes:
    copy[0x1C0:0x200] = bytes(64)
    algorithm = bytes(copy[0x48:0x68]).rstrip(b"\0").decode("latin-1")
    digest = hashlib.new(algorithm if algorithm in HASHES else "sha256", copy).digest()
    copy[0x1C0 : 0x1C0 + len(digest)] = digest
    return bytes(copy)


def luks2(json_area: dict[str, Any] | bytes | None = None, size: int = 0x4000) -> bytes:
    """Both copies."""
    area = document() if json_area is None else json_area
    return luks2_copy(area, size=size) + luks2_copy(area, size, size)


COPY = HeaderCopy(0, 0x4000, 1, "uuid", "sha256")


def checked(copy: HeaderCopy, data: bytes) -> dict[str, Any]:
    copy.check(data)
    return copy.document(data)


def parse(json_area: dict[str, Any]) -> LuksHeader:
    return parse_luks2(COPY, json_area)


GOOD_LUKS2 = LuksHeader(
    version=2,
    uuid="01234567-89ab-cdef-0123-456789abcdef",
    cipher=XTS,
    key_sizes=(64,),
    payload_offset=16 * MIB,
    payload_size=None,
    sector_size=512,
    iv_tweak=0,
    keyslots=(
        Keyslot(0, Argon2("argon2id", b"\x11" * 32, 4, 65536, 2), 64, XTS, 64, 32768, 4000, "sha256", 1),
        Keyslot(1, Pbkdf2("sha512", b"\x11" * 32, 1000), 64, XTS, 64, 290816, 4000, "sha256", 2),
    ),
    digest=KeyDigest(Pbkdf2("sha256", b"\x11" * 32, 1000), b"\x22" * 32),
)


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
@settings(deadline=None)
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


@pytest.mark.parametrize("algorithm", HASHES)
def test_headers_with_every_checksum_are_read(algorithm: str) -> None:
    data = luks2_copy(document(), csum_alg=algorithm.encode())
    assert read(data) == GOOD_LUKS2
    for position in (0x1C0, 0x1C0 + hashlib.new(algorithm).digest_size - 1, 0x1BF, 0x200, 0x3FFF):
        with pytest.raises(FormatError):
            read(flipped(data, position))


def flipped(data: bytes, *positions: int) -> bytes:
    changed = bytearray(data)
    for position in positions:
        changed[position] ^= 1
    return bytes(changed)


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
    "nested objects": b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
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
    # A good second one counts.
    assert read(data + luks2_copy(document_for(size), size, size)) is not None


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


def test_a_wrong_checksum_is_told() -> None:
    data = luks2_copy(document())
    for position in (0x20, 0x68, 0x1C0, 0x1DF, 0x200, 4096, 0x3FFF):
        copy = HeaderCopy.parse(data, 0)
        assert copy is not None
        with pytest.raises(FormatError, match="checksum"):
            checked(copy, flipped(data, position))
    # Behind a SHA-256 the field has 32 bytes more, which do not count.
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


# What is not in the good JSON area, and what the refusal names.
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
def test_what_luks2_has_and_we_do_not_is_named(case: str) -> None:
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
def test_a_luks2_header_that_cannot_be_is_refused(case: str) -> None:
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
    # Slots that are not of the segment's key are not looked at.
    assert parse(changed("keyslots 3", {"type": "luks2"})) == parse(document())


@pytest.mark.parametrize(
    "path",
    [
        "keyslots 0 af stripes",
        "keyslots 0 kdf time",
        "keyslots 0 kdf cpus",
        "keyslots 1 kdf iterations",
        "keyslots 1 priority",
        "digests 0 iterations",
    ],
)
@pytest.mark.parametrize("value", [True, "1", 1.0, [1], None])
def test_what_python_takes_for_a_one_is_none(path: str, value: Any) -> None:
    parse(changed(path, 1))
    with pytest.raises(FormatError):
        parse(changed(path, value))


BAD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 513, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1 << 64, -(1 << 63), 10**400,
    0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "0", "1", "-1", "x", "dynamic", "luks2", "aes-ecb", "aes-cbc-plain", "pbkdf2", "argon2i", "sha1",
    "9" * 20, str(1 << 62), "99999999999999999999999", "\0", "é", "\ud800", "a" * 100_000, "AAAA", "A", "====",
    [], [None], [1], ["0"], ["0", 1], [["0"]], [{}], {}, {"0": {}}, {"0": None}, {"type": "crypt"}, {"mandatory": "x"},
    {"mandatory": [1]}, {"0": {"segments": ["0"]}}, [[]] * 1000,
]  # fmt: skip


def paths(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of everything in a JSON document, beginning with the document itself."""
    yield way
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield from paths(member, (*way, name))


def mutants(good: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every document that has one thing of ``good`` missing, added to or replaced by each of the bad values."""
    for *way, last in (path for path in paths(good) if path):
        for value in ["missing", "twice", *BAD_VALUES]:
            mutant = copying.deepcopy(good)
            place: Any = mutant
            for name in way:
                place = place[name]
            if value == "missing":
                del place[last]
            elif value == "twice":
                if isinstance(place, list):
                    place.append(place[last])
                else:
                    place["9"] = place[last]
            else:
                place[last] = value
            yield f"{way} {last}: {value!r:.60}", mutant


MUTATED = {
    "two slots": document(),
    "requirements": changed("config requirements", {"mandatory": []}),
    "integrity": changed("segments 0 integrity", {"type": "none", "journal_encryption": "none"}),
    "no slot": document(keyslots={}, segments={"0": document()["segments"]["0"] | {"size": "1048576"}}),
}


@pytest.mark.parametrize("case", MUTATED)
def test_every_field_missing_or_bad_raises_format_errors_or_nothing(case: str) -> None:
    refused = accepted = 0
    for what, mutant in mutants(MUTATED[case]):
        try:
            header = parse(mutant)
            header.check_fits(32 * MIB)
        except FormatError as error:
            refused += 1
            assert len(str(error)) < 400, what
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        else:
            accepted += 1
            check_sane(header)
    assert refused > 100 and accepted > (0 if case == "integrity" else 100)


def test_every_field_that_is_needed_is_needed() -> None:
    """What of the good JSON area may be missing is what the specification calls optional, or is of no use to us."""
    unneeded = set()
    for path in paths(document()):
        if path:
            mutant = document()
            *way, last = path
            place: Any = mutant
            for name in way:
                place = place[name]
            del place[last]
            try:
                parse(mutant)
            except FormatError:
                continue
            unneeded.add(" ".join(map(str, path)))
    others = {path for path in unneeded if path.split()[0] == "tokens" or path.startswith(("keyslots 2", "keyslots 3"))}
    assert unneeded - others == {
        "keyslots 0",
        "keyslots 1",
        "keyslots 1 priority",
        "digests 0 keyslots 0",
        "digests 0 keyslots 1",
        "digests 0 keyslots 2",
        "digests 1",
        "digests 1 type",
        "digests 1 keyslots",
        "digests 1 keyslots 0",
        "digests 1 segments",
        "config json_size",
        "config keyslots_size",
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["0", "crypt"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["0", "config", "segments", "digests", "keyslots", "type", "offset", "x"]),
                inner,
                max_size=5,
            )
        ),
    )
)
@settings(deadline=None, max_examples=60)
def test_any_json_raises_format_errors(value: Any) -> None:
    area = json.dumps(value).encode().replace(b"\0", b" ")
    with pytest.raises(FormatError):
        read(luks2(area, 0x8000))


# -- finding the header


@given(
    st.lists(
        st.tuples(st.integers(0, 0x7FFF) | st.integers(0, 0x1FF) | st.integers(0x4000, 0x41FF), st.integers(1, 255)),
        min_size=1,
        max_size=8,
    )
)
@settings(deadline=None, max_examples=300)
def test_bytes_flipped_in_a_luks2_header_leave_it_as_it_was_or_refused(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(luks2())
    for position, mask in flips:
        damaged[position] ^= mask
    try:
        header = read(bytes(damaged))
    except FormatError:
        # Neither is as it was, or the first one's version says that it is not LUKS2.
        first, second = luks2()[:0x4000], luks2()[0x4000:]
        assert (damaged[:0x4000] != first and damaged[0x4000:] != second) or damaged[6:8] != b"\0\2"
    else:
        if header is None:
            # Nothing of it can be told any more.
            assert damaged[:6] != b"LUKS\xba\xbe"
            assert HeaderCopy.parse(bytes(damaged[0x4000:]), 0x4000) is None
        else:
            assert header == GOOD_LUKS2


AREA_SIZE = len(json.dumps(document()))


@given(st.lists(st.tuples(st.integers(0, AREA_SIZE - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_bytes_changed_under_a_good_checksum_raise_format_errors_or_nothing(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(luks2_copy(document()))
    for position, value in changes:
        damaged[4096 + position] = value
    try:
        header = read(with_checksum(damaged))
        assert header is not None
        header.check_fits(32 * MIB)
    except FormatError:
        return
    check_sane(header)


def test_either_luks2_header_will_do() -> None:
    whole = luks2()
    assert read(whole) == GOOD_LUKS2
    for position in (0, 5, 9, 0x40, 0x100, 0x1C5, 0xFFF, 4096, 5000, 0x3FFF):
        for begin in (0, 0x4000):
            assert read(flipped(whole, begin + position)) == GOOD_LUKS2, (begin, position)
        with pytest.raises(FormatError):
            # The sizes must be believed to find a damaged one at all; the magic of the first is still there.
            read(flipped(whole, max(position, 9), 0x4000 + position))
    assert read(bytes(0x4000) + whole[0x4000:]) == GOOD_LUKS2
    assert read(b"\xff" * 0x4000 + whole[0x4000:]) == GOOD_LUKS2
    assert read(whole[:0x4000]) == GOOD_LUKS2
    assert read(whole[:0x4000] + b"\xff" * 0x4000) == GOOD_LUKS2
    assert read(bytes(0x8000)) is None


def test_a_header_cut_short_is_refused() -> None:
    whole = luks2()
    for length in (8, 511, 512, 4095, 4096, 5000, 0x3FFF):
        with pytest.raises(FormatError):
            read(whole[:length])
    for length in (0x4000, 0x4001, 0x4200, 0x5000, 0x7FFF, 0x8000):
        assert read(whole[:length]) == GOOD_LUKS2


@pytest.mark.parametrize("first, second", [(1, 2), (2, 1), (0, (1 << 64) - 1), ((1 << 63), (1 << 63) - 1), (5, 5)])
def test_the_newer_header_counts(first: int, second: int) -> None:
    copies = luks2_copy(document(), seqid=first) + luks2_copy(
        changed("segments 0 iv_tweak", "4096"), 0x4000, seqid=second
    )
    header = read(copies)
    assert header is not None and header.iv_tweak == (4096 if second > first else 0)
    # But not when it is damaged.
    for position, tweak in (0x2000, 4096), (0x6000, 0):
        header = read(flipped(copies, position))
        assert header is not None and header.iv_tweak == tweak


def test_the_second_header_is_where_the_first_says() -> None:
    """A newer one elsewhere is what has been left from before."""
    stale = luks2_copy(changed("segments 0 iv_tweak", "8"), 0x8000, 0x8000, seqid=9)
    assert read(luks2() + stale) == GOOD_LUKS2
    assert read(luks2_copy(document()) + bytes(0x4000) + stale) == GOOD_LUKS2


def test_an_ext2_file_system_is_not_luks() -> None:
    superblock = bytearray(0x8000)
    superblock[1080:1082] = b"\x53\xef"
    assert read(bytes(superblock)) is None
    # Also where an old second header was left behind it.
    assert read(bytes(superblock[:0x4000]) + luks2()[0x4000:]) is None
    # But LUKS comes first.
    superblock[:0x3FF] = luks2()[:0x3FF]
    with pytest.raises(FormatError):
        read(bytes(superblock))


@pytest.mark.parametrize("version", [0, 3, 4, 255, 256, 258, 513, 65535])
def test_other_versions_of_luks_are_refused(version: int) -> None:
    for data in (luks2_copy(document(), version=version), luks1(version=version).ljust(0x8000, b"\0")):
        with pytest.raises(FormatError, match=f"version {version};"):
            read(data)


@pytest.mark.parametrize(
    "content", [b"\0", b"\xff", b"LUKS\xba\xbe\0\1", b"LUKS\xba\xbe\0\2", b"SKUL\xba\xbe\0\2", b"LUKS\xba\xbe"]
)
def test_small_devices_are_no_luks_or_refused(content: bytes) -> None:
    whole = content.ljust(5000, b"\0") if len(content) > 1 else content * 5000
    for size in (*range(16), *range(16, 1100, 17), *range(1070, 1090), *range(1100, 5001, 99), 4095, 4096, 4097, 5000):
        try:
            assert read(whole[:size]) is None
        except FormatError:
            assert size >= 6 and content.startswith(b"LUKS")


async def test_what_cannot_be_read_is_not_taken_for_anything() -> None:
    with pytest.raises(IntegrityError):
        await read_luks_header(MemoryDevice(luks2(), [range(4095, 4096)]))
    # Damage elsewhere is not met.
    assert await read_luks_header(MemoryDevice(luks2() + bytes(MIB), [range(0x8000, MIB)])) == GOOD_LUKS2


# -- the key


KEY = randbytes(64, "master key")
DIGITS = KEY.hex().encode()
PASSPHRASE = b"correct horse battery"
PAYLOAD = randbytes(40_960, "payload")
SLOTS_OFFSET, PAYLOAD_OFFSET = 4096, 64 << 10


def encrypt(cipher: str, key: bytes, data: bytes, sector_size: int = 512, iv_tweak: int = 0) -> bytes:
    """As dm-crypt, sector by sector, with OpenSSL's modes."""
    _, chain_mode, *iv_mode = cipher.split("-", 2)
    encrypted = b""
    for start in range(0, len(data), sector_size):
        vector = (start // 512 + iv_tweak).to_bytes(16, "little")
        if iv_mode == ["essiv:sha256"]:
            vector = Cipher(AES(hashlib.sha256(key).digest()), modes.ECB()).encryptor().update(vector)
        mode = {"xts": modes.XTS, "cbc": modes.CBC, "ecb": lambda _: modes.ECB()}[chain_mode](vector)
        encrypted += Cipher(AES(key), mode).encryptor().update(data[start : start + sector_size])
    return encrypted


@cache
def locked(
    passphrases: tuple[bytes, ...] = (PASSPHRASE,),
    cipher: str = "aes-xts-plain64",
    key: bytes = KEY,
    stripes: int = 5,
    sector_size: int = 512,
    iv_tweak: int = 0,
    slot_cipher: str = "",
) -> tuple[LuksHeader, bytes]:
    """A header with a slot for each passphrase, and the device it belongs to; few iterations, to be fast."""
    spec, slot_spec = CipherSpec.parse(cipher), CipherSpec.parse(slot_cipher or cipher)
    slot_key_size = 64 if slot_spec.chain_mode == "xts" else 32
    device, slots = bytearray(PAYLOAD_OFFSET), []
    for number, passphrase in enumerate(passphrases):
        kdf = Pbkdf2("sha1", randbytes(32, number), 20 + number)
        slot = Keyslot(number, kdf, len(key), slot_spec, slot_key_size, SLOTS_OFFSET + number * 4096, stripes, "sha512")
        slot_key = hashlib.pbkdf2_hmac("sha1", passphrase, kdf.salt, kdf.iterations, slot_key_size)
        material = split_key(memoryview(key), stripes, "sha512", randbytes)
        material = material.ljust(-(-len(material) // 512) * 512, b"\0")
        if slot_spec == XTS:
            assert XtsCipher(memoryview(slot_key)).encrypt(material, 0) == encrypt(str(slot_spec), slot_key, material)
        device[slot.offset : slot.offset + len(material)] = encrypt(str(slot_spec), slot_key, bytes(material))
        slots.append(slot)
    salt = randbytes(32, "digest")
    digest = KeyDigest(Pbkdf2("sha256", salt, 30), hashlib.pbkdf2_hmac("sha256", key, salt, 30, 32))
    header = LuksHeader(2, "uuid", spec, (len(key),), PAYLOAD_OFFSET, None, sector_size, iv_tweak, tuple(slots), digest)
    return header, bytes(device) + encrypt(cipher, key, PAYLOAD, sector_size, iv_tweak)


class Shown:
    """A progress that notes what is shown."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    @contextmanager
    def __call__(self, text: str, total: int | None) -> Iterator[Callable[[int], None]]:
        self.texts.append(text)
        yield lambda count: None

    @property
    def slots(self) -> list[int]:
        """The slots that were tried."""
        return [int(text.removeprefix("key slot ").split(":")[0]) for text in self.texts]


def open_with(
    image: tuple[LuksHeader, bytes],
    key: bytes | None = None,
    passphrase: bytes | None = None,
    shown: Shown | None = None,
    damaged: tuple[range, ...] = (),
) -> Unlocked:
    """Unlock; whatever happens, the keys must be wiped."""
    keys = Keys(
        None if key is None else Secret.copy_of(key), None if passphrase is None else Secret.copy_of(passphrase)
    )
    header, content = image
    try:
        return trio.run(unlock, MemoryDevice(content, damaged), header, keys, shown or Shown())
    finally:
        for secret in (keys.master_key, keys.passphrase):
            assert secret is None or secret.view == bytes(len(secret))


def check_payload(unlocked: Unlocked) -> None:
    assert unlocked.device.size == len(PAYLOAD)
    (part,) = trio.run(unlocked.device.read, [Extent(0, len(PAYLOAD))])
    assert part == PAYLOAD
    (part,) = trio.run(unlocked.device.read, [Extent(4097, 1000)])
    assert part == PAYLOAD[4097:5097]


@pytest.mark.parametrize(
    "written",
    [KEY, DIGITS, DIGITS.upper(), DIGITS + b"\n", b" \t\r\n" + DIGITS + b"  \n"],
    ids=["binary", "hex", "upper case", "with a line end", "in white space"],
)
def test_the_master_key_opens_in_binary_and_in_hex(written: bytes) -> None:
    unlocked = open_with(locked(), key=written)
    assert unlocked.header == locked()[0]
    check_payload(unlocked)


@pytest.mark.parametrize(
    "cipher, key_size",
    [(name, size) for name, sizes in CIPHERS.items() for size in sizes if (name[:7], size) != ("aes-xts", 48)],
)
def test_every_cipher_opens_with_key_and_passphrase(cipher: str, key_size: int) -> None:
    image = locked(cipher=cipher, key=randbytes(key_size, cipher), stripes=7)
    check_payload(open_with(image, key=randbytes(key_size, cipher)))
    check_payload(open_with(image, passphrase=PASSPHRASE))
    check_payload(open_with(locked(slot_cipher=cipher), passphrase=PASSPHRASE))


@pytest.mark.parametrize("sector_size, iv_tweak", [(512, 123), (1024, 0), (2048, 8), (4096, 0), (4096, 1 << 40)])
@pytest.mark.parametrize("cipher, key_size", [("aes-xts-plain64", 64), ("aes-cbc-essiv:sha256", 32), ("aes-ecb", 16)])
def test_sector_size_and_iv_tweak_are_the_headers(cipher: str, key_size: int, sector_size: int, iv_tweak: int) -> None:
    image = locked(cipher=cipher, key=KEY[:key_size], sector_size=sector_size, iv_tweak=iv_tweak)
    check_payload(open_with(image, key=KEY[:key_size]))


@pytest.mark.parametrize(
    "wrong",
    [
        KEY[:63],
        KEY + b"\n",
        KEY + b"x",
        KEY[:32],
        KEY * 2,
        b"",
        b"\0",
        b"\n" * 130,
        DIGITS[:-1],
        DIGITS[:-2],
        DIGITS + b"00",
        DIGITS + b"\0",
        b"0x" + DIGITS,
        KEY.hex(" ").encode(),
    ],
    ids=lambda wrong: f"{len(wrong)} bytes",
)
def test_a_key_that_cannot_be_one_is_told_at_once(wrong: bytes) -> None:
    header, content = locked()
    # The digest would take a minute.
    kdf = replace(header.digest.kdf, iterations=MAX_ITERATIONS // 2)
    slow = replace(header, digest=replace(header.digest, kdf=kdf))
    begin = time.process_time()
    with pytest.raises(WrongKey, match=rf"{len(wrong)} bytes.* has 64 ") as caught:
        open_with((slow, content), key=wrong)
    assert time.process_time() - begin < 2
    assert "--passphrase-file" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [bytes(64), KEY[::-1], KEY[:-1] + bytes([KEY[-1] ^ 1]), bytes(64).hex().encode(), b"f" * 64], ids=range(5)
)
def test_a_wrong_key_is_told(wrong: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(WrongKey, match="wrong key") as caught:
        open_with(locked(), key=wrong)
    assert time.process_time() - begin < 2
    assert wrong.hex() not in str(caught.value)


def test_what_can_be_a_key_in_two_forms_is_tried_in_both() -> None:
    """64 hex digits are a key of 64 bytes, or one of 32; a header without slots takes both."""
    digits = randbytes(32, "digits").hex().encode()
    for key in (digits, bytes.fromhex(digits.decode())):
        header, content = locked((), key=key)
        check_payload(open_with((replace(header, key_sizes=(32, 48, 64)), content), key=digits))
        if len(key) == 64:
            check_payload(open_with((header, content), key=digits))
    with pytest.raises(WrongKey, match="32 or 48 or 64"):
        open_with((replace(locked()[0], key_sizes=(32, 48, 64)), locked()[1]), key=b"x" * 20)


@pytest.mark.parametrize("stripes", [1, 2, 63, 64])
def test_a_passphrase_opens_its_slot(stripes: int) -> None:
    image = locked((b"first", PASSPHRASE, b"\xff\0\n third"), stripes=stripes)
    for number, passphrase in enumerate((b"first", PASSPHRASE, b"\xff\0\n third")):
        shown = Shown()
        check_payload(open_with(image, passphrase=passphrase, shown=shown))
        assert shown.slots == list(range(number + 1))


def test_a_passphrase_of_a_luks1_header_opens_it() -> None:
    """From the bytes to the payload, with 4000 stripes."""
    key, salt, slot_salt = randbytes(32, "luks1"), b"\x77" * 32, b"\x88" * 32
    header = luks1(
        {0: DISABLED, 6: luks1_slot(iterations=12, salt=slot_salt, offset=300)},
        cipher_mode=b"cbc-essiv:sha256",
        key_bytes=32,
        hash_spec=b"sha1",
        mk_digest=hashlib.pbkdf2_hmac("sha1", key, salt, 9, 20),
        mk_digest_salt=salt,
        mk_digest_iter=9,
        payload_offset=1000,
    )
    slot_key = hashlib.pbkdf2_hmac("sha1", PASSPHRASE, slot_salt, 12, 32)
    material = bytes(split_key(memoryview(key), 4000, "sha1", randbytes))
    content = header.ljust(300 * 512, b"\0") + encrypt("aes-cbc-essiv:sha256", slot_key, material)
    content = content.ljust(1000 * 512, b"\0") + encrypt("aes-cbc-essiv:sha256", key, PAYLOAD)
    parsed = read(content)
    assert parsed is not None
    check_payload(open_with((parsed, content), passphrase=PASSPHRASE))
    with pytest.raises(WrongKey, match="none of the 1 key slots"):
        open_with((parsed, content), passphrase=PASSPHRASE + b"\n")


def test_a_passphrase_opens_a_slot_of_argon2() -> None:
    header, content = locked()
    kdf = Argon2("argon2id", b"somesalt", 2, 256, 1)
    # phc-winner-argon2, src/test.c: what "password" gives.
    slot_key = bytes.fromhex("9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe")
    slot = replace(header.keyslots[0], kdf=kdf, cipher_key_size=32)
    material = bytes(split_key(memoryview(KEY), 8, "sha512", randbytes))
    changed_content = bytearray(content)
    changed_content[slot.offset : slot.offset + 512] = encrypt("aes-xts-plain64", slot_key, material)
    image = (replace(header, keyslots=(replace(slot, stripes=8),)), bytes(changed_content))
    check_payload(open_with(image, passphrase=b"password"))
    with pytest.raises(WrongKey):
        open_with(image, passphrase=b"passwort")


def test_a_wrong_passphrase_is_told_and_tries_every_slot() -> None:
    for wrong in (b"wrong", b"", PASSPHRASE[:-1], PASSPHRASE + b"\0", KEY):
        shown = Shown()
        with pytest.raises(WrongKey, match="none of the 3 key slots") as caught:
            open_with(locked((b"1", b"2", b"3")), passphrase=wrong, shown=shown)
        assert shown.slots == [0, 1, 2]
        assert not wrong or wrong.hex() not in str(caught.value)


def test_a_passphrase_without_a_slot_and_no_key_at_all_are_told() -> None:
    with pytest.raises(WrongKey, match=r"no key slot .*--key-file"):
        open_with(locked(()), passphrase=PASSPHRASE)
    with pytest.raises(WrongKey, match=r"aes-xts-plain64.*--key-file or --passphrase-file"):
        open_with(locked())
    # The master key still opens it.
    check_payload(open_with(locked(()), key=KEY))


def test_slots_are_tried_by_their_priority() -> None:
    header, content = locked((b"0", b"1", b"2", b"3", b"4"))
    priorities = (1, 2, 0, 2, 1)
    slots = tuple(replace(slot, priority=priority) for slot, priority in zip(header.keyslots, priorities, strict=True))
    image = (replace(header, keyslots=slots), content)
    for passphrase, tried in (
        (b"wrong", [1, 3, 0, 4]),
        (b"1", [1]),
        (b"3", [1, 3]),
        (b"0", [1, 3, 0]),
        (b"2", [1, 3, 0, 4]),
    ):
        shown = Shown()
        if passphrase in (b"wrong", b"2"):
            with pytest.raises(WrongKey):
                open_with(image, passphrase=passphrase, shown=shown)
        else:
            check_payload(open_with(image, passphrase=passphrase, shown=shown))
        assert shown.slots == tried
    ignored = tuple(replace(slot, priority=0) for slot in header.keyslots)
    with pytest.raises(WrongKey):
        open_with((replace(header, keyslots=ignored), content), passphrase=b"0")


def test_damaged_key_material_is_a_wrong_passphrase_and_damaged_storage_an_error() -> None:
    header, content = locked()
    slot = header.keyslots[0]
    for position in (0, 100, slot.material_size - 1):
        with pytest.raises(WrongKey):
            open_with((header, flipped(content, slot.offset + position)), passphrase=PASSPHRASE)
    with pytest.raises(IntegrityError):
        open_with((header, content), passphrase=PASSPHRASE, damaged=(range(slot.offset + 5, slot.offset + 6),))
    # The master key needs no slot.
    check_payload(open_with((header, content), key=KEY, damaged=(range(slot.offset, slot.offset + 6),)))


def test_a_header_that_does_not_fit_its_device_opens_with_no_key() -> None:
    header, content = locked()
    for short in (content[:PAYLOAD_OFFSET], content[:5000], b""):
        for given_keys in ({"key": KEY}, {"passphrase": PASSPHRASE}, {}):
            with pytest.raises(FormatError):
                open_with((header, short), **given_keys)
    with pytest.raises(FormatError):
        open_with((replace(header, payload_size=len(PAYLOAD) + 512), content), key=KEY)
    unlocked = open_with((replace(header, payload_size=1024), content), key=KEY)
    assert unlocked.device.size == 1024
    with pytest.raises(ImageReadError):
        trio.run(unlocked.device.read, [Extent(1024, 1)])


def test_the_digest_decides() -> None:
    header, content = locked()
    for digest in (bytes(32), flipped(header.digest.digest, 31), header.digest.digest + b"\0"):
        image = (replace(header, digest=replace(header.digest, digest=digest)), content)
        with pytest.raises(WrongKey):
            open_with(image, key=KEY)
        with pytest.raises(WrongKey):
            open_with(image, passphrase=PASSPHRASE)


def test_a_key_derivation_without_its_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kdf = Argon2("argon2id", b"somesalt", 1, 1024, 1)
    secret = Secret.copy_of(PASSPHRASE)
    assert len(derive_key(kdf, secret, 32)) == 32
    monkeypatch.setattr(mystfuse.image.keys, "available_memory", lambda: MIB - 1)
    with pytest.raises(MystfuseError, match="more memory than there is"):
        derive_key(kdf, secret, 32)
    monkeypatch.setattr(mystfuse.image.unlock, "available_memory", lambda: MIB - 1)
    header, content = locked()
    image = (replace(header, keyslots=(replace(header.keyslots[0], kdf=kdf),)), content)
    with pytest.raises(MystfuseError, match="more memory than there is"):
        open_with(image, passphrase=PASSPHRASE)


def test_keys_are_wiped_when_nobody_waits_any_more() -> None:
    keys = Keys(Secret.copy_of(KEY), Secret.copy_of(PASSPHRASE))
    header, content = locked()

    async def cancelled() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await unlock(MemoryDevice(content), header, keys, Shown())
        assert scope.cancelled_caught

    trio.run(cancelled)
    assert keys.master_key is not None and keys.master_key.view == bytes(64)
    assert keys.passphrase is not None and keys.passphrase.view == bytes(len(PASSPHRASE))
