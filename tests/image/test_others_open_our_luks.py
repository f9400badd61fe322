"""Images that we encrypt, checked with cryptsetup, qemu-img, nbdkit, veritysetup, e2fsck and the kernel's AES."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mystfuse.devices.device import Extent
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import kernel_mount
from tests.support.luks_peers import (
    MADE,
    MIB,
    NO_KEY_AVAILABLE,
    PASSPHRASE,
    PAYLOAD,
    PBKDF2,
    Made,
    cryptsetup,
    dumped,
    file_system_but_flags,
    luks2_document,
    opened,
    qemu_decrypt,
    seal,
)
from tests.support.mounts import mounted

ENCRYPTED = [name for name in MADE if name != "plain"]


def assert_same_file_system(raw: Path, plain: Made) -> None:
    """e2fsck finds no fault, and the file system equals that of the unencrypted image."""
    run("e2fsck", "-fn", raw)
    data = raw.read_bytes()
    assert not any(data[plain.hash_offset :])
    expected = plain.image.read_bytes()[: plain.hash_offset]
    assert file_system_but_flags(data[: plain.hash_offset]) == file_system_but_flags(expected)


@pytest.mark.parametrize("name", ENCRYPTED)
def test_cryptsetup_knows_our_headers(name: str, made: dict[str, Made]) -> None:
    image, version = made[name].image, name[4]
    assert cryptsetup("isLuks", image, check=False).returncode == 0
    assert cryptsetup("isLuks", "--type", f"luks{version}", image, check=False).returncode == 0
    assert cryptsetup("isLuks", "--type", f"luks{3 - int(version)}", image, check=False).returncode != 0
    probed = run("blkid", "-p", "-s", "TYPE", "-s", "VERSION", "-o", "export", image).stdout.splitlines()
    assert {"TYPE=crypto_LUKS", f"VERSION={version}"} <= set(probed)
    fields = dumped(image)
    assert fields["Version"] == version
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", fields["UUID"])
    assert cryptsetup("luksUUID", image).stdout.strip() == fields["UUID"]
    slots = 0 if name.endswith("no-slot") else 1
    if version == "1":
        assert (fields["Cipher name"], fields["Cipher mode"]) == ("aes", "xts-plain64")
        assert (fields["Hash spec"], fields["MK bits"]) == ("sha256", "512")
        assert [fields[f"Key Slot {slot}"] for slot in range(8)] == ["ENABLED"] * slots + ["DISABLED"] * (8 - slots)
    else:
        document = luks2_document(image)
        assert document["segments"]["0"]["encryption"] == "aes-xts-plain64"
        assert list(document["keyslots"]) == ["0"][:slots]
        assert document["digests"]["0"]["keyslots"] == ["0"][:slots]


@pytest.mark.parametrize("version", [1, 2])
def test_our_headers_are_laid_out_like_those_of_cryptsetup(
    version: int, made: dict[str, Made], secret_files: Path, scratch: Path
) -> None:
    """``cryptsetup luksFormat`` with the original's options makes the same header, except for random values and
    costs."""
    theirs, ours = scratch / "theirs", made[f"luks{version}"].image
    with theirs.open("wb") as file:
        file.truncate(32 * MIB)
    kdf = PBKDF2 if version == 1 else ("--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "64")
    cryptsetup("luksFormat", f"--type=luks{version}", "--cipher=aes-xts-plain64", "--key-size=512", "--hash=sha256",
               *kdf, *(("--sector-size=512",) if version == 2 else ()),
               f"--key-file={secret_files / 'passphrase'}", theirs)  # fmt: skip
    if version == 1:
        assert dumped(ours)["Payload offset"] == dumped(theirs)["Payload offset"] == "4096"
        # LUKS1 specification, figures 1 and 5: mk_digest, its salt, iterations and uuid; iterations and salt of slot 0.
        variable = (range(112, 208), range(212, 248))

        def constant(image: Path) -> bytes:
            with image.open("rb") as file:
                return bytes(0 if any(at in r for r in variable) else b for at, b in enumerate(file.read(592)))

        assert constant(ours) == constant(theirs)
    else:

        def constant_json(image: Path) -> dict[str, Any]:
            document = luks2_document(image)
            for costs in (document["keyslots"]["0"]["kdf"], document["digests"]["0"]):
                for name in costs.keys() & {"salt", "digest", "iterations", "time", "memory", "cpus"}:
                    costs[name] = type(costs[name])()
            return document

        assert constant_json(ours) == constant_json(theirs)
        assert constant_json(ours)["segments"]["0"]["offset"] == str(16 * MIB)


@pytest.mark.parametrize("name", ["luks1", "luks2"])
def test_cryptsetup_gets_our_key_with_our_passphrase(
    name: str, made: dict[str, Made], secret_files: Path, scratch: Path
) -> None:
    image = made[name].image
    passphrase, wrong = (f"--key-file={secret_files / file}" for file in ("passphrase", "wrong-passphrase"))
    cryptsetup("open", "--test-passphrase", passphrase, image)
    refused = cryptsetup("open", "--test-passphrase", wrong, image, check=False)
    assert refused.returncode == NO_KEY_AVAILABLE, refused
    found = scratch / "key"
    cryptsetup("luksDump", "--dump-volume-key", f"--volume-key-file={found}", passphrase, image)
    assert found.read_bytes() == (secret_files / "key").read_bytes()


@pytest.mark.parametrize("name", ["luks1-no-slot", "luks2-no-slot"])
def test_cryptsetup_opens_our_image_without_a_slot_with_the_key(
    name: str, made: dict[str, Made], secret_files: Path, scratch: Path
) -> None:
    image = made[name].image
    for option in ("--volume-key-file", "--master-key-file"):
        for file, status in (("key", 0), ("wrong-key", NO_KEY_AVAILABLE)):
            result = cryptsetup("open", "--test-passphrase", "--key-size=512", f"{option}={secret_files / file}", image,
                                check=False)  # fmt: skip
            assert result.returncode == status, (file, result)
    passphrase = f"--key-file={secret_files / 'passphrase'}"
    assert cryptsetup("open", "--test-passphrase", passphrase, image, check=False).returncode != 0
    # With the key, cryptsetup can also add a passphrase.
    copy = made[name].copy(scratch / "copy")
    cryptsetup("luksAddKey", f"--volume-key-file={secret_files / 'key'}", "--key-size=512", *PBKDF2,
               f"--new-keyfile={secret_files / 'passphrase'}", copy)  # fmt: skip
    cryptsetup("open", "--test-passphrase", passphrase, copy)


@pytest.mark.parametrize("name", ENCRYPTED)
def test_veritysetup_accepts_the_tree_over_header_and_ciphertext(name: str, made: dict[str, Made]) -> None:
    image = made[name]
    verify = ("veritysetup", "verify", image.image, image.image)
    run(*verify, image.root_hash, f"--hash-offset={image.hash_offset}")
    wrong = ("0" if image.root_hash[0] != "0" else "1") + image.root_hash[1:]
    assert run(*verify, wrong, f"--hash-offset={image.hash_offset}", check=False).returncode != 0


def test_qemu_decrypts_our_luks1_image(made: dict[str, Made], passphrase: Path, scratch: Path) -> None:
    image = made["luks1"].copy(scratch / "luks")
    qemu_decrypt(image, passphrase, scratch / "raw")
    assert_same_file_system(scratch / "raw", made["plain"])


def test_nbdkit_serves_our_luks1_image(made: dict[str, Made], passphrase: Path, scratch: Path) -> None:
    image = made["luks1"].copy(scratch / "luks")
    run("nbdkit", "-U", "-", "-r", "--filter=luks", "file", image, f"passphrase=+{passphrase}",
        "--run", f'nbdcopy "$uri" {scratch}/raw')  # fmt: skip
    assert_same_file_system(scratch / "raw", made["plain"])


def test_cryptsetup_decrypts_our_luks2_image(made: dict[str, Made], secret_files: Path, scratch: Path) -> None:
    """In place, with the kernel's AES: only dm-crypt reads LUKS2 otherwise."""
    image = made["luks2-no-slot"].copy(scratch / "luks")
    passphrase = secret_files / "passphrase"
    # A cheap slot, since the test opens it several times.
    cryptsetup("luksAddKey", f"--volume-key-file={secret_files / 'key'}", "--key-size=512", *PBKDF2,
               f"--new-keyfile={passphrase}", image)  # fmt: skip
    cryptsetup("reencrypt", "--decrypt", "--force-offline-reencrypt", f"--header={scratch / 'header'}",
               f"--key-file={passphrase}", image)  # fmt: skip
    with image.open("r+b") as file:
        # cryptsetup moves the payload to the front, and leaves ciphertext behind it.
        file.truncate(made["plain"].hash_offset)
    assert_same_file_system(image, made["plain"])


