"""Unlocking: the master key or a passphrase opens a LUKS image, anything else is a clear error, and keys are wiped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import trio

import mystfuse.image.keys
import mystfuse.image.unlock
from mystfuse.crypto.key_derivation import split_key
from mystfuse.crypto.secret import Secret
from mystfuse.crypto.sector_ciphers import XtsCipher
from mystfuse.devices.device import Extent
from mystfuse.errors import FormatError, ImageReadError, IntegrityError, MystfuseError, WrongKey
from mystfuse.formats.luks import (
    MAX_ITERATIONS,
    Argon2,
    CipherSpec,
    KeyDigest,
    Keyslot,
    LuksHeader,
    Pbkdf2,
)
from mystfuse.image.keys import Keys, derive_key
from mystfuse.image.unlock import Unlocked, unlock
from tests.support.dm_crypt import encrypt_sectors, randbytes
from tests.support.ext2_editor import MemoryDevice
from tests.support.luks_headers import CIPHERS, DISABLED, MIB, XTS, flipped, luks1, luks1_slot, read

KEY = randbytes(64, "master key")
DIGITS = KEY.hex().encode()
PASSPHRASE = b"correct horse battery"
PAYLOAD = randbytes(40_960, "payload")
SLOTS_OFFSET, PAYLOAD_OFFSET = 4096, 64 << 10


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
    """A header with a slot for each passphrase, and its device; few iterations, to be fast."""
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
            assert XtsCipher(memoryview(slot_key)).encrypt(material, 0) == encrypt_sectors(
                str(slot_spec), slot_key, material
            )
        device[slot.offset : slot.offset + len(material)] = encrypt_sectors(str(slot_spec), slot_key, bytes(material))
        slots.append(slot)
    salt = randbytes(32, "digest")
    digest = KeyDigest(Pbkdf2("sha256", salt, 30), hashlib.pbkdf2_hmac("sha256", key, salt, 30, 32))
    header = LuksHeader(2, "uuid", spec, (len(key),), PAYLOAD_OFFSET, None, sector_size, iv_tweak, tuple(slots), digest)
    return header, bytes(device) + encrypt_sectors(cipher, key, PAYLOAD, 0, sector_size, iv_tweak)


class Shown:
    """A progress object that records what it shows."""

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
    """Unlock; in every case the keys must be wiped."""
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
def test_an_impossible_key_is_reported_at_once(wrong: bytes) -> None:
    header, content = locked()
    # The digest alone would take a minute.
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
def test_a_wrong_key_is_reported(wrong: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(WrongKey, match="wrong key") as caught:
        open_with(locked(), key=wrong)
    assert time.process_time() - begin < 2
    assert wrong.hex() not in str(caught.value)


def test_what_can_be_a_key_in_two_forms_is_tried_in_both() -> None:
    """64 hex digits are a key of 64 bytes, or of 32; for a header without slots we try both."""
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
    """From the header's bytes to the payload, with 4000 stripes."""
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
    content = header.ljust(300 * 512, b"\0") + encrypt_sectors("aes-cbc-essiv:sha256", slot_key, material)
    content = content.ljust(1000 * 512, b"\0") + encrypt_sectors("aes-cbc-essiv:sha256", key, PAYLOAD)
    parsed = read(content)
    assert parsed is not None
    check_payload(open_with((parsed, content), passphrase=PASSPHRASE))
    with pytest.raises(WrongKey, match="none of the 1 key slots"):
        open_with((parsed, content), passphrase=PASSPHRASE + b"\n")


def test_a_passphrase_opens_a_slot_of_argon2() -> None:
    header, content = locked()
    kdf = Argon2("argon2id", b"somesalt", 2, 256, 1)
    # phc-winner-argon2, src/test.c: the key that "password" gives.
    slot_key = bytes.fromhex("9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe")
    slot = replace(header.keyslots[0], kdf=kdf, cipher_key_size=32)
    material = bytes(split_key(memoryview(KEY), 8, "sha512", randbytes))
    changed_content = bytearray(content)
    changed_content[slot.offset : slot.offset + 512] = encrypt_sectors("aes-xts-plain64", slot_key, material)
    image = (replace(header, keyslots=(replace(slot, stripes=8),)), bytes(changed_content))
    check_payload(open_with(image, passphrase=b"password"))
    with pytest.raises(WrongKey):
        open_with(image, passphrase=b"passwort")


def test_a_wrong_passphrase_is_reported_and_tries_every_slot() -> None:
    for wrong in (b"wrong", b"", PASSPHRASE[:-1], PASSPHRASE + b"\0", KEY):
        shown = Shown()
        with pytest.raises(WrongKey, match="none of the 3 key slots") as caught:
            open_with(locked((b"1", b"2", b"3")), passphrase=wrong, shown=shown)
        assert shown.slots == [0, 1, 2]
        assert not wrong or wrong.hex() not in str(caught.value)


def test_a_passphrase_without_a_slot_and_no_key_at_all_are_reported() -> None:
    with pytest.raises(WrongKey, match=r"no key slot .*--key-file"):
        open_with(locked(()), passphrase=PASSPHRASE)
    with pytest.raises(WrongKey, match=r"aes-xts-plain64.*--key-file or --passphrase-file"):
        open_with(locked())
    # The master key still opens it.
    check_payload(open_with(locked(()), key=KEY))


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


def test_a_key_derivation_without_its_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_keys_are_wiped_after_a_cancellation() -> None:
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
