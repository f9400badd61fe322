"""LUKS1: the 592-byte header, big-endian. Source: LUKS1 On-Disk Format Specification 1.2.3, figures 1 to 5."""

from __future__ import annotations

import struct

from mystfuse.errors import FormatError
from mystfuse.formats.luks import (
    SECTOR_SIZE,
    CipherSpec,
    KeyDigest,
    Keyslot,
    LuksHeader,
    Pbkdf2,
    text_field,
)
from mystfuse.formats.luks_magic import LUKS_MAGIC

LUKS1_HEADER_SIZE = 592
KEYSLOTS = 8
STRIPES = 4000
DIGEST_SIZE = 20
SALT_SIZE = 32
KEYSLOTS_OFFSET = 4096
"""Where cryptsetup puts the key material of slot 0."""
_ALIGNMENT = 1 << 20
"""What cryptsetup aligns the payload to."""
_ENABLED, _DISABLED = 0x00AC71F3, 0x0000DEAD

# magic version cipher_name cipher_mode hash_spec payload_offset key_bytes
# mk_digest mk_digest_salt mk_digest_iter uuid
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
# active iterations salt key_material_offset stripes
_KEYSLOT = struct.Struct(">II32sII")


def parse_luks1(data: bytes) -> LuksHeader:
    """Parse the first 592 bytes of a LUKS1 device.

    Raises:
        FormatError: cut short, or an invalid field.
        UnsupportedFeature: a cipher, mode or hash that mystfuse does not have.
    """
    if len(data) < LUKS1_HEADER_SIZE:
        raise FormatError(f"the LUKS1 header is cut short: {len(data)} of {LUKS1_HEADER_SIZE} bytes")
    (
        magic,
        version,
        cipher_name,
        cipher_mode,
        hash_spec,
        payload_offset,
        key_bytes,
        mk_digest,
        mk_digest_salt,
        mk_digest_iter,
        uuid,
    ) = _HEADER.unpack_from(data)
    if magic != LUKS_MAGIC or version != 1:
        raise FormatError("not a LUKS1 header")
    hash_name = text_field(hash_spec).lower()
    cipher = CipherSpec.parse(f"{text_field(cipher_name)}-{text_field(cipher_mode)}")
    cipher.check_key_size(key_bytes)
    payload_offset *= SECTOR_SIZE
    if payload_offset < LUKS1_HEADER_SIZE:
        raise FormatError(f"LUKS1: the payload would be at byte {payload_offset}, in the header (a detached header?)")
    keyslots: list[Keyslot] = []
    for number in range(KEYSLOTS):
        active, iterations, salt, offset, stripes = _KEYSLOT.unpack_from(data, _HEADER.size + number * _KEYSLOT.size)
        if active == _DISABLED:
            continue
        if active != _ENABLED:
            raise FormatError(f"LUKS1 key slot {number}: neither enabled nor disabled (0x{active:08x})")
        slot = Keyslot(
            number=number,
            kdf=Pbkdf2(hash_name, salt, iterations),
            key_size=key_bytes,
            cipher=cipher,
            cipher_key_size=key_bytes,
            offset=offset * SECTOR_SIZE,
            stripes=stripes,
            af_hash=hash_name,
        )
        if slot.offset < LUKS1_HEADER_SIZE or slot.offset + slot.material_size > payload_offset:
            raise FormatError(f"LUKS1 key slot {number}: its key material is not between header and payload")
        keyslots.append(slot)
    return LuksHeader(
        version=1,
        uuid=text_field(uuid),
        cipher=cipher,
        key_sizes=(key_bytes,),
        payload_offset=payload_offset,
        payload_size=None,
        sector_size=SECTOR_SIZE,
        iv_tweak=0,
        keyslots=tuple(keyslots),
        digest=KeyDigest(Pbkdf2(hash_name, mk_digest_salt, mk_digest_iter), mk_digest),
    )


def keyslot_offset(number: int, key_size: int) -> int:
    """The byte offset at which cryptsetup puts the key material of a slot."""
    return KEYSLOTS_OFFSET + number * _round_up(key_size * STRIPES, KEYSLOTS_OFFSET)


def payload_offset_for(key_size: int) -> int:
    """The byte offset at which cryptsetup lets the payload begin."""
    return _round_up(keyslot_offset(KEYSLOTS, key_size), _ALIGNMENT)


def pack_luks1(header: LuksHeader) -> bytes:
    """The 592 bytes of a header whose slots are where cryptsetup puts them."""
    digest, (key_size,) = header.digest, header.key_sizes
    name, _, mode = str(header.cipher).partition("-")
    packed = _HEADER.pack(
        LUKS_MAGIC,
        1,
        name.encode(),
        mode.encode(),
        digest.kdf.hash_name.encode(),
        header.payload_offset // SECTOR_SIZE,
        key_size,
        digest.digest,
        digest.kdf.salt,
        digest.kdf.iterations,
        header.uuid.encode(),
    )
    active = {slot.number: slot for slot in header.keyslots}
    for number in range(KEYSLOTS):
        offset = keyslot_offset(number, key_size) // SECTOR_SIZE
        slot = active.get(number)
        if slot is None:
            packed += _KEYSLOT.pack(_DISABLED, 0, b"", offset, STRIPES)
        else:
            assert isinstance(slot.kdf, Pbkdf2)
            packed += _KEYSLOT.pack(_ENABLED, slot.kdf.iterations, slot.kdf.salt, offset, slot.stripes)
    return packed


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