def test_all_our_ciphertexts_are_the_same_but_for_the_headers(made: dict[str, Made]) -> None:
    """One key, one file system, the same sector numbers: results of qemu-img and cryptsetup for one image hold for
    all."""
    payloads = set()
    for name in ENCRYPTED:
        image = made[name]
        payload = image.image.read_bytes()[: image.hash_offset][-PAYLOAD:]
        assert image.hash_offset == PAYLOAD + (16 * MIB if "luks2" in name else 2 * MIB)
        payloads.add(hashlib.sha256(payload).hexdigest())
    assert len(payloads) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_others_open_what_commit_encrypts(
    version: int, made: dict[str, Made], secret_files: Path, passphrase: Path, scratch: Path
) -> None:
    new = scratch / "new.img"
    with mounted(made["luks1-no-slot"].image, scratch / "mount", f"--key-file={secret_files / 'key'}") as mountpoint:
        (mountpoint / "written").write_bytes(b"written through the mount" * 4000)
        (mountpoint / "hello.txt").unlink()
        options = ("--encrypt", secret_files / "wrong-key", *(("--luks2",) if version == 2 else ()))
        if version == 1:
            options = (*options, "--passphrase-file", passphrase)
        result = mystfuse("commit", *options, mountpoint, new)
        assert result.returncode == 0, result.stderr
    image = Made.read(new)
    run("veritysetup", "verify", new, new, image.root_hash, f"--hash-offset={image.hash_offset}")
    device, raw = image.copy(scratch / "device"), scratch / "raw"
    if version == 1:
        qemu_decrypt(device, passphrase, raw)
    else:
        cryptsetup("luksAddKey", f"--volume-key-file={secret_files / 'wrong-key'}", "--key-size=512", *PBKDF2,
                   f"--new-keyfile={passphrase}", device)  # fmt: skip
        cryptsetup("reencrypt", "--decrypt", "--force-offline-reencrypt", f"--header={scratch / 'header'}",
                   f"--key-file={passphrase}", device)  # fmt: skip
        raw = device
        os.truncate(raw, PAYLOAD)
    run("e2fsck", "-fn", raw)
    with kernel_mount(raw, scratch / "kernel") as kernel:
        assert (kernel / "written").read_bytes() == b"written through the mount" * 4000
        assert not (kernel / "hello.txt").exists()
        assert (kernel / "sub/hard").read_text() == "hello\n"


async def test_our_own_header_converted_by_cryptsetup_is_read(
    made: dict[str, Made], secret_files: Path, scratch: Path
) -> None:
    image = made["luks1"].copy(scratch / "image")
    cryptsetup("convert", "--type=luks2", image)
    plain = made["plain"]
    data = plain.image.read_bytes()[: plain.hash_offset]
    key, sealed = (secret_files / "key").read_bytes(), seal(image)
    for given in ({"key": key}, {"passphrase": PASSPHRASE}):
        async with opened(sealed, **given) as pipeline:
            (found,) = await pipeline.device.read([Extent(0, len(data))])
            assert file_system_but_flags(bytes(found)) == file_system_but_flags(data)
