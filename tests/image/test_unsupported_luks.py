"""We refuse unsupported LUKS features by name."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest

from mystfuse.errors import UnsupportedFeature
from tests.support.luks_peers import (
    FORMAT,
    PASSPHRASE,
    PBKDF2,
    assert_refused,
    cryptsetup,
    edit_luks2,
    luks_format,
    qemu_encrypt,
    reencrypt,
    refusal,
    seal,
)


def test_an_unfinished_encryption_by_cryptsetup_is_refused_by_name(
    plain_4096: Path, passphrase: Path, scratch: Path
) -> None:
    image = scratch / "image"
    reencrypt(plain_4096, image, passphrase, secrets.token_bytes(64), "aes-xts-plain64", 512, "--init-only")
    assert_refused(seal(image), scratch / "mount", f"--passphrase-file={passphrase}",
                   status=FORMAT, because="online-reencrypt")  # fmt: skip


def test_a_detached_header_is_refused(plain_4096: Path, passphrase: Path, scratch: Path) -> None:
    """Even with a key, its payload is not read as another format."""
    payload, header = scratch / "payload", scratch / "header"
    shutil.copyfile(plain_4096, payload)
    cryptsetup("reencrypt", "--encrypt", "--force-offline-reencrypt", f"--header={header}", *PBKDF2,
               f"--key-file={passphrase}", payload)  # fmt: skip
    option = f"--passphrase-file={passphrase}"
    assert_refused(seal(header), scratch / "mount", option, status=FORMAT, because="detached header")
    assert_refused(seal(payload), scratch / "mount", option, status=FORMAT, because="not an EXT2 file system")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("cipher", ["aes-cbc-benbi", "aes-cbc-null", "aes-ctr-plain64"])
async def test_ciphers_by_cryptsetup_that_we_lack_are_refused_by_name(
    version: int, cipher: str, passphrase: Path, scratch: Path
) -> None:
    key = secrets.token_bytes(32)
    image = luks_format(scratch / "image", passphrase, key, f"--cipher={cipher}", version=version)
    sealed = seal(image)
    for given in ({"key": key}, {"passphrase": PASSPHRASE}):
        error = await refusal(sealed, **given)
        assert isinstance(error, UnsupportedFeature)
        assert cipher in str(error)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("hash_name", ["ripemd160", "whirlpool", "blake2b-512"])
async def test_hashes_by_cryptsetup_that_we_lack_are_refused_by_name(
    version: int, hash_name: str, passphrase: Path, scratch: Path
) -> None:
    key = secrets.token_bytes(64)
    image = luks_format(scratch / "image", passphrase, key, f"--hash={hash_name}", version=version)
    error = await refusal(seal(image), passphrase=PASSPHRASE)
    assert isinstance(error, UnsupportedFeature)
    assert hash_name in str(error)


@pytest.mark.parametrize(
    ("cipher", "mode", "iv", "name"),
    [
        ("serpent-256", "xts", "plain64", "serpent-xts-plain64"),
        ("twofish-256", "cbc", "essiv:sha256", "twofish-cbc-essiv:sha256"),
        ("aes-256", "xts", "essiv:sha256", "aes-xts-essiv:sha256"),
    ],
)
def test_ciphers_by_qemu_that_we_lack_are_refused_by_name(
    cipher: str, mode: str, iv: str, name: str, passphrase: Path, scratch: Path
) -> None:
    (scratch / "small").write_bytes(bytes(64 << 10))
    qemu_encrypt(scratch / "small", scratch / "image", passphrase, cipher, mode, iv, "sha256")
    assert_refused(seal(scratch / "image"), scratch / "mount", f"--passphrase-file={passphrase}",
                   status=FORMAT, because=name)  # fmt: skip


@pytest.mark.parametrize("cipher", ["serpent-xts-plain64", "twofish-xts-plain64", "capi:gcm(aes)-random"])
async def test_luks2_ciphers_that_we_lack_are_refused_by_name(cipher: str, passphrase: Path, scratch: Path) -> None:
    image = luks_format(scratch / "image", passphrase, secrets.token_bytes(64), version=2)
    edit_luks2(image, lambda document: document["segments"]["0"].update(encryption=cipher))
    assert cipher in cryptsetup("luksDump", image).stdout
    sealed = seal(image)
    assert cipher in str(await refusal(sealed, key=image.with_suffix(".key").read_bytes()))
    assert_refused(sealed, scratch / "mount", f"--passphrase-file={passphrase}", status=FORMAT, because=cipher)
