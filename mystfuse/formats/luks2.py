"""LUKS2: two copies of a binary header, each with a JSON area. Source: LUKS2 On-Disk Format Specification 1.1.1.

The binary header is big-endian; numbers of 64 bits in the JSON area are strings of decimal digits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import struct
from dataclasses import dataclass
from typing import Any

from mystfuse.errors import FormatError, UnsupportedFeature
from mystfuse.formats.luks import (
    Argon2,
    CipherSpec,
    KeyDigest,
    Keyslot,
    LuksHeader,
    Pbkdf2,
    check_hash,
    text_field,
)
from mystfuse.formats.luks_magic import LUKS2_SECOND_MAGIC, LUKS_MAGIC

BINARY_HEADER_SIZE = 4096
HEADER_SIZES = tuple(0x4000 << shift for shift in range(9))
"""16 KiB to 4 MiB: what a copy of the header, binary and JSON, may take up; so also where the second one can be."""
DEFAULT_HEADER_SIZE = HEADER_SIZES[0]
DEFAULT_PAYLOAD_OFFSET = 16 << 20
"""What cryptsetup chooses."""
MAX_JSON_VALUES = 20_000
"""Far more than 32 key slots and as many tokens come to."""
MAX_KEYSLOTS = 32
"""cryptsetup's limit."""
SECTOR_SIZES = (512, 1024, 2048, 4096)
_AREA_ALIGNMENT = 4096
_CHECKSUM_OFFSET, _CHECKSUM_SIZE = 0x1C0, 64

# magic version hdr_size seqid label csum_alg salt uuid subsystem hdr_offset, then padding, csum at 0x1c0
_HEADER = struct.Struct(">6sHQQ48s32s64s40s48sQ")


@dataclass(frozen=True, slots=True)
class HeaderCopy:
    """The binary part of one copy of the header; nothing but its magic and sizes has been checked."""

    offset: int
    """Byte offset in the device."""
    size: int
    """Bytes, with its JSON area."""
    seqid: int
    uuid: str
    checksum_algorithm: str

    @classmethod
    def parse(cls, data: bytes, offset: int) -> HeaderCopy | None:
        """The copy that begins with ``data`` (512 bytes or more) at byte ``offset``, or None if there is none."""
        if len(data) < 512:
            return None
        magic, version, size, seqid, _, algorithm, _, uuid, _, own_offset = _HEADER.unpack_from(data)
        if magic != (LUKS2_SECOND_MAGIC if offset else LUKS_MAGIC) or version != 2:
            return None
        if size not in HEADER_SIZES or own_offset != offset or offset not in (0, size):
            return None
        return cls(offset, size, seqid, text_field(uuid), text_field(algorithm).lower())

    def check(self, data: bytes) -> None:
        """Check a whole copy, all ``size`` bytes.

        Raises:
            FormatError: the checksum is wrong.
            UnsupportedFeature: it is one that mystfuse does not have.
        """
        check_hash(self.checksum_algorithm)
        digest = hashlib.new(self.checksum_algorithm, data[:_CHECKSUM_OFFSET], usedforsecurity=False)
        digest.update(bytes(_CHECKSUM_SIZE))
        digest.update(data[_CHECKSUM_OFFSET + _CHECKSUM_SIZE :])
        found = data[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + digest.digest_size]
        if not hmac.compare_digest(found, digest.digest()):
            raise FormatError(f"LUKS2: the header at byte {self.offset} does not have its checksum")

    def document(self, data: bytes) -> dict[str, Any]:
        """The JSON area of a checked copy.

        Raises:
            FormatError: it is not an object in JSON, or holds more than any header does.
        """
        area = data[BINARY_HEADER_SIZE:].split(b"\0", 1)[0]
        if sum(map(area.count, (b"[", b"{", b","))) > MAX_JSON_VALUES:
            raise FormatError(f"LUKS2: the JSON area at byte {self.offset} has over {MAX_JSON_VALUES} values")
        try:
            document = json.loads(area)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"LUKS2: the header at byte {self.offset} has no readable JSON area") from error
        if not isinstance(document, dict):
            raise FormatError(f"LUKS2: the JSON area at byte {self.offset} is not an object")
        return document


