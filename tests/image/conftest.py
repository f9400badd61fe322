"""Secrets, and file systems to encrypt."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from removal import remove_tree

from tests.support.commands import mystfuse, run
from tests.support.encrypted_images import PHRASE, write_secret
from tests.support.luks_peers import CHEAP, EPOCH, MADE, PASSPHRASE, Made, make_ext2


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied after the test: pytest would keep its contents, tens of megabytes for each test."""
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


@pytest.fixture(scope="module")
def made(small_tree: Path, secret_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """The same directory and SOURCE_DATE_EPOCH in every kind of image. Tests must not write to them."""
    directory = tmp_path_factory.mktemp("made")
    images = {}
    for name, options in MADE.items():
        image = directory / f"{name}.img"
        command = (sys.executable, "-c", CHEAP, "mkext2", "--quiet", *options, small_tree, image)
        result = run(*command, cwd=secret_files, env=EPOCH, check=False)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result
        images[name] = Made.read(image)
    return images


@pytest.fixture(scope="module")
def plain(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system of 8 MiB with 1 KiB blocks. Tests must not write to it."""
    return make_ext2(small_tree, tmp_path_factory.mktemp("plain") / "ext2", 1024)


@pytest.fixture(scope="module")
def plain_4096(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 4 KiB blocks: cryptsetup uses no sectors larger than the file system's blocks."""
    return make_ext2(small_tree, tmp_path_factory.mktemp("plain-4096") / "ext2", 4096)


@pytest.fixture
def slots(scratch: Path) -> list[Path]:
    """Eight passphrases."""
    return [write_secret(scratch / f"slot{number}", f"passphrase number {number}".encode()) for number in range(8)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``key`` (64 bytes), ``hex`` (the same in hex), ``passphrase``, and ``wrong`` of 64 bytes."""
    directory = tmp_path_factory.mktemp("keys")
    key = write_secret(directory / "key", secrets.token_bytes(64))
    write_secret(directory / "hex", key.read_bytes().hex() + "\n")
    write_secret(directory / "passphrase", PHRASE + "\n")
    write_secret(directory / "wrong", secrets.token_bytes(64))
    return directory


@pytest.fixture(scope="module")
def image(keys: Path, small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encrypted image (LUKS1) of ``small_tree``, with a passphrase. Tests must not write to it."""
    path = tmp_path_factory.mktemp("encrypted") / "luks1.img"
    result = mystfuse(
        "mkext2", "-q", "--encrypt", keys / "key", "--passphrase-file", keys / "passphrase", small_tree, path
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    return path
