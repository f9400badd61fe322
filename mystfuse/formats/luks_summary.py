"""What a LUKS header says, for people: also one that mystfuse does not open, or a detached one.

``luks1`` and ``luks2`` parse a header in order to open it, and refuse what they cannot; this refuses nothing that has
the magic. Sources: as theirs.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from mystfuse.errors import FormatError
from mystfuse.formats.luks import SECTOR_SIZE, Argon2, Pbkdf2, text_field
from mystfuse.formats.luks1 import KEYSLOTS, LUKS1_HEADER_SIZE, parse_luks1
from mystfuse.formats.luks2 import BINARY_HEADER_SIZE, HEADER_SIZES, MAX_KEYSLOTS, HeaderCopy, parse_luks2
from mystfuse.formats.luks_magic import LUKS_MAGIC

# magic version cipher_name cipher_mode hash_spec payload_offset key_bytes mk_digest mk_digest_salt mk_digest_iter uuid
_LUKS1 = struct.Struct(">6sH32s32s32sII20s32sI40s")
_LUKS1_SLOT = struct.Struct(">II32sII")
_LUKS1_ENABLED = 0x00AC71F3
_LABEL2 = slice(24, 72)
"""A field of LUKS2's binary header."""
_MAX_TEXT = 64
"""Characters of a name in a JSON area that are shown."""


@dataclass(frozen=True, slots=True)
class SlotSummary:
    """A key slot."""

    number: int
    key_bits: int | None
    """Of the volume key in it."""
    kdf: str
    """What a passphrase costs: ``PBKDF2 sha256, 1000000 iterations``."""
    seconds: float | None
    """About how long that takes; None where we cannot compute it."""
    memory: int | None
    """Bytes that it takes."""
    cipher: str
    """Of the key material."""
    priority: int = 1


@dataclass(frozen=True, slots=True)
class LuksSummary:
    """A LUKS header of either version, or what can be told of it."""

    version: int
    uuid: str
    label: str
    cipher: str
    key_bits: int | None
    """Of the volume key; None where only key slots could say it, and there are none."""
    sector_size: int | None
    """Bytes that are encrypted as one unit."""
    payload_offset: int | None
    """Bytes from the beginning; 0 in a detached header."""
    payload_size: int | None
    """Bytes; None: up to the end."""
    slots: tuple[SlotSummary, ...]
    tokens: tuple[str, ...]
    """The types of LUKS2's tokens: what can open it besides a passphrase."""
    fault: str | None
    """Why mystfuse does not open it; None if it does, as far as the header tells."""

    def is_detached(self, size: int) -> bool:
        """Whether the payload of this header is elsewhere, or cut off.

        Args:
            size: bytes of the device or file that begins with the header.
        """
        return self.payload_offset is not None and not 0 < self.payload_offset < size


def header_bytes(start: bytes) -> int:
    """How many bytes ``describe_luks`` needs of a device that begins with these 4096: one copy of the header, and where
    the second one can be if the first is damaged."""
    copy = HeaderCopy.parse(start, 0)
    return max(64 << 10, copy.size) if copy is not None else 64 << 10


def describe_luks(data: bytes) -> LuksSummary | None:
    """Describe a LUKS header.

    Args:
        data: the first bytes of the device, as many as ``header_bytes`` says, or all that there are.

    Returns:
        None if no header begins there: neither LUKS1 nor one of LUKS2's two copies.
    """
    if data.startswith(LUKS_MAGIC + b"\0\1"):
        return _luks1(data)
    for offset in (0, *HEADER_SIZES):
        copy = HeaderCopy.parse(data[offset : offset + BINARY_HEADER_SIZE], offset)
        if copy is None or len(data) < offset + copy.size:
            continue
        found = data[offset : offset + copy.size]
        try:
            copy.check(found)
            document = copy.document(found)
        except FormatError:
            continue
        return _luks2(copy, found, document)
    if not data.startswith(LUKS_MAGIC):
        return None
    version = int.from_bytes(data[6:8], "big")
    fault = "its header is damaged" if version == 2 else f"LUKS version {version}; only 1 and 2 are known"
    return LuksSummary(version, "", "", "", None, None, None, None, (), (), fault)


