"""``write_tree`` writes the same tree as plain hashlib, and returns its root hash."""

from __future__ import annotations

import hashlib
import os
import random
from itertools import cycle, product
from pathlib import Path

import pytest

from mystfuse.build.hash_tree import write_tree
from mystfuse.formats.verity import TreeGeometry, VeritySuperblock


def expected_tree(superblock: VeritySuperblock, data: bytes) -> tuple[bytes, bytes]:
    """The root hash and the tree, top level first, by the description of the format."""
    before, behind = (superblock.salt, b"") if superblock.hash_type == 1 else (b"", superblock.salt)
    new = getattr(hashlib, superblock.algorithm)

    def digests(content: bytes, size: int) -> list[bytes]:
        return [new(before + content[at : at + size] + behind).digest() for at in range(0, len(content), size)]

    size, tree = superblock.hash_block_size, b""
    level = digests(data, superblock.data_block_size)
    per_block = size // len(level[0])
    while len(level) > 1:
        blocks = [b"".join(level[at : at + per_block]).ljust(size, b"\0") for at in range(0, len(level), per_block)]
        tree = b"".join(blocks) + tree
        level = digests(b"".join(blocks), size)
    return level[0], tree


def superblocks() -> list[VeritySuperblock]:
    hashes = list(product((0, 32, 256), (0, 1), ("sha256", "sha512")))
    shapes = [(*parameters, 512, 512, 300) for parameters in hashes]
    turn = cycle(hashes)
    for data_block, hash_block in product((512, 1024, 4096, 65536), repeat=2):
        for which in range(4):
            salt_size, hash_type, algorithm = next(turn)
            per_block = hash_block // (32 if algorithm == "sha256" else 64)
            count = (1, 2, per_block, per_block + 1)[which]
            if count * data_block <= 3 << 20:
                shapes.append((salt_size, hash_type, algorithm, data_block, hash_block, count))
        next(turn)
    return [
        VeritySuperblock(count, bytes(range(256))[:salt], bytes(16), kind, algorithm, data_block, hash_block)
        for salt, kind, algorithm, data_block, hash_block, count in shapes
    ]


def check(path: Path, superblock: VeritySuperblock, data: bytes) -> None:
    advanced: list[int] = []
    with path.open("r+b") as file:
        root = write_tree(file.fileno(), superblock, len(data), advanced.append)
    expected_root, tree = expected_tree(superblock, data)
    size = superblock.hash_block_size
    tree_offset = -(-(len(data) + 512) // size) * size
    expected = (data + superblock.pack()).ljust(tree_offset, b"\0") + tree
    assert root.hex() == expected_root.hex()
    assert sum(advanced) == len(data)
    assert TreeGeometry.of(superblock, len(data)).end == len(expected)
    written = path.read_bytes()
    assert written[: len(expected)].ljust(len(expected), b"\0") == expected
    assert not any(written[len(expected) :])


@pytest.mark.parametrize("superblock", superblocks(), ids=lambda block: f"{block.data_blocks}x{block.data_block_size}")
def test_every_shape_of_tree_is_what_plain_hashlib_makes(superblock: VeritySuperblock, tmp_path: Path) -> None:
    data = random.Random(superblock.data_blocks).randbytes(superblock.data_size)
    path = tmp_path / "image"
    path.write_bytes(data)
    check(path, superblock, data)


def test_holes_are_hashed_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("w+b") as file:
        os.pwrite(file.fileno(), b"x" * 4096, 2 << 20)
        file.truncate(4 << 20)
    check(path, VeritySuperblock(1024, b"salt", bytes(16)), path.read_bytes())
