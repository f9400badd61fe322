"""verify accepts every tree that veritysetup makes, and finds exactly the damaged blocks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.json_documents import check_document
from tests.support.mounts import mounted

SALT = "5a" * 32


@dataclass(frozen=True)
class Kind:
    """Arguments for veritysetup."""

    blocks: int
    salt: str = SALT
    algorithm: str = "sha256"
    hash_type: int = 1
    data_block_size: int = 4096
    hash_block_size: int = 4096
    has_filesystem: bool = False

    @property
    def digest_size(self) -> int:
        return hashlib.new(self.algorithm).digest_size

    @property
    def data_size(self) -> int:
        return self.blocks * self.data_block_size

    def level_sizes(self) -> list[int]:
        """Hash blocks in each level, the lowest first: counted here by the kernel's documentation."""
        per_block, counts, count = self.hash_block_size // self.digest_size, [], self.blocks
        while count > 1:
            count = -(-count // per_block)
            counts.append(count)
        return counts


@dataclass(frozen=True)
class Tree:
    """An image that veritysetup made: data, and the tree behind it in the same file."""

    kind: Kind
    image: Path
    hash_offset: int
    root_hash: str

    @property
    def options(self) -> tuple[str, ...]:
        return (f"--hash-offset={self.hash_offset}", f"--roothash={self.root_hash}")

    def level_offsets(self) -> list[int]:
        """Where each level begins, the lowest first. On disk the top level comes first."""
        size = self.kind.hash_block_size
        position = -(-(self.hash_offset + 512) // size) * size
        offsets = []
        for count in reversed(self.kind.level_sizes()):
            offsets.append(position)
            position += count * size
        return offsets[::-1]


KINDS = {
    "as mkext2": Kind(2048, has_filesystem=True),
    "no salt": Kind(2048, salt="-"),
    "salt of 256 bytes": Kind(2048, salt="c3" * 256, has_filesystem=True),
    "sha512": Kind(2048, algorithm="sha512", has_filesystem=True),
    "hash type 0": Kind(2048, hash_type=0, has_filesystem=True),
    "hash blocks of 512": Kind(2048, hash_block_size=512),
    "hash blocks of 1024": Kind(2048, hash_block_size=1024, has_filesystem=True),
    "hash blocks of 64 KiB": Kind(2304, hash_block_size=65536, has_filesystem=True),
    "hash blocks of 512 KiB": Kind(40, hash_block_size=524288),
    "data blocks of 512": Kind(16384, data_block_size=512, has_filesystem=True),
    "data blocks of 1024": Kind(8192, data_block_size=1024),
    "data blocks of 64 KiB": Kind(130, data_block_size=65536, has_filesystem=True),
    "data blocks of 64 KiB, hash blocks of 512": Kind(20, data_block_size=65536, hash_block_size=512),
    "one data block": Kind(1),
    "one data block of 512": Kind(1, data_block_size=512),
    "two data blocks": Kind(2),
    "127 data blocks": Kind(127),
    "128 data blocks": Kind(128),
    "129 data blocks": Kind(129),
    "128 x 128 data blocks": Kind(128 * 128, data_block_size=512),
    "128 x 128 + 1 data blocks": Kind(128 * 128 + 1, data_block_size=512),
    "sha512, exactly 64 data blocks": Kind(64, algorithm="sha512"),
    "sha512, 65 data blocks": Kind(65, algorithm="sha512"),
}


def write_random_filesystem(image: Path, size: int) -> None:
    """Random bytes behind an EXT2 superblock that states this size; below 4096 blocks no such file system exists."""
    superblock = bytearray(os.urandom(1024))
    blocks, per_group, inodes = size // 1024, 8192, 16
    groups = -(-(blocks - 1) // per_group)
    fields = {0: groups * inodes, 4: blocks, 20: 1, 24: 0, 32: per_group, 40: inodes, 56: 0x1EF53, 76: 0}
    for offset, value in {**fields, 92: 0, 96: 0, 100: 0}.items():
        struct.pack_into("<I", superblock, offset, value)
    data = bytearray(os.urandom(size))
    if size >= 4096:
        data[1024:2048] = superblock
    image.write_bytes(data)


@pytest.fixture(scope="module")
def make_tree(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tree]:
    """Makes the tree of ``KINDS`` with that name, once. Tests must not write to its image."""
    directory = tmp_path_factory.mktemp("trees")
    made: dict[str, Tree] = {}

    def make(name: str) -> Tree:
        if name in made:
            return made[name]
        kind, image = KINDS[name], directory / str(len(made))
        if kind.has_filesystem:
            run("mke2fs", "-q", "-F", "-t", "ext2", "-d", small_tree, image, f"{kind.data_size // 1024}k")
        else:
            write_random_filesystem(image, kind.data_size)
        # mke2fs may leave out a last group that is too small. The hash offset is a multiple of at least 512 bytes, and
        # veritysetup requires the file to reach it.
        os.truncate(image, max(kind.data_size, 4096))
        offset = max(kind.data_size, 4096)
        said = run(
            "veritysetup", "format", f"--hash={kind.algorithm}", f"--salt={kind.salt}", f"--format={kind.hash_type}",
            f"--data-block-size={kind.data_block_size}", f"--hash-block-size={kind.hash_block_size}",
            f"--data-blocks={kind.blocks}", f"--hash-offset={offset}", image, image,
        ).stdout  # fmt: skip
        found = re.search(r"Root hash:\s+([0-9a-f]+)", said)
        assert found
        made[name] = Tree(kind, image, offset, found[1])
        return made[name]

    return make


def verify(image: Path, *options: str) -> subprocess.CompletedProcess[str]:
    result = in_process("verify", *options, image)
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == (result.returncode != 0), result.stderr
    return result


def bad_ranges(result: subprocess.CompletedProcess[str]) -> list[tuple[str, int, int]]:
    """The kind and the bytes (first, last) of the damage that verify lists as text."""
    assert result.returncode == 4, (result.stdout, result.stderr)
    lines = result.stdout.splitlines()
    matches = [re.fullmatch(r"bad: bytes (\d+) to (\d+) \((.+)\)", line) for line in lines]
    assert all(matches), lines
    return [(match[3], int(match[1]), int(match[2])) for match in matches if match]


def flip(image: Path, target: Path, *offsets: int) -> Path:
    """A copy of ``image`` with one bit of each of these bytes flipped."""
    shutil.copyfile(image, target)
    with target.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 0x10]))
    return target


