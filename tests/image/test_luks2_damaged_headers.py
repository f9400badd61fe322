"""LUKS2 headers by cryptsetup, one or both of them damaged or old."""

from __future__ import annotations

import random
import re
import secrets
from pathlib import Path

import pytest

from mystfuse.errors import MystfuseError
from tests.support.commands import mystfuse
from tests.support.dm_crypt import encrypt_sectors
from tests.support.luks_peers import (
    FORMAT,
    MIB,
    PASSPHRASE,
    PAYLOAD,
    PBKDF2,
    Sealed,
    assert_opens,
    assert_refused,
    assert_wrong,
    cryptsetup,
    luks_format,
    refusal,
    seal,
)
from tests.support.mounts import clear_mount


@pytest.mark.logs(r"^mystfuse\.image\.unlock")
@pytest.mark.parametrize("size", ["16k", "64k", "1m", "4m"])
async def test_one_good_luks2_header_is_enough(size: str, plain: Path, passphrase: Path, scratch: Path) -> None:
    """Wherever the second header is. We open exactly those images that cryptsetup opens."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    options = (f"--luks2-metadata-size={size}", "--luks2-keyslots-size=1m")
    image = luks_format(scratch / "image", passphrase, key, *options, version=2)
    header = int(size[:-1]) * {"k": 1024, "m": MIB}[size[-1]]
    payload = encrypt_sectors("aes-xts-plain64", key, data)
    noise = random.Random(3).randbytes(header)
    damages = {
        "magic": (0, b"\0"),
        "size": (8, b"\xff" * 8),
        "seqid": (16, b"\xff"),
        "checksum": (0x1C0, b"damaged"),
        "after the header": (600, b"damaged"),
        "JSON": (4096 + 30, b"damaged"),
        "end of the JSON area": (header - 1, b"x"),
        "overwritten with zeros": (0, bytes(header)),
        "overwritten with noise": (0, noise),
    }
    original = image.read_bytes()
    copy = scratch / "copy"
    for which, start in (("first", 0), ("second", header)):
        for damage, (offset, found) in damages.items():
            if size != "16k" and "overwritten" not in damage and damage != "JSON":
                continue
            copy.write_bytes(original)
            with copy.open("r+b") as file:
                file.seek(start + offset)
                file.write(found)
            sealed = fill_at(copy, payload, len(original) - PAYLOAD)
            try:
                await assert_opens(sealed, data, passphrase=PASSPHRASE)
                await assert_opens(sealed, data, key=key)
            except MystfuseError as error:
                pytest.fail(f"{which} header, {damage}: {error!r}")
            # cryptsetup repairs a header that it opens, so it comes last.
            cryptsetup("open", "--test-passphrase", f"--key-file={passphrase}", copy)


@pytest.mark.logs(r"^mystfuse\.image\.unlock")
async def test_a_luks2_header_whose_version_is_damaged_is_a_damaged_one(
    plain: Path, passphrase: Path, scratch: Path
) -> None:
    """Unless the version says LUKS1. cryptsetup gives up on other versions, though the second header is good."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", passphrase, key, version=2)
    payload = encrypt_sectors("aes-xts-plain64", key, data)
    for version in (b"\0\0", b"\0\3", b"\xff\2", b"\0\1"):
        with image.open("r+b") as file:
            file.truncate(24 * MIB)
            file.seek(6)
            file.write(version)
        sealed = fill_at(image, payload, 16 * MIB)
        if version == b"\0\1":
            await refusal(sealed, passphrase=PASSPHRASE)
        else:
            await assert_opens(sealed, data, passphrase=PASSPHRASE)
            await assert_opens(sealed, data, key=key)


def fill_at(image: Path, data: bytes, offset: int) -> Sealed:
    """``fill`` for a header that cryptsetup may fail to read."""
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return seal(image)


def test_a_mount_with_a_damaged_luks2_header_says_so(plain: Path, passphrase: Path, scratch: Path) -> None:
    key = secrets.token_bytes(64)
    image = luks_format(scratch / "image", passphrase, key, version=2)
    with image.open("r+b") as file:
        file.write(bytes(16 << 10))
    sealed = fill_at(image, encrypt_sectors("aes-xts-plain64", key, plain.read_bytes()), 16 * MIB)
    mountpoint = scratch / "mount"
    mountpoint.mkdir()
    try:
        result = mystfuse("mount", *sealed.options, f"--passphrase-file={passphrase}", image, mountpoint)
        assert result.returncode == 0, result.stderr
        assert re.fullmatch(r"mystfuse: warning: [^\n]*first LUKS2 header is damaged[^\n]*\n", result.stderr), result
        assert (mountpoint / "hello.txt").read_text() == "hello\n"
    finally:
        clear_mount(mountpoint)


@pytest.mark.parametrize("damage", ["checksums", "JSON", "first gone", "second gone"])
async def test_with_both_luks2_headers_damaged_the_image_is_refused(
    damage: str, plain: Path, passphrase: Path, scratch: Path
) -> None:
    image = luks_format(scratch / "image", passphrase, secrets.token_bytes(64), version=2)
    at = {"checksums": (0x1C0, 0x41C0), "JSON": (4100, 20500), "first gone": (0, 20500), "second gone": (4100, 0x4000)}
    with image.open("r+b") as file:
        for offset in at[damage]:
            file.seek(offset)
            file.write(bytes(4096 if offset in (0, 0x4000) else 16))
    assert cryptsetup("open", "--test-passphrase", f"--key-file={passphrase}", image, check=False).returncode != 0
    sealed = seal(image)
    assert_refused(sealed, scratch / "mount", f"--passphrase-file={passphrase}", status=FORMAT, because="damaged")
    assert "damaged" in str(await refusal(sealed, key=image.with_suffix(".key").read_bytes()))


@pytest.mark.parametrize("stale", [0, 16 << 10])
async def test_the_newer_luks2_header_counts(stale: int, slots: list[Path], plain: Path, scratch: Path) -> None:
    """A change that was interrupted between the two headers: one of them is good, but out of date."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=2)
    before = image.read_bytes()[stale : stale + (16 << 10)]
    cryptsetup("luksChangeKey", f"--key-file={slots[0]}", *PBKDF2, image, slots[1])
    with image.open("r+b") as file:
        file.seek(stale)
        file.write(before)
    sealed = fill_at(image, encrypt_sectors("aes-xts-plain64", key, data), 16 * MIB)
    await assert_opens(sealed, data, passphrase=slots[1].read_bytes())
    await assert_wrong(sealed, passphrase=slots[0].read_bytes())