def _luks1(data: bytes) -> LuksSummary:
    header = data[:LUKS1_HEADER_SIZE].ljust(LUKS1_HEADER_SIZE, b"\0")
    _, _, name, mode, hash_spec, payload_offset, key_bytes, _, _, _, uuid = _LUKS1.unpack_from(header)
    hash_name = text_field(hash_spec).lower()
    cipher = f"{text_field(name)}-{text_field(mode)}"
    slots: list[SlotSummary] = []
    for number in range(KEYSLOTS):
        active, iterations, salt, _, _ = _LUKS1_SLOT.unpack_from(header, _LUKS1.size + number * _LUKS1_SLOT.size)
        if active == _LUKS1_ENABLED:
            seconds = _cost(lambda: Pbkdf2(hash_name, salt, iterations), key_bytes)  # noqa: B023  # called at once
            kdf = f"PBKDF2 {hash_name}, {iterations} iterations"
            slots.append(SlotSummary(number, key_bytes * 8, kdf, seconds, None, cipher))
    fault = None
    try:
        parse_luks1(data[:LUKS1_HEADER_SIZE])
    except FormatError as error:
        fault = str(error)
    return LuksSummary(
        1,
        text_field(uuid),
        "",
        cipher,
        key_bytes * 8,
        SECTOR_SIZE,
        payload_offset * SECTOR_SIZE,
        None,
        (*slots,),
        (),
        fault,
    )


def _luks2(copy: HeaderCopy, data: bytes, document: dict[str, Any]) -> LuksSummary:
    segment = next(iter(_objects(document, "segments").values()), {})
    slots = [
        _luks2_slot(int(name), slot)
        for name, slot in _objects(document, "keyslots").items()
        if re.fullmatch(r"0|[1-9][0-9]?", name) and int(name) < MAX_KEYSLOTS
    ]
    tokens = [_text(token, "type") for token in list(_objects(document, "tokens").values())[:MAX_KEYSLOTS]]
    fault = None
    try:
        parse_luks2(copy, document)
    except FormatError as error:
        fault = str(error)
    cipher = _text(segment, "encryption")
    if isinstance(segment.get("integrity"), dict):
        cipher += f" with {_text(segment['integrity'], 'type')}"
    return LuksSummary(
        version=2,
        uuid=copy.uuid,
        label=text_field(data[_LABEL2]),
        cipher=cipher,
        key_bits=next((slot.key_bits for slot in slots), None),
        sector_size=_number(segment, "sector_size"),
        payload_offset=_number(segment, "offset"),
        payload_size=_number(segment, "size"),
        slots=tuple(sorted(slots, key=lambda slot: slot.number)),
        tokens=tuple(filter(None, tokens)),
        fault=fault,
    )


def _luks2_slot(number: int, slot: dict[str, Any]) -> SlotSummary:
    kdf, area = (value if isinstance(value, dict) else {} for value in (slot.get("kdf"), slot.get("area")))
    kind, key_bytes = _text(kdf, "type"), _number(slot, "key_size")
    words, seconds, memory = kind or "no passphrase", None, None
    if kind == "pbkdf2":
        hash_name, iterations = _text(kdf, "hash").lower(), _number(kdf, "iterations") or 0
        words = f"PBKDF2 {hash_name}, {iterations} iterations"
        seconds = _cost(lambda: Pbkdf2(hash_name, b"", iterations), _number(area, "key_size") or 1)
    elif kind.startswith("argon2"):
        passes, kibibytes, lanes = (_number(kdf, name) or 0 for name in ("time", "memory", "cpus"))
        words = f"{kind}, {passes} passes over {-(-kibibytes // 1024)} MiB, {lanes} threads"
        seconds = _cost(lambda: Argon2(kind, bytes(8), passes, kibibytes, lanes), 1)
        memory = kibibytes << 10
    priority = _number(slot, "priority")
    return SlotSummary(
        number,
        key_bytes * 8 if key_bytes is not None else None,
        words,
        seconds,
        memory,
        _text(area, "encryption"),
        1 if priority is None else priority,
    )


def _cost(make: Any, length: int) -> float | None:
    """Seconds, where the parameters are ones that we accept."""
    try:
        return round(float(make().seconds(length)), 1)
    except FormatError:
        return None


def _objects(document: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    members = document.get(name)
    if not isinstance(members, dict):
        return {}
    return {key: value for key, value in members.items() if isinstance(value, dict)}


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _number(fields: dict[str, Any], name: str) -> int | None:
    """A number, written as one or as a string of digits; None for anything else."""
    value = fields.get(name)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None
