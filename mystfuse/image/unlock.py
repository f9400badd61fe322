"""Opening an encrypted image: find its LUKS header behind the hash tree, and the key that opens it."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from mystfuse.crypto.key_derivation import merge_key
from mystfuse.crypto.secret import Secret
from mystfuse.crypto.sectors import SECTOR_SIZE, make_sector_cipher
from mystfuse.devices.crypt import CryptDevice
from mystfuse.devices.device import Device, Extent
from mystfuse.errors import FormatError, UnsupportedFeature, WrongKey
from mystfuse.ext2.constants import EXT2_SUPER_MAGIC, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.formats.luks import Keyslot, LuksHeader
from mystfuse.formats.luks1 import LUKS1_HEADER_SIZE, parse_luks1
from mystfuse.formats.luks2 import BINARY_HEADER_SIZE, HEADER_SIZES, HeaderCopy, parse_luks2
from mystfuse.formats.luks_magic import LUKS_MAGIC
from mystfuse.image.keys import Keys, derive_key
from mystfuse.image.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unlocked:
    """An encrypted image that is open."""

    header: LuksHeader
    device: CryptDevice


async def read_luks_header(verified: Device) -> LuksHeader | None:
    """The LUKS header of a device; None if the device does not have one.

    Of LUKS2's two headers the newer good one counts. Where the first is damaged the second is looked for, unless an
    EXT2 file system is there.

    Raises:
        FormatError: a header that cannot be, or both damaged.
        UnsupportedFeature: a cipher, mode, or feature that mystfuse does not have.
        IntegrityError, ImageReadError: as the device does.
    """
    first = await _read(verified, 0, BINARY_HEADER_SIZE)
    if first.startswith(LUKS_MAGIC + b"\0\1"):
        return parse_luks1(first[:LUKS1_HEADER_SIZE])
    is_luks = first.startswith(LUKS_MAGIC)
    superblock = first[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE]
    if not is_luks and superblock[56:58] == EXT2_SUPER_MAGIC.to_bytes(2, "little"):
        return None
    good: list[tuple[HeaderCopy, bytes]] = []
    errors: list[FormatError] = []
    offsets = [0, *HEADER_SIZES]
    while offsets:
        offset = offsets.pop(0)
        found = HeaderCopy.parse(await _read(verified, offset, BINARY_HEADER_SIZE), offset)
        if found is None:
            continue
        # Parsed again from the bytes that are checked: those that are read again may be others.
        data = await _read(verified, offset, found.size)
        copy = HeaderCopy.parse(data, offset)
        try:
            if copy is None or copy.size != len(data):
                raise FormatError(f"LUKS2: the header at byte {offset} is cut short")
            copy.check(data)
        except FormatError as error:
            errors.append(error)
            continue
        good.append((copy, data))
        # Where the second one is, the first one knows.
        offsets = [copy.size] if offset == 0 else []
    good.sort(key=lambda item: -item[0].seqid)
    for copy, data in good:
        try:
            header = parse_luks2(copy, copy.document(data))
        except FormatError as error:
            errors.insert(0, error)
            continue
        if len(good) == 1:
            log.warning("the %s LUKS2 header is damaged: using the other one", "first" if copy.offset else "second")
        return header
    if errors and (good or isinstance(errors[0], UnsupportedFeature)):
        raise errors[0]
    if errors:
        raise FormatError(f"both LUKS2 headers are damaged: {errors[0]}")
    if not is_luks:
        return None
    version = int.from_bytes(first[6:8], "big")
    raise FormatError(
        "LUKS2: neither header is whole" if version == 2 else f"LUKS version {version}; only 1 and 2 are known"
    )


async def _read(device: Device, offset: int, length: int) -> bytes:
    """What is there of a range of a device that may be shorter."""
    length = min(length, device.size - offset)
    if length <= 0:
        return b""
    (data,) = await device.read([Extent(offset, length)])
    return bytes(data)


async def unlock(verified: Device, header: LuksHeader, keys: Keys, progress: Progress) -> Unlocked:
    """Open an encrypted device; the keys are wiped, whatever happens.

    Args:
        progress: shown while a passphrase is tried on a key slot.

    Raises:
        WrongKey: no key, not one that can be, or not the one of this image.
        FormatError: the header does not fit the device.
        IntegrityError, ImageReadError: as the device does.
    """
    try:
        size = header.check_fits(verified.size)
        if keys.master_key is not None:
            key = await _match_master_key(header, keys.master_key, progress)
        elif keys.passphrase is not None:
            key = await _try_slots(verified, header, keys.passphrase, progress)
        else:
            raise WrongKey(f"encrypted (LUKS{header.version}, {header.cipher}): give --key-file or --passphrase-file")
    finally:
        keys.wipe()
    try:
        cipher = make_sector_cipher(
            header.cipher.chain_mode, header.cipher.iv_mode, key.view, header.sector_size, header.iv_tweak
        )
    finally:
        key.wipe()
    return Unlocked(header, CryptDevice(verified, cipher, header.payload_offset, size, header.sector_size))


async def _match_master_key(header: LuksHeader, given: Secret, progress: Progress) -> Secret:
    """The master key in the form that fits, if it is the right one."""
    tried = False
    for candidate in _forms(given, header.key_sizes):
        tried = True
        with progress(f"checking the key: {header.digest.kdf}", None):
            if await _has_digest(header, candidate):
                return candidate
        candidate.wipe()
    if tried:
        raise WrongKey("wrong key: it is not the master key of this image")
    sizes = " or ".join(str(size) for size in header.key_sizes)
    raise WrongKey(
        f"the key has {len(given)} bytes, but the master key of this image has {sizes} (or twice as many hex digits); "
        "a passphrase goes into --passphrase-file"
    )


def _forms(given: Secret, key_sizes: tuple[int, ...]) -> Iterator[Secret]:
    """What the contents of a key file can mean: the key itself, or its hex digits (white space around them ignored)."""
    if len(given) in key_sizes:
        yield Secret.copy_of(given.view)
    match = re.fullmatch(rb"\s*((?:[0-9a-fA-F]{2})+)\s*", given.view)
    if match and (match.end(1) - match.start(1)) // 2 in key_sizes:
        # Digit by digit: bytes.fromhex would leave copies.
        digits = given.view[match.start(1) : match.end(1)]
        key = Secret(len(digits) // 2)
        for index in range(len(key)):
            key.view[index] = int(bytes(digits[2 * index : 2 * index + 2]), 16)
        yield key


async def _try_slots(verified: Device, header: LuksHeader, passphrase: Secret, progress: Progress) -> Secret:
    """The master key from the first key slot that the passphrase opens, in the order of their priorities."""
    slots = sorted((slot for slot in header.keyslots if slot.priority), key=lambda slot: (-slot.priority, slot.number))
    if not slots:
        raise WrongKey(
            "no key slot of this image can be used, so no passphrase opens it: give the master key (--key-file)"
        )
    for slot in slots:
        with progress(f"key slot {slot.number}: {slot.kdf}", None):
            key = await _try_slot(verified, header, slot, passphrase)
        if key is not None:
            return key
    others = "".join(f"; {reason}" for reason in header.unusable)
    raise WrongKey(f"wrong passphrase: it opens none of the {len(slots)} key slots{others}")


async def _try_slot(verified: Device, header: LuksHeader, slot: Keyslot, passphrase: Secret) -> Secret | None:
    (encrypted,) = await verified.read([Extent(slot.offset, -(-slot.material_size // SECTOR_SIZE) * SECTOR_SIZE)])

    def open_slot() -> Secret:
        slot_key = derive_key(slot.kdf, passphrase, slot.cipher_key_size)
        try:
            cipher = make_sector_cipher(slot.cipher.chain_mode, slot.cipher.iv_mode, slot_key.view)
        finally:
            slot_key.wipe()
        material = bytearray(encrypted)
        cipher.decrypt_into(material, 0, material)
        try:
            return merge_key(memoryview(material)[: slot.material_size], slot.key_size, slot.af_hash)
        finally:
            material[:] = bytes(len(material))

    key = await _in_thread(open_slot)
    if await _has_digest(header, key):
        return key
    key.wipe()
    return None


async def _has_digest(header: LuksHeader, key: Secret) -> bool:
    digest = header.digest
    found = await _in_thread(lambda: derive_key(digest.kdf, key, len(digest.digest)))
    return hmac.compare_digest(found.view, digest.digest)


async def _in_thread(action: Callable[[], Secret]) -> Secret:
    """Run something long; when we are cancelled meanwhile, it is left behind."""
    return await trio.to_thread.run_sync(action, abandon_on_cancel=True)
