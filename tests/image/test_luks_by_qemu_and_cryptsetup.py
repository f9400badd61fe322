"""We open images that cryptsetup and qemu-img encrypt, with every cipher, hash and sector size."""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest
import trio

from mystfuse.devices.device import Extent
from mystfuse.formats.fssig import Fssig
from tests.support.commands import run
from tests.support.dm_crypt import encrypt_sectors
from tests.support.encrypted_images import write_secret
from tests.support.luks_peers import (
    MIB,
    PASSPHRASE,
    PBKDF2,
    Sealed,
    assert_opens,
    assert_shows,
    assert_wrong,
    cryptsetup,
    dumped,
    edit_luks2,
    fill,
    luks2_document,
    luks_format,
    opened,
    payload_offset,
    qemu_decrypt,
    qemu_encrypt,
    reencrypt,
    refusal,
    seal,
)
from tests.support.mounts import mounted


async def assert_holds(sealed: Sealed, plain: bytes, key: bytes | None, passphrase: bytes | None) -> None:
    """Each of the given keys opens it, and its contents are exactly ``plain``: whole, and in pieces from anywhere."""
    for given in ({"key": key}, {"passphrase": passphrase}):
        if None in given.values():
            continue
        async with opened(sealed, **given) as pipeline:
            assert pipeline.device.size >= len(plain)
            whole = [Extent(at, MIB) for at in range(0, len(plain), MIB)]
            assert b"".join(await pipeline.device.read(whole)) == plain, given.keys()
            chance = random.Random(1)
            pieces = [Extent(chance.randrange(len(plain) - 9000), chance.randrange(1, 9000)) for _ in range(60)]
            for (offset, length), data in zip(pieces, await pipeline.device.read(pieces), strict=True):
                assert bytes(data) == plain[offset : offset + length]


def volume_key(image: Path, passphrase: Path) -> bytes:
    """The master key, as cryptsetup finds it."""
    found = image.with_suffix(".key")
    found.unlink(missing_ok=True)
    cryptsetup("luksDump", "--dump-volume-key", f"--volume-key-file={found}", f"--key-file={passphrase}", image)
    return found.read_bytes()


@pytest.mark.parametrize(
    ("cipher", "mode", "iv", "hash_name"),
    [
        ("aes-128", "xts", "plain64", "sha1"),
        ("aes-192", "xts", "plain64", "sha256"),
        ("aes-256", "xts", "plain", "sha512"),
        ("aes-128", "cbc", "essiv:sha256", "sha256"),
        ("aes-128", "cbc", "plain", "sha1"),
    ],
)
async def test_images_by_qemu_are_read(
    cipher: str, mode: str, iv: str, hash_name: str, plain: Path, passphrase: Path, scratch: Path
) -> None:
    image = scratch / "image"
    qemu_encrypt(plain, image, passphrase, cipher, mode, iv, hash_name)
    # cryptsetup does not find this key: the kernel's XTS lacks AES-192.
    key = None if (cipher, mode) == ("aes-192", "xts") else volume_key(image, passphrase)
    await assert_holds(seal(image), plain.read_bytes(), key, PASSPHRASE)


def test_images_by_qemu_in_ecb_are_read(plain: Path, passphrase: Path, scratch: Path) -> None:
    """qemu writes a mode of initialization vectors into the header even where there are none, and dm-crypt ignores it
    (drivers/md/dm-crypt.c, crypt_ctr_ivmode: "Selected cipher does not support IVs")."""
    image = scratch / "image"
    qemu_encrypt(plain, image, passphrase, "aes-256", "ecb", "plain64", "sha256")
    assert dumped(image)["Cipher mode"] == "ecb-plain64"
    qemu_decrypt(image, passphrase, scratch / "raw")
    assert (scratch / "raw").read_bytes() == plain.read_bytes()
    trio.run(assert_holds, seal(image), plain.read_bytes(), None, PASSPHRASE)


def test_an_image_by_qemu_mounts(plain: Path, passphrase: Path, scratch: Path) -> None:
    image = scratch / "image"
    qemu_encrypt(plain, image, passphrase, "aes-256", "cbc", "essiv:sha256", "sha256")
    assert_shows(seal(image), plain, scratch, f"--passphrase-file={passphrase}")