def parse_luks2(copy: HeaderCopy, document: dict[str, Any]) -> LuksHeader:
    """What a checked copy of the header says.

    Raises:
        FormatError: something is missing, has the wrong type, or is invalid.
        UnsupportedFeature: a cipher, hash, segment, or requirement that mystfuse does not have, named.
    """
    top = _Object(document, "the JSON area")
    config = top.object("config")
    requirements = config.object("requirements") if "requirements" in config.fields else None
    if requirements is not None and "mandatory" in requirements.fields:
        for name in requirements.strings("mandatory"):
            raise UnsupportedFeature(f"LUKS2 requirement {name[:64]!r} (finish or undo it with cryptsetup)")
    segments = top.object("segments").objects()
    if len(segments) != 1:
        raise UnsupportedFeature(f"LUKS2 with {len(segments)} segments; one is known")
    ((segment_id, segment),) = segments.items()
    if segment.string("type") != "crypt":
        raise UnsupportedFeature(f"LUKS2 segment of type {segment.string('type')[:64]!r}")
    if "integrity" in segment.fields:
        integrity = segment.object("integrity").string("type")
        raise UnsupportedFeature(f"LUKS2 authenticated encryption (integrity {integrity[:64]!r})")
    cipher = CipherSpec.parse(segment.string("encryption"))
    digest = _digest_of(top, segment_id)
    keyslots, unusable = _keyslots(top, digest)
    for slot in keyslots:
        cipher.check_key_size(slot.key_size)
    sector_size = segment.integer("sector_size")
    if sector_size not in SECTOR_SIZES:
        raise FormatError(f"LUKS2: sector_size {sector_size} is not 512, 1024, 2048 or 4096")
    payload_offset = segment.number("offset")
    payload_size = None if segment.string("size") == "dynamic" else segment.number("size")
    if payload_offset < 2 * copy.size or payload_offset % 512:
        raise FormatError(f"LUKS2: the payload would be at byte {payload_offset} (a detached header?)")
    if payload_size is not None and (payload_size <= 0 or payload_size % sector_size):
        raise FormatError(f"LUKS2: a payload of {payload_size} bytes in sectors of {sector_size}")
    for slot in keyslots:
        if slot.offset < 2 * copy.size or slot.offset + slot.material_size > payload_offset:
            raise FormatError(f"LUKS2 key slot {slot.number}: its key material is not between header and payload")
    return LuksHeader(
        version=2,
        uuid=copy.uuid,
        cipher=cipher,
        key_sizes=tuple(sorted({slot.key_size for slot in keyslots})) or cipher.key_sizes,
        payload_offset=payload_offset,
        payload_size=payload_size,
        sector_size=sector_size,
        iv_tweak=segment.number("iv_tweak"),
        keyslots=keyslots,
        digest=KeyDigest(_pbkdf2(digest), digest.binary("digest")),
        unusable=unusable,
    )


def _digest_of(top: _Object, segment_id: str) -> _Object:
    for digest in top.object("digests").objects().values():
        if segment_id in digest.strings("segments"):
            if digest.string("type") != "pbkdf2":
                raise UnsupportedFeature(f"LUKS2 digest of type {digest.string('type')[:64]!r}")
            return digest
    raise FormatError("LUKS2: no digest for the volume key")


def _keyslots(top: _Object, digest: _Object) -> tuple[tuple[Keyslot, ...], tuple[str, ...]]:
    """The slots with the volume key of ``digest``, and why we lack others."""
    slots: list[Keyslot] = []
    unusable: list[str] = []
    wanted = set(digest.strings("keyslots"))
    for name, slot in top.object("keyslots").objects().items():
        if not re.fullmatch(r"0|[1-9][0-9]?", name) or int(name) >= MAX_KEYSLOTS:
            raise FormatError(f"LUKS2: a key slot called {name[:64]!r}; they go from 0 to {MAX_KEYSLOTS - 1}")
        if name not in wanted or slot.string("type") != "luks2":
            continue
        try:
            slots.append(_keyslot(int(name), slot))
        except UnsupportedFeature as error:
            # The others may be usable.
            unusable.append(f"key slot {name}: {error}")
    return tuple(slots), tuple(unusable)


def _keyslot(number: int, slot: _Object) -> Keyslot:
    area, splitter = slot.object("area"), slot.object("af")
    if area.string("type") != "raw" or splitter.string("type") != "luks1":
        raise UnsupportedFeature("an area or splitter of another type")
    parsed = Keyslot(
        number=number,
        kdf=_kdf(slot.object("kdf")),
        key_size=slot.integer("key_size"),
        cipher=CipherSpec.parse(area.string("encryption")),
        cipher_key_size=area.integer("key_size"),
        offset=area.number("offset"),
        stripes=splitter.integer("stripes"),
        af_hash=splitter.string("hash").lower(),
        priority=slot.integer("priority") if "priority" in slot.fields else 1,
    )
    if parsed.material_size > area.number("size"):
        raise FormatError(f"LUKS2 key slot {number}: its key material does not fit its area")
    return parsed


def _kdf(kdf: _Object) -> Pbkdf2 | Argon2:
    if kdf.string("type") == "pbkdf2":
        return _pbkdf2(kdf)
    return Argon2(
        kdf.string("type"), kdf.binary("salt"), kdf.integer("time"), kdf.integer("memory"), kdf.integer("cpus")
    )


