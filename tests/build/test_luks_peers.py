"""Encryption judged by other people's tools: cryptsetup, qemu-img, nbdkit, veritysetup, e2fsck and the kernel's AES
accept what we make, and we open what they make.

There need not be a device mapper: cryptsetup encrypts and decrypts with the kernel's AES when it reencrypts offline,
and formats headers and tries passphrases without it.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
import re
import secrets
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from removal import remove_tree

from mystfuse.crypto.secret import Secret
from mystfuse.devices.device import Extent
from mystfuse.devices.source import FileSource
from mystfuse.errors import ExitStatus, FormatError, MystfuseError, UnsupportedFeature, WrongKey
from mystfuse.formats.fssig import Fssig
from mystfuse.image.keys import Keys
from mystfuse.image.open import open_image
from mystfuse.image.pipeline import Pipeline, run_pipeline
from mystfuse.image.progress import Progress
from mystfuse.trust.policy import TrustPolicy
from tests.fuse.test_mount_contents import COMPARE, describe
from tests.support.commands import mystfuse, run
from tests.support.ext2_editor import kernel_mount
from tests.support.images import DATA
from tests.support.mounts import clear_mount, mounted

MIB = 1 << 20
EPOCH = {"SOURCE_DATE_EPOCH": "1600000000"}
PASSPHRASE = b"correct horse battery"
KEY, FORMAT = 5, 6
NO_KEY_AVAILABLE = 2
"""cryptsetup(8): no permission (bad passphrase)."""
PBKDF2 = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
PAYLOAD = 8 * MIB

Edit = Callable[[dict[str, Any]], object]


def write_secret(path: Path, data: bytes) -> Path:
    """A file that nobody else can read: mystfuse warns of others."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied after the test: pytest would keep what is in it, tens of megabytes a test."""
    yield tmp_path
    remove_tree(tmp_path)


@pytest.fixture(scope="module")
def secret_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``key`` (64 bytes), ``passphrase`` (no newline), and a wrong one of each."""
    directory = tmp_path_factory.mktemp("secrets")
    write_secret(directory / "key", secrets.token_bytes(64))
    write_secret(directory / "wrong-key", secrets.token_bytes(64))
    write_secret(directory / "passphrase", PASSPHRASE)
    write_secret(directory / "wrong-passphrase", PASSPHRASE + b"!")
    return directory


@pytest.fixture(scope="module")
def key(secret_files: Path) -> Path:
    return secret_files / "key"


@pytest.fixture(scope="module")
def passphrase(secret_files: Path) -> Path:
    return secret_files / "passphrase"


# What we make


@dataclass(frozen=True)
class Made:
    """An image by ``mystfuse mkext2``."""

    image: Path
    hash_offset: int
    root_hash: str

    @classmethod
    def read(cls, image: Path) -> Made:
        lines = mystfuse("fssig", image).stdout.splitlines()
        fields = dict(line.split("=", 1) for line in lines)
        return cls(image, int(fields["hash_offset"]), fields["root_hash"])

    def copy(self, target: Path) -> Path:
        """The bytes before the hash tree alone: what others take for the device."""
        with self.image.open("rb") as source, target.open("wb") as copied:
            copied.write(source.read(self.hash_offset))
        return target


CHEAP = (
    "import mystfuse.build.luks_format as made; from mystfuse.cli.main import main;"
    "made.available_memory = lambda: 128 << 20; main()"
)
"""``mystfuse`` as on a machine with 128 MiB available: LUKS2 key slots take 64 MiB then, not 1 GiB and 5 seconds."""
MADE = {
    "plain": (),
    "luks1": ("--encrypt", "key", "--passphrase-file", "passphrase"),
    "luks2": ("--encrypt", "key", "--passphrase-file", "passphrase", "--luks2"),
    "luks1-no-slot": ("--encrypt", "key"),
    "luks2-no-slot": ("--encrypt", "key", "--luks2"),
}
ENCRYPTED = [name for name in MADE if name != "plain"]


@pytest.fixture(scope="module")
def made(small_tree: Path, secret_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """The same directory and SOURCE_DATE_EPOCH in every kind of image. Never write to them."""
    directory = tmp_path_factory.mktemp("made")
    images = {}
    for name, options in MADE.items():
        image = directory / f"{name}.img"
        command = (sys.executable, "-c", CHEAP, "mkext2", *options, small_tree, image)
        result = run(*command, cwd=secret_files, env=EPOCH, check=False)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result
        images[name] = Made.read(image)
    return images


def cryptsetup(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Never a question: there is nobody to answer it.
    return run("cryptsetup", "-q", *arguments, check=check, stdin=subprocess.DEVNULL)


def dumped(image: Path) -> dict[str, str]:
    """The lines ``name: value`` of luksDump that are not indented."""
    lines = re.findall(r"^(\w[\w ]*):[ \t]*(.*)$", cryptsetup("luksDump", image).stdout, re.MULTILINE)
    return {name: value.strip() for name, value in lines}


def luks2_document(image: Path) -> dict[str, Any]:
    """The JSON area, as cryptsetup prints it."""
    document: dict[str, Any] = json.loads(cryptsetup("luksDump", "--dump-json-metadata", image).stdout)
    return document


def file_system_but_flags(data: bytes) -> bytes:
    """An EXT2 file system without bg_flags in its group descriptors.

    mke2fs sets INODE_ZEROED (4) in them when it knows that the inode tables are zeros, as it does where it can punch
    holes: into a plain file it can, through the FUSE file that encrypts what it writes it cannot. It is a hint for
    e2fsck and for the kernel's lazy initialization, and EXT2 knows neither.
    """
    blocks, first, log_size, per_group = (struct.unpack_from("<I", data, 1024 + at)[0] for at in (4, 20, 24, 32))
    result = bytearray(data)
    descriptors = (first + 1) * (1024 << log_size)
    for group in range(-(-(blocks - first) // per_group)):
        at = descriptors + 32 * group + 18
        assert struct.unpack_from("<H", result, at)[0] in (0, 4)
        result[at : at + 2] = bytes(2)
    return bytes(result)


def assert_same_file_system(raw: Path, plain: Made) -> None:
    """e2fsck is content, and it is the file system of the image that is not encrypted."""
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
    """``cryptsetup luksFormat`` with the original's options makes the same header, but for what is random and costs."""
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
    # And who has the key can give it a passphrase.
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


