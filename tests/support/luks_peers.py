"""Encrypted images by mystfuse, cryptsetup and qemu-img, and the tools that open them.

No device mapper is needed: cryptsetup encrypts and decrypts with the kernel's AES when it reencrypts offline, and
formats headers and tries passphrases without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mystfuse.crypto.secret import Secret
from mystfuse.devices.device import Extent
from mystfuse.devices.source import FileSource
from mystfuse.errors import ExitStatus, FormatError, WrongKey
from mystfuse.image.keys import Keys
from mystfuse.image.open import open_image
from mystfuse.image.pipeline import Pipeline, run_pipeline
from mystfuse.image.progress import Progress
from mystfuse.trust.policy import TrustPolicy
from tests.fuse.test_mount_contents import COMPARE
from tests.support.commands import mystfuse, run
from tests.support.encrypted_images import write_secret
from tests.support.ext2_editor import kernel_mount
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
        """The bytes before the hash tree: the device of other tools."""
        with self.image.open("rb") as source, target.open("wb") as copied:
            copied.write(source.read(self.hash_offset))
        return target


CHEAP = (
    "import mystfuse.build.luks_format as made; from mystfuse.cli.main import main;"
    "made.available_memory = lambda: 128 << 20; main()"
)
"""Run ``mystfuse`` as on a machine with 128 MiB available: then LUKS2 key slots take 64 MiB, not 1 GiB and 5
seconds."""
MADE = {
    "plain": (),
    "luks1": ("--encrypt", "key", "--passphrase-file", "passphrase"),
    "luks2": ("--encrypt", "key", "--passphrase-file", "passphrase", "--luks2"),
    "luks1-no-slot": ("--encrypt", "key"),
    "luks2-no-slot": ("--encrypt", "key", "--luks2"),
}


def cryptsetup(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Without questions: no one is there to answer them.
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


def qemu_decrypt(image: Path, passphrase: Path, raw: Path) -> None:
    run("qemu-img", "convert", "-O", "raw", "--object", f"secret,id=s,file={passphrase}", "--image-opts",
        f"driver=luks,key-secret=s,file.driver=file,file.filename={image}", raw)  # fmt: skip


@dataclass(frozen=True)
class Sealed:
    """Another tool's encrypted device with veritysetup's hash tree behind it, and without an fssig."""

    image: Path
    hash_offset: int
    root_hash: str

    @property
    def options(self) -> tuple[str, ...]:
        return f"--hash-offset={self.hash_offset}", f"--roothash={self.root_hash}"


def seal(image: Path) -> Sealed:
    """Put a hash tree behind all of a device, which must not change any more."""
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


async def assert_wrong(sealed: Sealed, **given: bytes) -> None:
    """Assert that these keys do not open it: exit status 5."""
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
    """Assert that a mount of it equals the kernel's mount of the plaintext file system."""
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
        # Data in the last sectors too, which are free: otherwise they would be zeros.
        file.seek(PAYLOAD - 64 * 1024)
        file.write(random.Random(2).randbytes(64 * 1024))
    return image


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
        # qemu-img measures its PBKDF2 by processor time, which fails now and then on a busy machine.
        if "Unable to get accurate CPU usage" not in result.stderr or attempt == 19:
            break
    assert result.returncode == 0, result.stderr


def reencrypt(
    plain: Path, image: Path, passphrase: Path, key: bytes, cipher: str, sector_size: int = 512, *options: str | Path
) -> None:
    """cryptsetup encrypts a file in place: it moves the data to make room for the header in front."""
    shutil.copyfile(plain, image)
    os.truncate(image, PAYLOAD + 32 * MIB)
    write_secret(image.with_suffix(".key"), key)
    cryptsetup("reencrypt", "--encrypt", "--force-offline-reencrypt", "--type=luks2", "--reduce-device-size=32M",
               f"--cipher={cipher}", f"--key-size={8 * len(key)}", f"--sector-size={sector_size}", *PBKDF2,
               f"--volume-key-file={image.with_suffix('.key')}", f"--key-file={passphrase}",
               *options, image)  # fmt: skip
    os.truncate(image, PAYLOAD + 16 * MIB)


def luks_format(image: Path, passphrase: Path, key: bytes, *options: str, version: int = 1) -> Path:
    """A header by ``cryptsetup luksFormat``, and room for 8 MiB behind it."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    key_file = write_secret(image.with_suffix(".key"), key)
    if version == 2 and not any("--sector-size" in option for option in options):
        # Otherwise cryptsetup would choose by the file system below.
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


def edit_luks2(image: Path, edit: Edit) -> None:
    """Change the JSON area of both headers (16 KiB each), with checksums; cryptsetup must accept it."""
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


async def refusal(sealed: Sealed, **given: bytes) -> FormatError:
    with pytest.raises(FormatError) as raised:
        async with opened(sealed, **given):
            pass
    assert raised.value.exit_status is ExitStatus.FORMAT
    assert "\n" not in str(raised.value)
    return raised.value
