"""Images with the right root hash that a carrier made us read in another way: the root hash does not cover the verity
superblock, so a carrier can rewrite it, and remove or add blocks. Neither verify nor a mount may accept them."""

from __future__ import annotations

import os
import re
import secrets
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mystfuse.errors import FormatError, UnsupportedFeature
from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.formats.verity import VERITY_SUPERBLOCK_SIZE, TreeGeometry, VeritySuperblock
from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.mounts import clear_mount

BLOCK = 4096
OLD_SALT = "--salt=" + "5a" * 32
"""A salt that does not cover the superblock, like the original's and veritysetup's."""


class Image:
    """The parts of a signed image."""

    def __init__(self, path: Path) -> None:
        self.bytes = path.read_bytes()
        self.fssig = Fssig.parse(self.bytes[-FSSIG_SIZE:])
        offset = self.fssig.hash_offset
        self.superblock = VeritySuperblock.parse(self.bytes[offset : offset + VERITY_SUPERBLOCK_SIZE])
        self.geometry = TreeGeometry.of(self.superblock, offset)
        self.data = self.bytes[:offset]

    def level(self, number: int) -> bytes:
        level = self.geometry.levels[number]
        return self.bytes[level.offset : level.offset + level.blocks * BLOCK]

    def put_together(self, data: bytes, levels: list[bytes], **changes: int) -> bytes:
        """Another image with the same root hash and signature; ``levels`` from the lowest on."""
        superblock = replace(self.superblock, data_blocks=len(data) // BLOCK, **changes)
        parts = [data, superblock.pack().ljust(BLOCK, b"\0"), *reversed(levels)]
        return b"".join([*parts, replace(self.fssig, hash_offset=len(data)).pack()])

    def levels(self) -> list[bytes]:
        return [self.level(number) for number in range(len(self.geometry.levels))]


def without_a_level(image: Image) -> bytes:
    return image.put_together(image.level(0), image.levels()[1:])


def without_the_last_block(image: Image) -> bytes:
    return image.put_together(image.data[:-BLOCK], image.levels())


def with_half_of_the_data(image: Image) -> bytes:
    return image.put_together(image.data[: len(image.data) // BLOCK // 2 * BLOCK], image.levels())


def with_a_gap(image: Image) -> bytes:
    """Unverified bytes between the data and the tree."""
    offset = len(image.data) + BLOCK
    parts = [image.data, bytes(BLOCK), image.superblock.pack().ljust(BLOCK, b"\0"), *reversed(image.levels())]
    return b"".join([*parts, replace(image.fssig, hash_offset=offset).pack()])


def of_the_other_hash_type(image: Image) -> bytes:
    return image.put_together(image.data, image.levels(), hash_type=0)


@pytest.fixture(scope="module")
def images(
    make_keys: Callable[..., tuple[Path, Path]], small_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Signed images ``old``, ``new``, ``unsalted``, ``encrypted``; and ``key``, their signer's."""
    directory = tmp_path_factory.mktemp("images")
    public, private = make_keys("interpreter", 2048, 65537)
    (directory / "keyfile").write_bytes(secrets.token_bytes(64))
    (directory / "keyfile").chmod(0o600)
    images = {"key": public, "keyfile": directory / "keyfile"}
    for name, options in {
        "old": [OLD_SALT],
        "new": [],
        "unsalted": ["--salt=-"],
        "encrypted": [OLD_SALT, "--encrypt", str(directory / "keyfile")],
    }.items():
        images[name] = directory / name
        assert in_process("mkext2", f"--sign={public}:{private}", *options, small_tree, images[name]).returncode == 0
        assert in_process("verify", f"--pubkey={public}", images[name]).returncode == 0
    return images


ATTACKS = [without_a_level, without_the_last_block, with_half_of_the_data, with_a_gap]


@pytest.mark.parametrize("name", ["old", "new"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_another_reading_of_a_signed_image_is_refused(
    attack: Callable[[Image], bytes], name: str, images: dict[str, Path], tmp_path: Path, mountpoint: Path
) -> None:
    (tmp_path / "image").write_bytes(attack(Image(images[name])))
    assert_refused(tmp_path / "image", images["key"], mountpoint)


@pytest.mark.parametrize("name", ["unsalted", "new"])
def test_the_other_hash_type_is_refused_where_the_digests_agree(
    name: str, images: dict[str, Path], tmp_path: Path, mountpoint: Path
) -> None:
    """Without a salt both types have the same digests."""
    (tmp_path / "image").write_bytes(of_the_other_hash_type(Image(images[name])))
    assert_refused(tmp_path / "image", images["key"], mountpoint)


@pytest.mark.parametrize("attack", ATTACKS)
def test_another_reading_of_an_encrypted_image_is_refused_without_its_key(
    attack: Callable[[Image], bytes], images: dict[str, Path], tmp_path: Path, mountpoint: Path
) -> None:
    (tmp_path / "image").write_bytes(attack(Image(images["encrypted"])))
    assert_refused(tmp_path / "image", images["key"], mountpoint, "--key-file", images["keyfile"])
    assert_verify_refuses(tmp_path / "image", images["key"])


def assert_verify_refuses(image: Path, key: Path, *options: str | Path) -> None:
    for command in (["verify"], ["verify", "--json"]):
        result = in_process(*command, f"--pubkey={key}", *options, image)
        assert result.returncode in (4, 6), result
        assert "verified" not in result.stdout
        assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr


def assert_refused(image: Path, key: Path, mountpoint: Path, *options: str | Path) -> None:
    """Refused by verify, ls and mount, each with one line."""
    assert_verify_refuses(image, key, *options)
    results: list[subprocess.CompletedProcess[str]] = [in_process("ls", f"--pubkey={key}", *options, image)]
    try:
        results.append(mystfuse("mount", f"--pubkey={key}", *options, image, mountpoint))
    finally:
        clear_mount(mountpoint)
    for result in results:
        assert result.returncode in (4, 6), result
        assert result.stdout == ""
        assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr


def test_verify_wants_a_file_system_or_a_luks_header(tmp_path: Path, images: dict[str, Path]) -> None:
    image = tmp_path / "image"
    image.write_bytes(secrets.token_bytes(1 << 20))
    output = run("veritysetup", "format", "--hash-offset=1048576", image, image).stdout
    (root_hash,) = re.findall(r"Root hash:\s+(\w+)", output)
    result = in_process("verify", "--hash-offset=1048576", f"--roothash={root_hash}", image)
    assert (result.returncode, result.stdout) == (6, ""), result
    assert "not an EXT2 file system" in result.stderr


def make_filesystem(path: Path, size: int, covered: int, *options: str) -> str:
    """A file system of ``size`` bytes at the start of ``covered`` bytes under a tree; returns the root hash."""
    with path.open("wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-F", "-t", "ext2", *options, path)
    os.truncate(path, covered)
    output = run("veritysetup", "format", f"--hash-offset={covered}", path, path).stdout
    (root_hash,) = re.findall(r"Root hash:\s+(\w+)", output)
    return root_hash


def test_the_size_of_the_file_system_is_that_of_the_data(tmp_path: Path) -> None:
    image = tmp_path / "image"
    mebibyte = 1 << 20
    # mke2fs leaves out a last group that would have no room for its own metadata; sizes by the original's rule can have
    # one.
    for size, covered, status in ((8, 8, 0), (8, 15, 0), (8, 16, 6), (8, 64, 6), (9, 8, 6)):
        root_hash = make_filesystem(image, size * mebibyte, covered * mebibyte, "-b1024")
        options = (f"--hash-offset={covered * mebibyte}", f"--roothash={root_hash}")
        for command in (["verify", *options, image], ["ls", *options, image]):
            result = in_process(*command)
            assert result.returncode == status, (size, covered, result)
            assert not status or re.search("but the tree covers|but only .* are there", result.stderr)


def test_a_file_system_whose_last_group_mke2fs_left_out_is_accepted(tmp_path: Path) -> None:
    size = 513 << 20
    root_hash = make_filesystem(tmp_path / "image", size, size, "-b4096", "-Enodiscard,lazy_itable_init=1")
    blocks = int(re.findall(r"Block count:\s+(\d+)", run("dumpe2fs", "-h", tmp_path / "image").stdout)[0])
    assert blocks * 4096 < size
    assert in_process("ls", f"--hash-offset={size}", f"--roothash={root_hash}", tmp_path / "image").returncode == 0


def test_the_salt_of_new_images_covers_the_superblock(images: dict[str, Path]) -> None:
    image = Image(images["new"])
    offset = image.fssig.hash_offset
    raw = image.bytes[offset : offset + VERITY_SUPERBLOCK_SIZE]
    assert VeritySuperblock.parse(raw) == image.superblock
    for changes in (
        {"data_blocks": image.superblock.data_blocks - 1},
        {"data_blocks": 1},
        {"hash_type": 0},
        {"data_block_size": 1024},
        {"hash_block_size": 8192},
        {"uuid": bytes(16)},
        {"salt": image.superblock.salt[:-1] + bytes([image.superblock.salt[-1] ^ 1])},
    ):
        with pytest.raises(FormatError, match="not the one that the tree was made with"):
            VeritySuperblock.parse(replace(image.superblock, **changes).pack())  # type: ignore[arg-type]
    for index in (82, 511):
        with pytest.raises(FormatError, match="not the one that the tree was made with"):
            VeritySuperblock.parse(raw[:index] + b"\1" + raw[index + 1 :])
    # Another salt changes all digests: a carrier cannot take the protection away.
    assert replace(image.superblock, salt=bytes(32)).pack() != raw


def test_a_salt_that_covers_the_superblock_costs_other_tools_nothing(images: dict[str, Path], tmp_path: Path) -> None:
    """For veritysetup and openssl the image is like any other; the fssig equals the original's, with zeros as its
    padding."""
    image = Image(images["new"])
    offset = image.fssig.hash_offset
    run("veritysetup", "verify", images["new"], images["new"], image.fssig.root_hash.hex(), f"--hash-offset={offset}")
    assert image.superblock.salt.hex() in run("veritysetup", "dump", images["new"], f"--hash-offset={offset}").stdout
    (tmp_path / "digest").write_bytes(image.fssig.root_hash)
    (tmp_path / "signature").write_bytes(image.fssig.signature)
    arguments = f"-pubin -inkey {images['key']} -in digest -sigfile signature -pkeyopt digest:sha256"
    run("openssl", "pkeyutl", "-verify", *arguments.split(), cwd=tmp_path)
    fssig = image.bytes[-FSSIG_SIZE:]
    assert struct.unpack_from("<QQQ", fssig) == (0xF55198A153624D38, 1, offset)
    assert fssig[1120:] == bytes(2976)
    assert len(image.superblock.salt) == 32


def test_hash_type_0_is_for_trees_without_a_signature_block(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    run("mke2fs", "-q", "-F", "-t", "ext2", image)
    output = run("veritysetup", "format", "--format=0", "--hash-offset=1048576", image, image).stdout
    (root_hash,) = re.findall(r"Root hash:\s+(\w+)", output)
    assert in_process("verify", "--hash-offset=1048576", f"--roothash={root_hash}", image).returncode == 0
    with image.open("ab") as file:
        file.write(Fssig(1 << 20, bytes.fromhex(root_hash)).pack())
    result = in_process("verify", f"--roothash={root_hash}", image)
    assert result.returncode == UnsupportedFeature.exit_status, result
    assert "hash type 0" in result.stderr