def qemu_decrypt(image: Path, passphrase: Path, raw: Path) -> None:
    run("qemu-img", "convert", "-O", "raw", "--object", f"secret,id=s,file={passphrase}", "--image-opts",
        f"driver=luks,key-secret=s,file.driver=file,file.filename={image}", raw)  # fmt: skip


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
    """For good, in place, with the kernel's AES. Nothing else but dm-crypt reads LUKS2."""
    image = made["luks2-no-slot"].copy(scratch / "luks")
    passphrase = secret_files / "passphrase"
    # A cheap slot: it will be opened several times.
    cryptsetup("luksAddKey", f"--volume-key-file={secret_files / 'key'}", "--key-size=512", *PBKDF2,
               f"--new-keyfile={passphrase}", image)  # fmt: skip
    cryptsetup("reencrypt", "--decrypt", "--force-offline-reencrypt", f"--header={scratch / 'header'}",
               f"--key-file={passphrase}", image)  # fmt: skip
    with image.open("r+b") as file:
        # The payload is moved to the front; where it was its ciphertext is left.
        file.truncate(made["plain"].hash_offset)
    assert_same_file_system(image, made["plain"])


def test_all_our_ciphertexts_are_the_same_but_for_the_headers(made: dict[str, Made]) -> None:
    """One key, one file system, the same numbers of sectors: what qemu-img and cryptsetup say of one holds for all."""
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


# What others make


@dataclass(frozen=True)
class Sealed:
    """Somebody's encrypted device with veritysetup's hash tree behind it, and without an fssig."""

    image: Path
    hash_offset: int
    root_hash: str

    @property
    def options(self) -> tuple[str, ...]:
        return f"--hash-offset={self.hash_offset}", f"--roothash={self.root_hash}"


def seal(image: Path) -> Sealed:
    """Put a hash tree behind all of a device: from here on it is what it is."""
    size = image.stat().st_size
    assert size % 4096 == 0
    said = run("veritysetup", "format", f"--hash-offset={size}", image, image).stdout
    found = re.search(r"Root hash:\s+([0-9a-f]{64})", said)
    assert found, said
    return Sealed(image, size, found[1])


def no_progress(_what: str, _size: int | None) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _step: None)


