"""Opening an encrypted image: find its LUKS header behind the hash tree, and the key that opens it."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from mystfuse.crypto.kdf_limit import KdfLimit
from mystfuse.crypto.key_derivation import merge_key
from mystfuse.crypto.secret import Secret
from mystfuse.crypto.sector_ciphers import SECTOR_SIZE, make_sector_cipher
from mystfuse.devices.crypt import CryptDevice
from mystfuse.devices.device import Device, Extent
from mystfuse.errors import FormatError, MystfuseError, UnsupportedFeature, WrongKey
from mystfuse.ext2.constants import EXT2_SUPER_MAGIC, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE
from mystfuse.formats.luks import Argon2, Keyslot, LuksHeader, Pbkdf2
from mystfuse.formats.luks1 import LUKS1_HEADER_SIZE, parse_luks1
from mystfuse.formats.luks2 import BINARY_HEADER_SIZE, HEADER_SIZES, HeaderCopy, parse_luks2
from mystfuse.formats.luks_magic import LUKS_MAGIC
from mystfuse.image.keys import Keys
from mystfuse.image.progress import Progress
from mystfuse.system.memory import available_memory
from mystfuse.system.threads import call_in_thread

log = logging.getLogger(__name__)

_WORTH_SAYING = 10
"""Seconds: longer work is announced, also without a terminal."""


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
        FormatError: an invalid header, or both damaged.
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
        # Parsed again from verified bytes: a second read may return others.
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
        # The first header states the place of the second.
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
    """The part of a range that lies within a device."""
    length = min(length, device.size - offset)
    if length <= 0:
        return b""
    (data,) = await device.read([Extent(offset, length)])
    return bytes(data)


async def unlock(verified: Device, header: LuksHeader, keys: Keys, progress: Progress) -> Unlocked:
    """Open an encrypted device; in every case the keys are wiped, and the deriver has ended.

    Args:
        progress: shown while keys are derived, with their cost.

    Raises:
        WrongKey: no key, an impossible one, or not this image's.
        FormatError: the header does not fit the device, or opening it would cost more than the limit of ``keys``.
        MystfuseError: opening it did cost more.
        IntegrityError, ImageReadError: as the device does.
    """
    try:
        size = header.check_fits(verified.size)
        if keys.master_key is not None:
            key = await _match_master_key(header, keys, keys.master_key, progress)
        elif keys.passphrase is not None:
            key = await _try_slots(verified, header, keys, keys.passphrase, progress)
        else:
            raise WrongKey(f"encrypted (LUKS{header.version}, {header.cipher}): give --key-file or --passphrase-file")
    finally:
        keys.wipe()
        await keys.end_deriver()
    try:
        cipher = make_sector_cipher(
            header.cipher.chain_mode, header.cipher.iv_mode, key.view, header.sector_size, header.iv_tweak
        )
    finally:
        key.wipe()
    return Unlocked(header, CryptDevice(verified, cipher, header.payload_offset, size, header.sector_size))


def _check_cost(keys: Keys, what: str, derivations: Sequence[tuple[Pbkdf2 | Argon2, int]]) -> None:
    """Raise FormatError if all of these derivations, each with its length, would cost too much.

    All of them count: the header's author may have made only the last one succeed.
    """
    limit = keys.limit
    seconds = sum(kdf.seconds(length) for kdf, length in derivations)
    memory = max(kdf.memory_size for kdf, _ in derivations)
    if seconds > limit.seconds or memory > limit.memory:
        enough = KdfLimit(max(ceil(seconds * 2), limit.seconds), max(memory, limit.memory))
        raise FormatError(
            f"{what} would take about {seconds:.0f} s and {memory >> 20} MiB of memory, more than {limit} allows "
            f"(--kdf-limit {enough} does)"
        )
    if seconds >= _WORTH_SAYING:
        log.warning("%s will take up to about %d s and %d MiB of memory", what, ceil(seconds), memory >> 20)
    if memory > available_memory():
        raise MystfuseError(f"{what} needs more memory than there is ({memory >> 20} MiB)")


async def _match_master_key(header: LuksHeader, keys: Keys, given: Secret, progress: Progress) -> Secret:
    """The master key in the form that fits, if it is right."""
    tried = False
    forms = list(_forms(given, header.key_sizes))
    try:
        kdf, length = header.digest.kdf, len(header.digest.digest)
        if forms:
            _check_cost(keys, "checking the key", [(kdf, length)] * len(forms))
        for candidate in forms:
            tried = True
            with progress(f"checking the key: {kdf} (about {ceil(kdf.seconds(length))} s)", None):
                if await _has_digest(header, keys, candidate):
                    return Secret.copy_of(candidate.view)
    finally:
        for candidate in forms:
            candidate.wipe()
    if tried:
        raise WrongKey("wrong key: it is not the master key of this image")
    sizes = " or ".join(str(size) for size in header.key_sizes)
    raise WrongKey(
        f"the key has {len(given)} bytes, but the master key of this image has {sizes} (or twice as many hex digits); "
        "a passphrase goes into --passphrase-file"
    )


def _forms(given: Secret, key_sizes: tuple[int, ...]) -> Iterator[Secret]:
    """The possible meanings of a key file's contents: the key itself, or its hex digits (surrounding white space is
    ignored)."""
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


async def _try_slots(
    verified: Device, header: LuksHeader, keys: Keys, passphrase: Secret, progress: Progress
) -> Secret:
    """The master key from the first key slot that the passphrase opens, in the order of their priorities."""
    slots = sorted((slot for slot in header.keyslots if slot.priority), key=lambda slot: (-slot.priority, slot.number))
    if not slots:
        raise WrongKey(
            "no key slot of this image can be used, so no passphrase opens it: give the master key (--key-file)"
        )
    digest = header.digest.kdf, len(header.digest.digest)
    costs = [cost for slot in slots for cost in ((slot.kdf, slot.cipher_key_size), digest)]
    _check_cost(keys, f"trying {len(slots)} key slot{'s' * (len(slots) > 1)}", costs)
    seconds = ceil(sum(kdf.seconds(length) for kdf, length in costs))
    for index, slot in enumerate(slots, 1):
        about = f"about {ceil(slot.kdf.seconds(slot.cipher_key_size))} s; {index} of {len(slots)}, {seconds} s for all"
        with progress(f"key slot {slot.number}: {slot.kdf} ({about})", None):
            key = await _try_slot(verified, header, keys, slot, passphrase)
        if key is not None:
            return key
    others = "".join(f"; {reason}" for reason in header.unusable)
    raise WrongKey(f"wrong passphrase: it opens none of the {len(slots)} key slots{others}")


async def _try_slot(
    verified: Device, header: LuksHeader, keys: Keys, slot: Keyslot, passphrase: Secret
) -> Secret | None:
    (encrypted,) = await verified.read([Extent(slot.offset, -(-slot.material_size // SECTOR_SIZE) * SECTOR_SIZE)])

    slot_key = await _derive(keys, slot.kdf, passphrase, slot.cipher_key_size)

    def open_slot() -> Secret:
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
    if await _has_digest(header, keys, key):
        return key
    key.wipe()
    return None


async def _has_digest(header: LuksHeader, keys: Keys, key: Secret) -> bool:
    digest = header.digest
    found = await _derive(keys, digest.kdf, key, len(digest.digest))
    return hmac.compare_digest(found.view, digest.digest)


async def _derive(keys: Keys, kdf: Pbkdf2 | Argon2, secret: Secret, length: int) -> Secret:
    parameters: dict[str, str | int] = {"salt": kdf.salt.hex()}
    if isinstance(kdf, Pbkdf2):
        parameters |= {"hash_name": kdf.hash_name, "iterations": kdf.iterations}
    else:
        parameters |= {"variant": kdf.variant, "time": kdf.time, "memory": kdf.memory, "cpus": kdf.cpus}
    return await keys.start_deriver().derive(parameters, secret, length)


async def _in_thread(action: Callable[[], Secret]) -> Secret:
    """Run long work in a thread, which a cancellation leaves behind."""
    return await call_in_thread(action)