@pytest.mark.parametrize("name", KINDS)
def test_veritysetups_tree_is_accepted_and_each_damage_found(
    name: str, make_tree: Callable[[str], Tree], tmp_path: Path
) -> None:
    tree = make_tree(name)
    kind = tree.kind
    result = verify(tree.image, *tree.options)
    if kind.data_size < 4096:
        # All blocks match the tree, but no file system is so small.
        assert (result.returncode, result.stdout) == (6, "")
    else:
        assert result.returncode == 0, result.stderr
        assert result.stdout == (
            f"{tree.image}: {kind.data_size} bytes verified, root hash {tree.root_hash}, its root hash was given\n"
        )
    # With another root hash nothing is verified.
    wrong = tree.root_hash[:-1] + ("0" if tree.root_hash[-1] != "0" else "1")
    assert verify(tree.image, tree.options[0], f"--roothash={wrong}").returncode == 4
    # One byte in the first, the last and a middle data block: exactly these are listed.
    size = kind.data_block_size
    blocks = sorted({0, kind.blocks * 2 // 3, kind.blocks - 1})
    damaged = flip(tree.image, tmp_path / "damaged", *(block * size + size - 1 for block in blocks))
    expected = [("data", block * size, block * size + size - 1) for block in blocks]
    if kind.blocks == 2:
        expected = [("data", 0, 2 * size - 1)]
    result = verify(damaged, *tree.options)
    assert bad_ranges(result) == expected
    count = len(expected)
    assert result.stderr == (
        f"mystfuse: {damaged}: {count} damaged range{'s' * (count > 1)}, {len(blocks) * size} bytes\n"
    )
    # One byte in the last hash block of each level: that block and all blocks below it.
    per_block = kind.hash_block_size // kind.digest_size
    sizes = kind.level_sizes()
    for level, (offset, count) in enumerate(zip(tree.level_offsets(), sizes, strict=True)):
        block = offset + (count - 1) * kind.hash_block_size
        damaged = flip(tree.image, tmp_path / "damaged", block)
        below = (count - 1) * per_block ** (level + 1) * size
        assert bad_ranges(verify(damaged, *tree.options)) == [
            (f"hash tree level {level}", block, block + kind.hash_block_size - 1),
            ("data under a bad hash block", below, kind.data_size - 1),
        ]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.has_filesystem])