def the_error(error: BaseException) -> BaseException:
    """The one error in a nursery's group."""
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


@asynccontextmanager
async def opened(
    sealed: Sealed, key: bytes | None = None, passphrase: bytes | None = None, progress: Progress = no_progress
) -> AsyncIterator[Pipeline]:
    """The devices of an image, as a mount stacks them."""
    keys = Keys(
        None if key is None else Secret.copy_of(key), None if passphrase is None else Secret.copy_of(passphrase)
    )
    source = FileSource(sealed.image)
    try:
        image = open_image(source, TrustPolicy(), sealed.hash_offset, bytes.fromhex(sealed.root_hash))
        async with run_pipeline(image, keys, 30, progress) as pipeline:
            yield pipeline
    except BaseExceptionGroup as group:
        raise the_error(group) from None
    finally:
        source.close()


async def assert_holds(sealed: Sealed, plain: bytes, key: bytes | None, passphrase: bytes | None) -> None:
    """Each of what is given opens it, and what is in it is exactly ``plain``: whole, and in pieces from anywhere."""
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


async def assert_wrong(sealed: Sealed, **given: bytes) -> None:
    """What is given does not open it: exit status 5."""
    with pytest.raises(WrongKey) as raised:
        async with opened(sealed, **given):
            pass
    assert raised.value.exit_status is ExitStatus.KEY


async def assert_opens(sealed: Sealed, plain: bytes, **given: bytes) -> None:
    async with opened(sealed, **given) as pipeline:
        (data,) = await pipeline.device.read([Extent(0, 64 << 10)])
        assert bytes(data) == plain[: 64 << 10]


def assert_refused(sealed: Sealed, mountpoint: Path, *options: str, status: int, because: str) -> None:
    """``mystfuse mount`` fails with this status and one line that has these words."""
    mountpoint.mkdir(exist_ok=True)
    result = mystfuse("mount", *sealed.options, *options, sealed.image, mountpoint)
    clear_mount(mountpoint)
    assert result.returncode == status, result
    *warnings, line = result.stderr.splitlines()
    assert line.startswith("mystfuse: ") and because in line, result.stderr
    assert all(warning.startswith("mystfuse: warning: ") for warning in warnings), result.stderr
    assert result.stdout == ""


def assert_shows(sealed: Sealed, plain: Path, scratch: Path, *options: str) -> None:
    """A mount of it is in everything what the kernel shows of the file system that was encrypted."""
    with (
        mounted(sealed.image, scratch / "mount", *sealed.options, "--read-only", *options) as mountpoint,
        kernel_mount(plain, scratch / "kernel", "ro,noatime") as kernel,
    ):
        result = run(sys.executable, COMPARE, mountpoint, kernel, check=False)
        assert result.returncode == 0, result.stdout
        assert int(result.stdout.split()[-4]) >= 10, result.stdout


