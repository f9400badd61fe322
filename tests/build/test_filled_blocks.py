"""Counting blocks: against a block map that is built block by block, and directories filled as mke2fs does it."""

from __future__ import annotations

import random
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from mystfuse.build.directory_contents import DirectoryContents
from mystfuse.build.filesystem_size import find_smallest
from mystfuse.build.filled_blocks import count_blocks, indirect_blocks, packed_blocks
from mystfuse.build.source_tree import scan
from mystfuse.errors import MystfuseError


def indirect_by_hand(blocks: set[int], pointers: int) -> int:
    """The indirect blocks on the way to each block, by the format's definition."""
    nodes: set[tuple[int, ...]] = set()
    for block in blocks:
        rest = block - 12
        for depth in (1, 2, 3):
            if rest < 0 or rest >= pointers**depth:
                if rest >= 0:
                    rest -= pointers**depth
                continue
            path = [rest // pointers**level % pointers for level in reversed(range(1, depth))]
            nodes.update((depth, *path[:length]) for length in range(depth))
            break
    return len(nodes)


@hypothesis.given(
    runs=st.lists(st.tuples(st.integers(0, 700), st.integers(1, 90)), max_size=8), pointers=st.sampled_from([4, 8])
)
def test_indirect_blocks(runs: list[tuple[int, int]], pointers: int) -> None:
    limit = 12 + pointers + pointers**2 + pointers**3
    blocks = {block for start, length in runs for block in range(start, start + length) if block < limit}
    ordered = sorted(blocks)
    joined: list[tuple[int, int]] = []
    for block in ordered:
        if joined and joined[-1][1] == block:
            joined[-1] = (joined[-1][0], block + 1)
        else:
            joined.append((block, block + 1))
    assert indirect_blocks(joined, pointers) == indirect_by_hand(blocks, pointers)


def test_names_go_into_the_first_block_with_room() -> None:
    generator = random.Random(5)
    for _ in range(200):
        names = [b"n" * generator.randrange(1, 256) for _ in range(generator.randrange(120))]
        rooms = [1024 - 24]
        for name in names:
            length = 8 + (len(name) + 3) // 4 * 4
            for index, room in enumerate(rooms):
                if room >= length:
                    rooms[index] -= length
                    break
            else:
                rooms.append(1024 - length)
        assert packed_blocks(names, 1024, 24) == len(rooms)


def test_blocks_of_zeros_are_not_counted(tmp_path: Path) -> None:
    generator = random.Random(8)
    for number in range(60):
        tree = tmp_path / str(number)
        tree.mkdir()
        parts = [
            bytes(generator.randrange(1, 5000)) if generator.random() < 0.5 else b"x" * generator.randrange(1, 3000)
            for _ in range(8)
        ]
        data = b"x" + b"".join(parts)
        (tree / "file").write_bytes(data)
        for block_size in (1024, 4096):
            blocks = {start // block_size for start in range(0, len(data), block_size)
                      if any(data[start : start + block_size])}  # fmt: skip
            expected = len(blocks) + indirect_by_hand(blocks, block_size // 4)
            contents = DirectoryContents(tree)
            root = scan(tree, keep=True).root
            assert root is not None
            assert count_blocks(root, contents, block_size) == expected
            contents.close()


@pytest.mark.parametrize("guess", [1, 4096, 40_000_000, 400_000_000])
@pytest.mark.parametrize("wanted", [1, 2000, 8000, 8150, 8192, 8200, 8700, 100_000])
def test_the_smallest_size_is_found_from_any_guess(guess: int, wanted: int) -> None:
    """Groups of 8192 blocks, 300 of which are metadata; a last one of fewer than 350 is not made."""
    asked = 0

    def spare(size: int) -> int | None:
        nonlocal asked
        asked += 1
        groups, rest = divmod(size // 1024, 8192)
        if rest >= 350:
            groups, rest = groups + 1, rest
        elif not groups:
            return None
        else:
            rest = 8192
        return (groups - 1) * 8192 + rest - groups * 300 - wanted

    found = find_smallest(spare, 1024, 4096, guess)
    enough, less = spare(found), spare(found - 4096)
    assert enough is not None and enough >= 0
    assert less is None or less < 0
    assert asked < 100


def test_a_size_that_never_is_enough_is_an_error() -> None:
    with pytest.raises(MystfuseError, match="no file system with room"):
        find_smallest(lambda size: None, 1024, 4096, 4096)
