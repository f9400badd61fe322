"""Making LUKS headers for new images, as ``cryptsetup luksFormat --cipher aes-xts-plain64 --key-size 512`` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from uuid import UUID

from mystfuse.build.hash_tree import write_all
from mystfuse.crypto.key_derivation import derive_pbkdf2, split_key
from mystfuse.crypto.sector_ciphers import SECTOR_SIZE, XtsCipher, find_zero_sectors
from mystfuse.formats.luks import Argon2, CipherSpec, KeyDigest, Keyslot, LuksHeader, Pbkdf2
from mystfuse.formats.luks1 import DIGEST_SIZE, SALT_SIZE, STRIPES, keyslot_offset, pack_luks1, payload_offset_for
from mystfuse.formats.luks2 import DEFAULT_HEADER_SIZE, DEFAULT_PAYLOAD_OFFSET, pack_luks2
from mystfuse.image.keys import MASTER_KEY_SIZE, Encryption, derive_key
from mystfuse.image.progress import Progress
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.system.memory import available_memory

HASH = "sha256"
DIGEST_ITERATIONS = 100_000
"""For the digest of the master key; fewer do not weaken it: it has 512 bits of its own."""
SLOT_ITERATIONS = 2_000_000
"""For a LUKS1 key slot: about the result of cryptsetup's 2 seconds. A constant, so that images are reproducible."""
ARGON2_TIME, ARGON2_MEMORY, ARGON2_CPUS = 4, 1 << 20, 4
"""For a LUKS2 key slot: cryptsetup's upper bounds, 1 GiB among them; half of the available memory if that is less."""
MIN_ARGON2_MEMORY = 32 << 10
"""KiB."""
_CHUNK = 1 << 20
_CIPHER = CipherSpec("xts", "plain64")

Random = Callable[[int], bytes]
"""Returns this many random bytes."""


def payload_offset(encryption: Encryption) -> int:
    """The byte offset of the payload, where cryptsetup lets it begin."""
    return payload_offset_for(MASTER_KEY_SIZE) if encryption.luks_version == 1 else DEFAULT_PAYLOAD_OFFSET


def make_luks_header(
    encryption: Encryption, random: Random, progress: Progress, is_reproducible: bool = False
) -> bytes:
    """Everything before the payload: header (both, for LUKS2) and key slots, ``payload_offset(encryption)`` bytes.

    Args:
        encryption: checked.
        random: ``secrets.token_bytes``, or reproducible bytes that only the key's owner can foresee.
        is_reproducible: nothing may depend on the amount of memory.
    """
    version, key = encryption.luks_version, encryption.master_key
    salt, digest_size = random(SALT_SIZE), DIGEST_SIZE if version == 1 else 32
    digest = derive_pbkdf2(HASH, key.view, salt, DIGEST_ITERATIONS, digest_size)
    slot = _plan_slot(version, random, is_reproducible) if encryption.passphrase is not None else None
    header = LuksHeader(
        version=version,
        uuid=str(UUID(bytes=random(16), version=4)),
        cipher=_CIPHER,
        key_sizes=(MASTER_KEY_SIZE,),
        payload_offset=payload_offset(encryption),
        payload_size=None,
        sector_size=512,
        iv_tweak=0,
        keyslots=(slot,) if slot else (),
        digest=KeyDigest(Pbkdf2(HASH, salt, DIGEST_ITERATIONS), bytes(digest.view)),
    )
    packed = pack_luks1(header) if version == 1 else pack_luks2(header, 1, (random(64), random(64)))
    area = bytearray(packed.ljust(header.payload_offset, b"\0"))
    if slot is not None:
        assert encryption.passphrase is not None
        with progress(f"making key slot {slot.number}: {slot.kdf}", None):
            slot_key = derive_key(slot.kdf, encryption.passphrase, slot.cipher_key_size)
        material = split_key(key.view, slot.stripes, slot.af_hash, random)
        area[slot.offset : slot.offset + len(material)] = XtsCipher(slot_key.view).encrypt(material, 0)
        material[:] = bytes(len(material))
        slot_key.wipe()
    return bytes(area)


def _plan_slot(version: int, random: Random, is_reproducible: bool) -> Keyslot:
    salt = random(SALT_SIZE)
    kdf: Pbkdf2 | Argon2
    if version == 1:
        kdf = Pbkdf2(HASH, salt, SLOT_ITERATIONS)
    else:
        memory = ARGON2_MEMORY
        if not is_reproducible:
            memory = min(memory, max(available_memory() // 2 // 1024, MIN_ARGON2_MEMORY))
        kdf = Argon2("argon2id", salt, ARGON2_TIME, memory, ARGON2_CPUS)
    return Keyslot(
        number=0,
        kdf=kdf,
        key_size=MASTER_KEY_SIZE,
        cipher=_CIPHER,
        cipher_key_size=MASTER_KEY_SIZE,
        offset=keyslot_offset(0, MASTER_KEY_SIZE) if version == 1 else 2 * DEFAULT_HEADER_SIZE,
        stripes=STRIPES,
        af_hash=HASH,
    )


def encrypt_zeros(
    target: AtomicFile, payload_offset: int, size: int, cipher: XtsCipher, advance: Callable[[int], None]
) -> None:
    """Encrypt zeros into the unwritten parts of a payload of ``size`` bytes, so that the ciphertext does not show them.

    Raises:
        MystfuseError: reading or writing failed.
    """
    for start in range(0, size, _CHUNK):
        length = min(_CHUNK, size - start)
        encrypted = os.pread(target.fd, length, payload_offset + start).ljust(length, b"\0")
        for first, last in find_zero_sectors(encrypted):
            zeros = cipher.encrypt(bytes(last - first), (start + first) // SECTOR_SIZE)
            write_all(target.fd, zeros, payload_offset + start + first)
        advance(length)
