"""LUKS headers and encrypted payloads, made from the specifications with struct, json and OpenSSL's modes."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

import trio

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
from mystfuse.formats.luks2 import HeaderCopy, parse_luks2
from mystfuse.image.unlock import read_luks_header
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


def read(data: bytes) -> LuksHeader | None:
    """The result of ``read_luks_header`` for a device with these bytes."""
    return trio.run(read_luks_header, MemoryDevice(data))


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


def check_sane(header: LuksHeader) -> None:
    """Assert that nothing in an accepted header is out of bounds."""
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
    """The good JSON area with one value replaced; ``path`` is joined by blanks."""
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


def flipped(data: bytes, *positions: int) -> bytes:
    changed = bytearray(data)
    for position in positions:
        changed[position] ^= 1
    return bytes(changed)