def _pbkdf2(kdf: _Object) -> Pbkdf2:
    return Pbkdf2(kdf.string("hash").lower(), kdf.binary("salt"), kdf.integer("iterations"))


class _Object:
    """An object of the JSON area. Its methods return a member of the requested type, or raise FormatError."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        self.fields = fields
        self._where = where

    def _get(self, name: str, kind: type) -> Any:
        value = self.fields.get(name)
        # In Python a bool is an int.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise FormatError(f"LUKS2: {self._where} has no {name}, or not one that can be")
        return value

    def object(self, name: str) -> _Object:
        return _Object(self._get(name, dict), name)

    def objects(self) -> dict[str, _Object]:
        """All members, which must be objects."""
        return {name: _Object(self._get(name, dict), f"{self._where} {name[:64]}") for name in self.fields}

    def string(self, name: str) -> str:
        value: str = self._get(name, str)
        return value

    def strings(self, name: str) -> list[str]:
        values = self._get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise FormatError(f"LUKS2: {self._where}: {name} is not a list of strings")
        return list(values)

    def integer(self, name: str) -> int:
        """A number, 0 or more, that is written as one."""
        value: int = self._get(name, int)
        if not 0 <= value < 1 << 63:
            raise FormatError(f"LUKS2: {self._where}: {name} is out of range")
        return value

    def number(self, name: str) -> int:
        """A number of 64 bits, which is written as a string of digits."""
        text = self.string(name)
        if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) >= 1 << 63:
            raise FormatError(f"LUKS2: {self._where}: {name} {text[:64]!r} is not a number that can be")
        return int(text)

    def binary(self, name: str) -> bytes:
        try:
            return base64.b64decode(self.string(name), validate=True)
        except (binascii.Error, ValueError) as error:
            raise FormatError(f"LUKS2: {self._where}: {name} is not base64") from error


def pack_luks2(header: LuksHeader, seqid: int, salts: tuple[bytes, bytes]) -> bytes:
    """Both copies of a header, each with a JSON area of the smallest size: 32 KiB.

    Args:
        salts: 64 bytes for each copy, to tell them apart.
    """
    document = json.dumps(_document(header), separators=(",", ":")).encode()
    area = document.ljust(DEFAULT_HEADER_SIZE - BINARY_HEADER_SIZE, b"\0")
    if len(area) + BINARY_HEADER_SIZE != DEFAULT_HEADER_SIZE:
        raise ValueError("the JSON area does not fit")
    copies: list[bytes] = []
    for magic, salt, offset in (LUKS_MAGIC, salts[0], 0), (LUKS2_SECOND_MAGIC, salts[1], DEFAULT_HEADER_SIZE):
        binary = _HEADER.pack(
            magic, 2, DEFAULT_HEADER_SIZE, seqid, b"", b"sha256", salt, header.uuid.encode(), b"", offset
        )
        copy = bytearray(binary.ljust(BINARY_HEADER_SIZE, b"\0") + area)
        copy[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 32] = hashlib.sha256(copy).digest()
        copies.append(bytes(copy))
    return b"".join(copies)


def _document(header: LuksHeader) -> dict[str, Any]:
    slots = {str(slot.number): _keyslot_object(slot) for slot in header.keyslots}
    digest = header.digest
    return {
        "keyslots": slots,
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": str(header.payload_offset),
                "size": "dynamic" if header.payload_size is None else str(header.payload_size),
                "iv_tweak": str(header.iv_tweak),
                "encryption": str(header.cipher),
                "sector_size": header.sector_size,
            }
        },
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": list(slots),
                "segments": ["0"],
                "hash": digest.kdf.hash_name,
                "iterations": digest.kdf.iterations,
                "salt": base64.b64encode(digest.kdf.salt).decode(),
                "digest": base64.b64encode(digest.digest).decode(),
            }
        },
        "config": {
            "json_size": str(DEFAULT_HEADER_SIZE - BINARY_HEADER_SIZE),
            "keyslots_size": str(header.payload_offset - 2 * DEFAULT_HEADER_SIZE),
        },
    }


def _keyslot_object(slot: Keyslot) -> dict[str, Any]:
    assert isinstance(slot.kdf, Argon2)
    return {
        "type": "luks2",
        "key_size": slot.key_size,
        "af": {"type": "luks1", "stripes": slot.stripes, "hash": slot.af_hash},
        "area": {
            "type": "raw",
            "offset": str(slot.offset),
            "size": str(-(-slot.material_size // _AREA_ALIGNMENT) * _AREA_ALIGNMENT),
            "encryption": str(slot.cipher),
            "key_size": slot.cipher_key_size,
        },
        "kdf": {
            "type": slot.kdf.variant,
            "time": slot.kdf.time,
            "memory": slot.kdf.memory,
            "cpus": slot.kdf.cpus,
            "salt": base64.b64encode(slot.kdf.salt).decode(),
        },
    }
