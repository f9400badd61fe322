"""The golden encrypted image has the contents of its manifest, and opens with the right key alone."""

from __future__ import annotations

import lzma
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from removal import remove_tree

from tests.fuse.test_mount_contents import describe
from tests.support.encrypted_images import write_secret
from tests.support.images import DATA
from tests.support.mounts import mounted


@dataclass(frozen=True)
class Golden:
    image: Path
    root_hash: str
    key: bytes
    passphrase: bytes


@pytest.fixture(scope="module")
def golden_luks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    """The golden encrypted image, unpacked, and its key. Tests must not write to it."""
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
