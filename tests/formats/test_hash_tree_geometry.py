"""The geometry of hash trees: levels, their sizes and their places."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.errors import FormatError
from mystfuse.formats.verity import TreeGeometry, TreeLevel, VeritySuperblock
from tests.support.format_values import SUPERBLOCK, superblocks

BLOCKS_PER_LEVEL = {
    ("sha256", 512): {
        1: (),
        2: (1,),
        16: (1,),
        17: (2, 1),
        128: (8, 1),
        129: (9, 1),
        16384: (1024, 64, 4, 1),
        16385: (1025, 65, 5, 1),
    },
    ("sha256", 4096): {
        1: (),
        2: (1,),
        128: (1,),
        129: (2, 1),
        16384: (128, 1),
        16385: (129, 2, 1),
        128**3: (16384, 128, 1),
        128**3 + 1: (16385, 129, 2, 1),
    },
    ("sha256", 65536): {1: (), 2: (1,), 2048: (1,), 2049: (2, 1), 16384: (8, 1), 16385: (9, 1)},
    ("sha512", 512): {1: (), 2: (1,), 8: (1,), 9: (2, 1), 128: (16, 2, 1), 129: (17, 3, 1)},
    ("sha512", 4096): {1: (), 2: (1,), 64: (1,), 128: (2, 1), 129: (3, 1), 16384: (256, 4, 1), 16385: (257, 5, 1)},
    ("sha512", 65536): {1: (), 2: (1,), 1024: (1,), 1025: (2, 1), 16384: (16, 1), 16385: (17, 1)},
}


@pytest.mark.parametrize(
    ("algorithm", "hash_block_size", "data_blocks", "expected"),
    [
        (algorithm, size, data_blocks, expected)
        for (algorithm, size), known in BLOCKS_PER_LEVEL.items()
        for data_blocks, expected in known.items()
    ],
)
def test_the_tree_has_as_many_blocks_on_each_level_as_it_should(
    algorithm: str, hash_block_size: int, data_blocks: int, expected: tuple[int, ...]
) -> None:
    superblock = VeritySuperblock(
        data_blocks, b"", bytes(16), algorithm=algorithm, data_block_size=4096, hash_block_size=hash_block_size
    )
    geometry = TreeGeometry.of(superblock, 1 << 30)
    assert tuple(level.blocks for level in geometry.levels) == expected
    assert geometry.digest_size == {"sha256": 32, "sha512": 64}[algorithm]
    assert geometry.digests_per_block == hash_block_size // geometry.digest_size
    # The top level lies first, each level directly behind the one above it.
    position = (1 << 30) + max(hash_block_size, 512)
    for level in reversed(geometry.levels):
        assert level.offset == position
        position += level.blocks * hash_block_size
    assert geometry.end == position


def test_the_levels_lie_top_first_at_known_bytes() -> None:
    superblock = replace(SUPERBLOCK, data_blocks=16385)
    geometry = TreeGeometry.of(superblock, superblock.data_size)
    first = 16385 * 4096 + 4096
    assert geometry.levels == (
        TreeLevel(first + 3 * 4096, 129),
        TreeLevel(first + 1 * 4096, 2),
        TreeLevel(first, 1),
    )
    assert geometry.end == first + 132 * 4096


@pytest.mark.parametrize(
    ("hash_offset", "hash_block_size", "expected"),
    [
        (512, 512, 1024),
        (40960, 512, 41472),
        (512, 1024, 1024),
        (1024, 1024, 2048),
        (3584, 4096, 4096),
        (3585, 4096, 8192),
        (4096, 4096, 8192),
        (40960, 4096, 45056),
        (41472, 4096, 45056),
        (40960, 65536, 65536),
        (65024, 65536, 65536),
        (65536, 65536, 131072),
        (512, 1 << 19, 1 << 19),
        (1 << 62, 4096, (1 << 62) + 4096),
    ],
)
def test_the_tree_begins_at_the_first_whole_hash_block_of_the_file_behind_the_superblock(
    hash_offset: int, hash_block_size: int, expected: int
) -> None:
    geometry = TreeGeometry.of(replace(SUPERBLOCK, data_blocks=2, hash_block_size=hash_block_size), hash_offset)
    assert geometry.levels == (TreeLevel(expected, 1),)


def test_a_single_data_block_has_no_tree() -> None:
    geometry = TreeGeometry.of(replace(SUPERBLOCK, data_blocks=1), 4096)
    assert geometry.levels == ()


@given(superblocks(), st.integers(1, 1 << 62))
def test_every_level_holds_all_digests_of_the_one_below_and_no_block_more(
    superblock: VeritySuperblock, hash_offset: int
) -> None:
    geometry = TreeGeometry.of(superblock, hash_offset)
    below = superblock.data_blocks
    for level in geometry.levels:
        assert (level.blocks - 1) * geometry.digests_per_block < below <= level.blocks * geometry.digests_per_block
        assert level.offset % superblock.hash_block_size == 0
        assert level.offset >= hash_offset + 512
        below = level.blocks
    assert below == 1


def test_a_tree_that_would_end_past_the_limit_is_refused() -> None:
    geometry = TreeGeometry.of(SUPERBLOCK, 1000 * 4096)
    assert geometry.end == (1000 + 1 + 1 + 8) * 4096
    geometry.check_fits(geometry.end)
    with pytest.raises(FormatError, match=str(geometry.end - 1)):
        geometry.check_fits(geometry.end - 1)