def make_ext2(tree: Path, image: Path, block_size: int) -> Path:
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", str(block_size), "-d", tree, image, f"{PAYLOAD // 1024}k")
    with image.open("r+b") as file:
        # Something in the last sectors too, which are free: without it they would be zeros.
        file.seek(PAYLOAD - 64 * 1024)
        file.write(random.Random(2).randbytes(64 * 1024))
    return image


@pytest.fixture(scope="module")
def plain(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system of 8 MiB with 1 KiB blocks. Never write to it."""
    return make_ext2(small_tree, tmp_path_factory.mktemp("plain") / "ext2", 1024)


@pytest.fixture(scope="module")
def plain_4096(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 4 KiB blocks: cryptsetup puts no larger sectors around smaller blocks."""
    return make_ext2(small_tree, tmp_path_factory.mktemp("plain-4096") / "ext2", 4096)


def volume_key(image: Path, passphrase: Path) -> bytes:
    """The master key, as cryptsetup finds it out."""
    found = image.with_suffix(".key")
    found.unlink(missing_ok=True)
    cryptsetup("luksDump", "--dump-volume-key", f"--volume-key-file={found}", f"--key-file={passphrase}", image)
    return found.read_bytes()


def qemu_encrypt(plain: Path, image: Path, passphrase: Path, cipher: str, mode: str, iv: str, hash_name: str) -> None:
    """``qemu-img`` makes a LUKS1 image of a file."""
    iv, _, iv_hash = iv.partition(":")
    options = f"key-secret=s,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={iv},hash-alg={hash_name},iter-time=10"
    if iv_hash:
        options += f",ivgen-hash-alg={iv_hash}"
    for attempt in range(20):
        image.unlink(missing_ok=True)
        result = run("qemu-img", "convert", "-f", "raw", "-O", "luks", "--object", f"secret,id=s,file={passphrase}",
                     "-o", options, plain, image, check=False)  # fmt: skip
        # It measures its PBKDF2 by the processor time it gets; on a busy machine that goes wrong now and then.
        if "Unable to get accurate CPU usage" not in result.stderr or attempt == 19:
            break
    assert result.returncode == 0, result.stderr


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
    # cryptsetup cannot say the key: the kernel's XTS does not have AES-192.
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


# cryptsetup, payload and all


def reencrypt(
    plain: Path, image: Path, passphrase: Path, key: bytes, cipher: str, sector_size: int = 512, *options: str | Path
) -> None:
    """cryptsetup encrypts a file in place: the header takes the room before it, which is made by moving the data."""
    shutil.copyfile(plain, image)
    os.truncate(image, PAYLOAD + 32 * MIB)
    write_secret(image.with_suffix(".key"), key)
    cryptsetup("reencrypt", "--encrypt", "--force-offline-reencrypt", "--type=luks2", "--reduce-device-size=32M",
               f"--cipher={cipher}", f"--key-size={8 * len(key)}", f"--sector-size={sector_size}", *PBKDF2,
               f"--volume-key-file={image.with_suffix('.key')}", f"--key-file={passphrase}",
               *options, image)  # fmt: skip
    os.truncate(image, PAYLOAD + 16 * MIB)


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
    """With another key and cipher: what the header had for the old one is gone."""
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


def test_an_unfinished_encryption_by_cryptsetup_is_refused_by_name(
    plain_4096: Path, passphrase: Path, scratch: Path
) -> None:
    image = scratch / "image"
    reencrypt(plain_4096, image, passphrase, secrets.token_bytes(64), "aes-xts-plain64", 512, "--init-only")
    assert_refused(seal(image), scratch / "mount", f"--passphrase-file={passphrase}",
                   status=FORMAT, because="online-reencrypt")  # fmt: skip


def test_a_detached_header_is_refused(plain_4096: Path, passphrase: Path, scratch: Path) -> None:
    """Nor is its payload taken for something else when there is a key."""
    payload, header = scratch / "payload", scratch / "header"
    shutil.copyfile(plain_4096, payload)
    cryptsetup("reencrypt", "--encrypt", "--force-offline-reencrypt", f"--header={header}", *PBKDF2,
               f"--key-file={passphrase}", payload)  # fmt: skip
    option = f"--passphrase-file={passphrase}"
    assert_refused(seal(header), scratch / "mount", option, status=FORMAT, because="detached header")
    assert_refused(seal(payload), scratch / "mount", option, status=FORMAT, because="not an EXT2 file system")


# cryptsetup's headers around what is encrypted here, sector by sector


def encrypt(data: bytes, cipher: str, key: bytes, sector_size: int = 512, iv_tweak: int = 0) -> bytes:
    """What dm-crypt would write for a device's contents (Documentation/admin-guide/device-mapper/dm-crypt.rst).

    Independent of mystfuse: a cipher object of ``cryptography`` for every sector.
    """
    algorithm = algorithms.AES(key)
    _, chain, *rest = cipher.split("-")
    iv_mode = rest[0] if rest else ""
    vector_cipher = Cipher(algorithms.AES256(hashlib.sha256(key).digest()), modes.ECB()) if "essiv" in iv_mode else None
    sectors = []
    for start in range(0, len(data), sector_size):
        number = iv_tweak + start // 512
        vector = (number & (0xFFFFFFFF if iv_mode == "plain" else 0xFFFFFFFF_FFFFFFFF)).to_bytes(16, "little")
        if vector_cipher is not None:
            vector = vector_cipher.encryptor().update(vector)
        mode = {"xts": modes.XTS, "cbc": modes.CBC}[chain](vector) if chain != "ecb" else modes.ECB()
        sectors.append(Cipher(algorithm, mode).encryptor().update(data[start : start + sector_size]))
    return b"".join(sectors)


def luks_format(image: Path, passphrase: Path, key: bytes, *options: str, version: int = 1) -> Path:
    """A header by ``cryptsetup luksFormat``, and room for 8 MiB behind it."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    key_file = write_secret(image.with_suffix(".key"), key)
    if version == 2 and not any("--sector-size" in option for option in options):
        # cryptsetup would go by what the file system below likes best.
        options = (*options, "--sector-size=512")
    kdf = () if any("--pbkdf" in option for option in options) else PBKDF2
    cryptsetup("luksFormat", f"--type=luks{version}", f"--key-size={8 * len(key)}", f"--volume-key-file={key_file}",
               f"--key-file={passphrase}", *kdf, *options, image)  # fmt: skip
    os.truncate(image, payload_offset(image) + PAYLOAD)
    return image


def payload_offset(image: Path) -> int:
    fields = dumped(image)
    if fields["Version"] == "1":
        return int(fields["Payload offset"]) * 512
    return int(luks2_document(image)["segments"]["0"]["offset"])


def fill(image: Path, data: bytes) -> Sealed:
    """Put the encrypted payload behind the header, and the hash tree behind both."""
    with image.open("r+b") as file:
        file.seek(payload_offset(image))
        file.write(data)
    return seal(image)


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
    sealed = fill(image, encrypt(data, cipher, key))
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
    sealed = fill(image, encrypt(data, cipher, key, sector_size))
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
    """With an fssig, by passphrase and by key. (EXT2 blocks smaller than a sector: dm-crypt could not, we can.)"""
    key, sector_size = secrets.token_bytes(bits // 8), 2048 if version == 2 else 512
    image = luks_format(scratch / "image", passphrase, key, f"--cipher={cipher}", *options, version=version)
    sealed = fill(image, encrypt(plain.read_bytes(), cipher, key, sector_size))
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
    encrypted = encrypt(data, "aes-xts-plain64", key)
    for number, said in enumerate((b"\0", b"a\nb", bytes(range(256)) * 32, "käse".encode("latin-1"), b"x" * 4096)):
        file = write_secret(scratch / "file", said)
        sealed = fill(luks_format(scratch / "image", file, key, version=1 + number % 2), encrypted)
        await assert_opens(sealed, data, passphrase=said)
        # Not with a zero byte: HMAC pads short keys with those.
        await assert_wrong(sealed, passphrase=said + b"!")


@pytest.mark.parametrize("version", [1, 2])
async def test_headers_that_cryptsetup_converts_are_read(
    version: int, plain: Path, passphrase: Path, scratch: Path
) -> None:
    key, data = secrets.token_bytes(64), plain.read_bytes()
    image = luks_format(scratch / "image", passphrase, key, version=version)
    cryptsetup("convert", f"--type=luks{3 - version}", image)
    assert dumped(image)["Version"] == str(3 - version)
    await assert_holds(fill(image, encrypt(data, "aes-xts-plain64", key)), data, key, PASSPHRASE)


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


# Key slots


@pytest.fixture
def slots(scratch: Path) -> list[Path]:
    """Eight passphrases."""
    return [write_secret(scratch / f"slot{number}", f"passphrase number {number}".encode()) for number in range(8)]


def add_slots(image: Path, slots: list[Path]) -> None:
    """All but the first, which formatted it, each into the slot of its number."""
    for number, file in enumerate(slots[1:], 1):
        cryptsetup("luksAddKey", f"--key-file={slots[0]}", f"--new-keyfile={file}", f"--new-key-slot={number}", *PBKDF2,
                   image)  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
async def test_each_key_slot_opens_the_image_until_it_is_killed(
    version: int, slots: list[Path], plain: Path, scratch: Path
) -> None:
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=version)
    add_slots(image, slots)
    shutil.copyfile(image, scratch / "all")
    for killed in (0, 3, 7):
        cryptsetup("luksKillSlot", f"--key-file={slots[1]}", image, str(killed))
    cryptsetup("luksRemoveKey", image, slots[5])
    new = write_secret(scratch / "new", b"another passphrase")
    cryptsetup("luksChangeKey", f"--key-file={slots[2]}", *PBKDF2, image, new)
    encrypted = encrypt(data, "aes-xts-plain64", key)
    before, after = fill(scratch / "all", encrypted), fill(image, encrypted)
    for number, file in enumerate(slots):
        await assert_opens(before, data, passphrase=file.read_bytes())
        if number in (1, 4, 6):
            await assert_opens(after, data, passphrase=file.read_bytes())
        else:
            await assert_wrong(after, passphrase=file.read_bytes())
    await assert_opens(after, data, passphrase=new.read_bytes())
    await assert_opens(after, data, key=key)
    assert_refused(after, scratch / "mount", f"--passphrase-file={slots[3]}", status=KEY, because="wrong passphrase")


@pytest.mark.parametrize("version", [1, 2])
async def test_with_all_slots_erased_the_key_is_what_is_left(
    version: int, plain: Path, passphrase: Path, scratch: Path
) -> None:
    key = secrets.token_bytes(64)
    image = luks_format(scratch / "image", passphrase, key, version=version)
    cryptsetup("luksErase", image)
    sealed = fill(image, encrypt(plain.read_bytes(), "aes-xts-plain64", key))
    assert_refused(sealed, scratch / "mount", f"--passphrase-file={passphrase}", status=KEY, because="no key slot")
    await assert_wrong(sealed, key=secrets.token_bytes(64))
    assert_shows(sealed, plain, scratch, f"--key-file={image.with_suffix('.key')}")


async def test_slots_are_tried_by_their_priority(slots: list[Path], plain: Path, scratch: Path) -> None:
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=2)
    add_slots(image, slots[:5])
    for slot, priority in ((0, "ignore"), (1, "ignore"), (3, "prefer"), (1, "normal")):
        cryptsetup("config", f"--priority={priority}", f"--key-slot={slot}", image)
    ignored = cryptsetup("open", "--test-passphrase", f"--key-file={slots[0]}", image, check=False)
    assert ignored.returncode == NO_KEY_AVAILABLE, "cryptsetup does not try it either"
    sealed = fill(image, encrypt(data, "aes-xts-plain64", key))
    tried: list[int] = []

    def note(what: str, size: int | None) -> AbstractContextManager[Callable[[int], None]]:
        found = re.match(r"key slot (\d+): ", what)
        assert found, what
        tried.append(int(found[1]))
        return no_progress(what, size)

    with pytest.raises(WrongKey):
        async with opened(sealed, passphrase=slots[0].read_bytes(), progress=note):
            pass
    assert tried == [3, 1, 2, 4]
    for number in (1, 2, 3, 4):
        await assert_opens(sealed, data, passphrase=slots[number].read_bytes())


async def test_a_slot_for_another_key_does_not_open_the_image(slots: list[Path], plain: Path, scratch: Path) -> None:
    """LUKS2 keeps unbound keys, of any size, which reencryption will take or somebody has put there; and tokens."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=2)
    other = write_secret(scratch / "other", secrets.token_bytes(64))
    cryptsetup("luksAddKey", "--unbound", "--key-size=512", f"--volume-key-file={other}", "--key-slot=1", *PBKDF2,
               image, slots[1])  # fmt: skip
    cryptsetup("luksAddKey", "--unbound", "--key-size=72", "--key-slot=2", *PBKDF2, image, slots[2])
    cryptsetup("luksAddKey", f"--key-file={slots[0]}", "--new-key-slot=3", *PBKDF2, image, slots[3])
    cryptsetup("token", "add", "--key-description=a:key", "--key-slot=3", image)
    erased = scratch / "erased"
    shutil.copyfile(image, erased)
    cryptsetup("luksKillSlot", erased, "0")
    cryptsetup("luksKillSlot", erased, "3")
    encrypted = encrypt(data, "aes-xts-plain64", key)
    sealed, erased_sealed = fill(image, encrypted), fill(erased, encrypted)
    for file in (slots[0], slots[3]):
        await assert_opens(sealed, data, passphrase=file.read_bytes())
        await assert_wrong(erased_sealed, passphrase=file.read_bytes())
    for file in (slots[1], slots[2]):
        await assert_wrong(sealed, passphrase=file.read_bytes())
        await assert_wrong(erased_sealed, passphrase=file.read_bytes())
    for one in (sealed, erased_sealed):
        await assert_opens(one, data, key=key)
        await assert_wrong(one, key=other.read_bytes())


# Damaged LUKS2 headers


@pytest.mark.parametrize("size", ["16k", "64k", "1m", "4m"])
async def test_one_good_luks2_header_is_enough(size: str, plain: Path, passphrase: Path, scratch: Path) -> None:
    """Wherever the second one is. What we can still open is what cryptsetup can."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    options = (f"--luks2-metadata-size={size}", "--luks2-keyslots-size=1m")
    image = luks_format(scratch / "image", passphrase, key, *options, version=2)
    header = int(size[:-1]) * {"k": 1024, "m": MIB}[size[-1]]
    payload = encrypt(data, "aes-xts-plain64", key)
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
            # It repairs what it opens, so it comes last.
            cryptsetup("open", "--test-passphrase", f"--key-file={passphrase}", copy)


async def test_a_luks2_header_whose_version_is_damaged_is_a_damaged_one(
    plain: Path, passphrase: Path, scratch: Path
) -> None:
    """Unless it says LUKS1. cryptsetup gives up on any version but 0, though the second header is good."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", passphrase, key, version=2)
    payload = encrypt(data, "aes-xts-plain64", key)
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
    """``fill`` for a header that cryptsetup need not be able to read."""
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return seal(image)


def test_a_mount_with_a_damaged_luks2_header_says_so(plain: Path, passphrase: Path, scratch: Path) -> None:
    key = secrets.token_bytes(64)
    image = luks_format(scratch / "image", passphrase, key, version=2)
    with image.open("r+b") as file:
        file.write(bytes(16 << 10))
    sealed = fill_at(image, encrypt(plain.read_bytes(), "aes-xts-plain64", key), 16 * MIB)
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
    """A change that was cut off between the two: one of them is good, but not what was last written."""
    key, data = secrets.token_bytes(64), plain.read_bytes()[: 64 << 10]
    image = luks_format(scratch / "image", slots[0], key, version=2)
    before = image.read_bytes()[stale : stale + (16 << 10)]
    cryptsetup("luksChangeKey", f"--key-file={slots[0]}", *PBKDF2, image, slots[1])
    with image.open("r+b") as file:
        file.seek(stale)
        file.write(before)
    sealed = fill_at(image, encrypt(data, "aes-xts-plain64", key), 16 * MIB)
    await assert_opens(sealed, data, passphrase=slots[1].read_bytes())
    await assert_wrong(sealed, passphrase=slots[0].read_bytes())


# LUKS2 as cryptsetup accepts, but does not write it without a device mapper


def edit_luks2(image: Path, edit: Edit) -> None:
    """Change the JSON area of both headers (16 KiB each), with checksums; cryptsetup must find nothing wrong."""
    with image.open("r+b") as file:
        for offset in (0, 16 << 10):
            file.seek(offset)
            header = bytearray(file.read(16 << 10))
            document = json.loads(header[4096:].split(b"\0")[0])
            edit(document)
            header[4096:] = json.dumps(document).encode().ljust(12 << 10, b"\0")
            header[0x1C0:0x200] = bytes(64)
            header[0x1C0:0x1E0] = hashlib.sha256(header).digest()
            file.seek(offset)
            file.write(header)
    cryptsetup("luksDump", image)


@pytest.mark.parametrize("cipher", ["aes-xts-plain64", "aes-xts-plain", "aes-cbc-plain64", "aes-cbc-plain"])
@pytest.mark.parametrize("sector_size", [512, 4096])
async def test_segments_with_an_iv_tweak_and_a_size_are_read(
    cipher: str, sector_size: int, passphrase: Path, scratch: Path
) -> None:
    """Numbers of sectors that pass 32 bits, where plain and plain64 part."""
    tweak, size = (1 << 32) - 1000, MIB
    run("mke2fs", "-q", "-t", "ext2", scratch / "plain", f"{size >> 10}k")
    key, data = secrets.token_bytes(32), (scratch / "plain").read_bytes()
    image = luks_format(scratch / "image", passphrase, key, f"--cipher={cipher}", f"--sector-size={sector_size}",
                        version=2)  # fmt: skip
    edit_luks2(image, lambda document: document["segments"]["0"].update(iv_tweak=str(tweak), size=str(size)))
    os.truncate(image, payload_offset(image) + size)
    sealed = fill(image, encrypt(data, cipher, key, sector_size, tweak))
    await assert_holds(sealed, data, key, PASSPHRASE)
    async with opened(sealed, key=key) as pipeline:
        assert pipeline.device.size == size
    # What the tree covers behind the payload is not looked at by anybody: it is not what was sealed.
    os.truncate(image, payload_offset(image) + size + MIB)
    assert "the LUKS payload has 1048576 bytes, but" in str(await refusal(fill(image, b""), key=key))


# What we do not have


async def refusal(sealed: Sealed, **given: bytes) -> FormatError:
    with pytest.raises(FormatError) as raised:
        async with opened(sealed, **given):
            pass
    assert raised.value.exit_status is ExitStatus.FORMAT
    assert "\n" not in str(raised.value)
    return raised.value


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


# The golden image


@dataclass(frozen=True)
class Golden:
    image: Path
    root_hash: str
    key: bytes
    passphrase: bytes


@pytest.fixture(scope="module")
def golden_luks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    """The golden encrypted image, unpacked, and what opens it. Never write to it."""
    directory = tmp_path_factory.mktemp("golden-luks")
    image = directory / "luks-1024.img"
    with lzma.open(DATA / "luks-1024.img.xz") as packed, image.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    root_hash = (DATA / "luks-1024.img.roothash").read_text().strip()
    yield Golden(image, root_hash, (DATA / "keyfile").read_bytes(), (DATA / "passphrase.txt").read_bytes())
    remove_tree(directory)


def walked(mountpoint: Path) -> dict[str, dict[str, Any]]:
    """A tree as the golden manifest describes it."""
    root, found = os.fsencode(mountpoint), {}
    for directory, subdirectories, files in os.walk(root):
        for entry in subdirectories + files:
            path = os.path.join(directory, entry)
            found[os.fsdecode(os.path.relpath(path, root))] = describe(path)
    del found["lost+found"]
    return found


@pytest.mark.parametrize("by", ["key", "passphrase"])
def test_golden_encrypted_image_is_exactly_its_manifest(
    by: str, golden_luks: Golden, manifest: dict[str, Any], scratch: Path
) -> None:
    if by == "key":
        options = (f"--key-file={write_secret(scratch / 'key', golden_luks.key)}",)
    else:
        options = (f"--passphrase-file={write_secret(scratch / 'passphrase', golden_luks.passphrase)}",)
    with mounted(golden_luks.image, scratch / "mount", f"--pubkey={DATA / 'public.pem'}", *options) as mountpoint:
        assert walked(mountpoint) == manifest


@pytest.mark.parametrize("form", ["hex", "hex and newline", "HEX", "passphrase and newline"])
def test_golden_encrypted_image_opens_with_every_spelling(form: str, golden_luks: Golden, scratch: Path) -> None:
    contents = {
        "hex": golden_luks.key.hex().encode(),
        "hex and newline": golden_luks.key.hex().encode() + b"\n",
        "HEX": b"  " + golden_luks.key.hex().upper().encode() + b"\r\n",
        "passphrase and newline": golden_luks.passphrase + b"\n",
    }
    option = "--passphrase-file" if "passphrase" in form else "--key-file"
    file = write_secret(scratch / "secret", contents[form])
    trust = f"--roothash={golden_luks.root_hash}"
    with mounted(golden_luks.image, scratch / "mount", trust, f"{option}={file}") as mountpoint:
        status = mystfuse("status", mountpoint).stdout
        assert golden_luks.root_hash in status
        assert sorted(os.listdir(mountpoint))


def test_golden_encrypted_image_stays_closed_without_the_right_key(golden_luks: Golden, scratch: Path) -> None:
    mountpoint, trust = scratch / "mount", f"--pubkey={DATA / 'public.pem'}"
    mountpoint.mkdir()
    wrong_key = write_secret(scratch / "key", golden_luks.key[:-1] + bytes([golden_luks.key[-1] ^ 1]))
    wrong_passphrase = write_secret(scratch / "passphrase", golden_luks.passphrase + b"\n\n")
    for options, because in (
        ((f"--key-file={wrong_key}",), "wrong key"),
        ((f"--passphrase-file={wrong_passphrase}",), "wrong passphrase"),
        ((), "encrypted (LUKS1, aes-xts-plain64)"),
    ):
        result = mystfuse("mount", trust, *options, golden_luks.image, mountpoint, stdin=subprocess.DEVNULL)
        clear_mount(mountpoint)
        assert result.returncode == KEY, result
        assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr) and because in result.stderr, result.stderr
