"""The golden encrypted image has what its manifest says, for the right key alone."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from removal import remove_tree

from tests.fuse.test_mount_contents import describe
from tests.support.commands import mystfuse
from tests.support.encrypted_images import write_secret
from tests.support.images import DATA
from tests.support.luks_peers import KEY
from tests.support.mounts import clear_mount, mounted


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