@pytest.mark.parametrize(
    ("cipher", "bits", "sector_size"),
    [
        ("aes-xts-plain64", 256, 512),
        ("aes-xts-plain64", 512, 4096),
        ("aes-xts-plain", 512, 1024),
        ("aes-cbc-essiv:sha256", 128, 2048),
        ("aes-cbc-essiv:sha256", 256, 512),
        ("aes-cbc-plain64", 192, 4096),
        ("aes-cbc-plain", 256, 512),
        ("aes-ecb", 256, 1024),
    ],
)
async def test_files_that_cryptsetup_encrypts_are_read(
    cipher: str, bits: int, sector_size: int, plain_4096: Path, passphrase: Path, scratch: Path
) -> None:
    image, key = scratch / "image", secrets.token_bytes(bits // 8)
    reencrypt(plain_4096, image, passphrase, key, cipher, sector_size)
    segment = luks2_document(image)["segments"]["0"]
    assert (segment["encryption"], segment["sector_size"]) == (cipher, sector_size)
    await assert_holds(seal(image), plain_4096.read_bytes(), key, PASSPHRASE)


async def test_a_file_that_cryptsetup_encrypts_anew_is_read(plain_4096: Path, passphrase: Path, scratch: Path) -> None:
    """With another key and cipher: reencryption replaces the header's old key."""
    image, old_key, new_key = scratch / "image", secrets.token_bytes(64), secrets.token_bytes(32)
    reencrypt(plain_4096, image, passphrase, old_key, "aes-xts-plain64", 4096)
    write_secret(scratch / "new", new_key)
    cryptsetup("reencrypt", "--force-offline-reencrypt", "--cipher=aes-cbc-essiv:sha256", "--key-size=256", *PBKDF2,
               "--sector-size=512", f"--volume-key-file={scratch / 'new'}", f"--key-file={passphrase}",
               image)  # fmt: skip
    sealed = seal(image)
    await assert_holds(sealed, plain_4096.read_bytes(), new_key, PASSPHRASE)
    await assert_wrong(sealed, key=old_key)


def test_a_file_that_cryptsetup_encrypts_mounts(plain_4096: Path, passphrase: Path, scratch: Path) -> None:
    image, key = scratch / "image", secrets.token_bytes(64)
    reencrypt(plain_4096, image, passphrase, key, "aes-xts-plain64", 4096)
    key_file = write_secret(scratch / "key", key.hex().upper().encode() + b"\n")
    assert_shows(seal(image), plain_4096, scratch, f"--key-file={key_file}")


@pytest.mark.parametrize(
    ("cipher", "bits", "hash_name"),
    [
        ("aes-xts-plain64", 256, "sha1"),
        ("aes-xts-plain64", 512, "sha256"),
        ("aes-xts-plain64", 512, "sha512"),
        ("aes-xts-plain", 512, "sha384"),
        ("aes-cbc-essiv:sha256", 128, "sha1"),
        ("aes-cbc-essiv:sha256", 192, "sha224"),
        ("aes-cbc-essiv:sha256", 256, "sha512"),
        ("aes-cbc-plain64", 128, "sha256"),
        ("aes-cbc-plain", 192, "sha512"),
        ("aes-cbc-plain", 256, "sha1"),
        ("aes-ecb", 128, "sha256"),
        ("aes-ecb", 256, "sha1"),
    ],
)
async def test_every_cipher_and_hash_of_luks1_is_read(
    cipher: str, bits: int, hash_name: str, plain: Path, passphrase: Path, scratch: Path
) -> None:
    key, data = secrets.token_bytes(bits // 8), plain.read_bytes()
    image = luks_format(scratch / "image", passphrase, key, f"--cipher={cipher}", f"--hash={hash_name}")
    assert dumped(image)["Hash spec"] == hash_name
    sealed = fill(image, encrypt_sectors(cipher, key, data))
    await assert_holds(sealed, data, key, PASSPHRASE)
    await assert_wrong(sealed, key=secrets.token_bytes(bits // 8))


ARGON2 = ("--pbkdf-force-iterations=4", "--pbkdf-memory=256", "--pbkdf-parallel=2")


@pytest.mark.parametrize(
    ("cipher", "bits", "sector_size", "options"),
    [
        ("aes-xts-plain64", 256, 512, ("--hash=sha1",)),
        ("aes-xts-plain64", 512, 512, ("--hash=sha512", "--pbkdf=argon2i", *ARGON2)),
        ("aes-xts-plain64", 512, 1024, ("--pbkdf=argon2id", *ARGON2)),
        (
            "aes-xts-plain64",
            512,
            2048,
            ("--pbkdf=argon2id", "--pbkdf-force-iterations=5", "--pbkdf-memory=3001", "--pbkdf-parallel=3"),
        ),
        ("aes-xts-plain64", 256, 4096, ("--pbkdf=pbkdf2", "--iter-time=1", "--hash=sha384")),
        ("aes-xts-plain", 512, 4096, ("--hash=sha224",)),
        ("aes-cbc-essiv:sha256", 128, 512, ("--pbkdf=argon2i", *ARGON2)),
        ("aes-cbc-essiv:sha256", 256, 1024, ("--hash=sha1",)),
        ("aes-cbc-essiv:sha256", 192, 4096, ()),
        ("aes-cbc-plain64", 256, 2048, ("--keyslot-cipher=aes-cbc-plain64", "--keyslot-key-size=128")),
        ("aes-cbc-plain64", 128, 512, ("--luks2-metadata-size=128k", "--luks2-keyslots-size=1m")),
        ("aes-cbc-plain", 256, 512, ("--offset=40960",)),
        ("aes-cbc-plain", 192, 4096, ("--keyslot-cipher=aes-xts-plain64", "--keyslot-key-size=256")),
        ("aes-ecb", 256, 4096, ("--label=a label", "--subsystem=one")),
        ("aes-ecb", 128, 512, ("--hash=sha512",)),
    ],
)
async def test_every_cipher_and_sector_size_of_luks2_is_read(
    cipher: str, bits: int, sector_size: int, options: tuple[str, ...], plain: Path, passphrase: Path, scratch: Path
) -> None:
    key, data = secrets.token_bytes(bits // 8), plain.read_bytes()
    image = luks_format(scratch / "image", passphrase, key, f"--cipher={cipher}", f"--sector-size={sector_size}",
                        *options, version=2)  # fmt: skip
    for option, value in (option.split("=") for option in options if option.startswith("--pbkdf=")):
        assert luks2_document(image)["keyslots"]["0"]["kdf"]["type"] == value, option
    sealed = fill(image, encrypt_sectors(cipher, key, data, 0, sector_size))
    await assert_holds(sealed, data, key, PASSPHRASE)
    await assert_wrong(sealed, passphrase=PASSPHRASE[:-1])


@pytest.mark.parametrize(
    ("version", "cipher", "bits", "options"),
    [
        (1, "aes-ecb", 128, ("--hash=sha1",)),
        (2, "aes-xts-plain64", 512, ("--pbkdf=argon2id", *ARGON2, "--sector-size=2048")),
    ],
)
def test_headers_by_cryptsetup_mount(
    version: int, cipher: str, bits: int, options: tuple[str, ...], plain: Path, passphrase: Path, scratch: Path
) -> None:
    """With an fssig, by passphrase and by key. (We also read EXT2 blocks smaller than a sector, which dm-crypt
    refuses.)"""
    key, sector_size = secrets.token_bytes(bits // 8), 2048 if version == 2 else 512
    image = luks_format(scratch / "image", passphrase, key, f"--cipher={cipher}", *options, version=version)
    sealed = fill(image, encrypt_sectors(cipher, key, plain.read_bytes(), 0, sector_size))
    assert_shows(sealed, plain, scratch, f"--key-file={image.with_suffix('.key')}")
    with sealed.image.open("ab") as file:
        file.write(Fssig(sealed.hash_offset, bytes.fromhex(sealed.root_hash)).pack())
    with mounted(
        image, scratch / "mount", f"--roothash={sealed.root_hash}", f"--passphrase-file={passphrase}"
    ) as shown:
        assert (shown / "hello.txt").read_text() == "hello\n"
        (shown / "hello.txt").write_text("changed\n")
        assert (shown / "sub/hard").read_text() == "changed\n"


async def test_passphrases_can_be_any_bytes(plain: Path, scratch: Path) -> None:
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    encrypted = encrypt_sectors("aes-xts-plain64", key, data)
    for number, said in enumerate((b"\0", b"a\nb", bytes(range(256)) * 32, "käse".encode("latin-1"), b"x" * 4096)):
        file = write_secret(scratch / "file", said)
        sealed = fill(luks_format(scratch / "image", file, key, version=1 + number % 2), encrypted)
        await assert_opens(sealed, data, passphrase=said)
        # No zero byte at the end: HMAC pads short keys with those.
        await assert_wrong(sealed, passphrase=said + b"!")


@pytest.mark.parametrize("version", [1, 2])
async def test_headers_that_cryptsetup_converts_are_read(
    version: int, plain: Path, passphrase: Path, scratch: Path
) -> None:
    key, data = secrets.token_bytes(64), plain.read_bytes()
    image = luks_format(scratch / "image", passphrase, key, version=version)
    cryptsetup("convert", f"--type=luks{3 - version}", image)
    assert dumped(image)["Version"] == str(3 - version)
    await assert_holds(fill(image, encrypt_sectors("aes-xts-plain64", key, data)), data, key, PASSPHRASE)


@pytest.mark.parametrize("cipher", ["aes-xts-plain64", "aes-xts-plain", "aes-cbc-plain64", "aes-cbc-plain"])
@pytest.mark.parametrize("sector_size", [512, 4096])
async def test_segments_with_an_iv_tweak_and_a_size_are_read(
    cipher: str, sector_size: int, passphrase: Path, scratch: Path
) -> None:
    """Sector numbers that pass 32 bits, where plain and plain64 differ."""
    tweak, size = (1 << 32) - 1000, MIB
    run("mke2fs", "-q", "-t", "ext2", scratch / "plain", f"{size >> 10}k")
    key, data = secrets.token_bytes(32), (scratch / "plain").read_bytes()
    image = luks_format(scratch / "image", passphrase, key, f"--cipher={cipher}", f"--sector-size={sector_size}",
                        version=2)  # fmt: skip
    edit_luks2(image, lambda document: document["segments"]["0"].update(iv_tweak=str(tweak), size=str(size)))
    os.truncate(image, payload_offset(image) + size)
    sealed = fill(image, encrypt_sectors(cipher, key, data, 0, sector_size, tweak))
    await assert_holds(sealed, data, key, PASSPHRASE)
    async with opened(sealed, key=key) as pipeline:
        assert pipeline.device.size == size
    # The tree covers bytes behind the payload; no read returns them, and they are not those that the test wrote.
    os.truncate(image, payload_offset(image) + size + MIB)
    assert "the LUKS payload has 1048576 bytes, but" in str(await refusal(fill(image, b""), key=key))