def test_a_file_system_under_veritysetups_tree_mounts(
    name: str, make_tree: Callable[[str], Tree], small_tree: Path, tmp_path: Path
) -> None:
    tree = make_tree(name)
    with mounted(tree.image, tmp_path / "mount", *tree.options) as mountpoint:
        for path in small_tree.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert (mountpoint / path.relative_to(small_tree)).read_bytes() == path.read_bytes()
    # The file system's superblock is in data block 0, 1 or 2.
    damaged = flip(tree.image, tmp_path / "damaged", 1024 + 56)
    result = mystfuse("mount", *tree.options, damaged, tmp_path / "mount")
    assert result.returncode == 4
    wrong = "0" * 2 * tree.kind.digest_size
    assert mystfuse("mount", tree.options[0], f"--roothash={wrong}", tree.image, tmp_path / "mount").returncode == 4


def test_veritysetup_agrees_about_our_damage(make_tree: Callable[[str], Tree], tmp_path: Path) -> None:
    """veritysetup accepts what we accept and rejects what we reject."""
    tree = make_tree("hash blocks of 1024")
    check = ("veritysetup", "verify", tree.image, tree.image, tree.root_hash, f"--hash-offset={tree.hash_offset}")
    run(*check)
    damaged = flip(tree.image, tmp_path / "damaged", 4096 * 5)
    assert run(check[0], check[1], damaged, damaged, *check[4:], check=False).returncode != 0
    assert verify(damaged, *tree.options).returncode == 4


def test_neighbours_are_merged_and_others_are_not(make_tree: Callable[[str], Tree], tmp_path: Path) -> None:
    tree = make_tree("as mkext2")
    numbers = [0, 1, 2, 4, 127, 128, 255, 256, 257, 2047]
    damaged = flip(tree.image, tmp_path / "damaged", *(number * 4096 + 17 for number in numbers))
    assert [(first // 4096, last // 4096) for _, first, last in bad_ranges(verify(damaged, *tree.options))] == [
        (0, 2), (4, 4), (127, 128), (255, 257), (2047, 2047)
    ]  # fmt: skip


def test_every_second_block_damaged_is_counted_to_the_end(tmp_path: Path) -> None:
    """Thousands of ranges: verify lists a thousand and counts all."""
    image = tmp_path / "image"
    data = os.urandom(512) * 5000
    image.write_bytes(data)
    said = run("veritysetup", "format", "--data-block-size=512", "--data-blocks=5000", f"--hash-offset={len(data)}",
               image, image).stdout  # fmt: skip
    root_hash = re.search(r"Root hash:\s+([0-9a-f]+)", said)[1]  # type: ignore[index]
    damaged = flip(image, tmp_path / "damaged", *range(0, len(data), 1024))
    options = (f"--hash-offset={len(data)}", f"--roothash={root_hash}")
    result = verify(damaged, *options)
    assert result.returncode == 4
    assert len(result.stdout.splitlines()) == 1001
    assert result.stdout.endswith("\nand 1500 more\n")
    assert "2500 damaged ranges, 1280000 bytes" in result.stderr
    document = json.loads(in_process("verify", "--json", *options, damaged).stdout)
    assert document["bad_ranges_count"] == 2500
    assert len(document["bad_ranges"]) == 1000
    check_document("verify", document)


def test_json_says_what_the_text_says(make_tree: Callable[[str], Tree], tmp_path: Path) -> None:
    tree = make_tree("as mkext2")
    result = verify(tree.image, "--json", *tree.options)
    assert result.returncode == 0
    assert json.loads(result.stdout) == {
        "image": str(tree.image),
        "ok": True,
        "key_opens": None,
        "root_hash": tree.root_hash,
        "trust": "root hash",
        "trust_explanation": "its root hash was given",
        "data_bytes": tree.hash_offset,
        "vouched_for": True,
        "bad_ranges": [],
        "bad_ranges_count": 0,
    }
    damaged = flip(tree.image, tmp_path / "damaged", 8192)
    result = verify(damaged, "--json", *tree.options)
    assert result.returncode == 4
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert document["bad_ranges_count"] == 1
    assert document["bad_ranges"] == [{"what": "data", "offset": 8192, "length": 4096}]


@pytest.mark.parametrize("name", ["as mkext2", "sha512", "hash blocks of 64 KiB", "one data block"])
def test_a_truncated_tree_or_data_is_refused(name: str, make_tree: Callable[[str], Tree], tmp_path: Path) -> None:
    tree = make_tree(name)
    for size in (0, 1, tree.kind.data_size // 2, tree.hash_offset, tree.hash_offset + 511):
        shutil.copyfile(tree.image, tmp_path / "short")
        os.truncate(tmp_path / "short", size)
        assert verify(tmp_path / "short", *tree.options).returncode == 6, size
    if tree.kind.level_sizes():
        shutil.copyfile(tree.image, tmp_path / "short")
        os.truncate(tmp_path / "short", tree.image.stat().st_size - 1)
        assert verify(tmp_path / "short", *tree.options).returncode == 6


def test_more_may_follow_the_tree_and_lie_between(tmp_path: Path) -> None:
    """Without an fssig the tree may be anywhere behind the data, and other bytes may follow the tree."""
    image = tmp_path / "image"
    write_random_filesystem(image, 300 * 4096)
    offset = 310 * 4096
    said = run("veritysetup", "format", "--data-blocks=300", f"--hash-offset={offset}", image, image).stdout
    root_hash = re.search(r"Root hash:\s+([0-9a-f]+)", said)[1]  # type: ignore[index]
    with image.open("ab") as file:
        file.write(b"something else")
    assert verify(image, f"--hash-offset={offset}", f"--roothash={root_hash}").returncode == 0


def test_the_data_may_not_lie_within_the_tree(make_tree: Callable[[str], Tree], tmp_path: Path) -> None:
    """A superblock that states more data than the file has in front of it."""
    tree = make_tree("as mkext2")
    for blocks in (2049, 1 << 40, 1 << 63, 0):
        shutil.copyfile(tree.image, tmp_path / "claims")
        with (tmp_path / "claims").open("r+b") as file:
            file.seek(tree.hash_offset + 72)
            file.write(blocks.to_bytes(8, "little"))
        assert verify(tmp_path / "claims", *tree.options).returncode == 6


def test_hash_offset_wants_one_root_hash_that_fits(make_tree: Callable[[str], Tree]) -> None:
    tree = make_tree("as mkext2")
    offset = tree.options[0]
    for options in (
        (offset,),
        (*tree.options, f"--roothash={'0' * 64}"),
        (offset, f"--roothash={'0' * 128}"),
        ("--hash-offset=-1", tree.options[1]),
        ("--hash-offset=x", tree.options[1]),
    ):
        assert verify(tree.image, *options).returncode == 2, options
    for wrong in (0, 512, 4096, tree.hash_offset + 4096, tree.image.stat().st_size, 1 << 61):
        assert verify(tree.image, f"--hash-offset={wrong}", tree.options[1]).returncode == 6, wrong


def test_an_algorithm_that_is_unknown_is_named(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 * 4096))
    run("veritysetup", "format", "--hash=sha1", "--data-blocks=8", "--hash-offset=32768", image, image)
    result = verify(image, "--hash-offset=32768", f"--roothash={'0' * 64}")
    assert result.returncode == 6
    assert "sha1" in result.stderr


def test_our_own_image_is_verified_by_its_fssig(small_image: Path, tmp_path: Path) -> None:
    fields = dict(line.split("=") for line in mystfuse("fssig", small_image).stdout.splitlines())
    result = verify(small_image, f"--roothash={fields['root_hash']}")
    assert result.returncode == 0
    assert result.stdout.endswith(f"root hash {fields['root_hash']}, its root hash is a trusted one\n")
    damaged = flip(small_image, tmp_path / "damaged", 3 * 4096, int(fields["hash_offset"]) - 1)
    size = int(fields["hash_offset"])
    assert bad_ranges(verify(damaged, f"--roothash={fields['root_hash']}")) == [
        ("data", 3 * 4096, 4 * 4096 - 1),
        ("data", size - 4096, size - 1),
    ]


def test_an_image_on_a_block_device_is_verified(small_image: Path) -> None:
    root_hash = mystfuse("fssig", "--roothash", small_image).stdout.strip()
    device = run("losetup", "--find", "--show", "--read-only", small_image).stdout.strip()
    try:
        assert verify(Path(device), f"--roothash={root_hash}").returncode == 0
    finally:
        run("losetup", "--detach", device)
