"""The check against a hash tree: the C kernel does what the one in Python does, and both find exactly the damage."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.formats.verity import TreeGeometry
from mystfuse.kernels.interface import HashBlockKey, TreeShape
from mystfuse.kernels.pure.hash_tree import TreePaths, TreeVerifier
from tests.support.kernels import HASHERS, TREES, needs_native
from tests.support.verity_images import SHAPES, Image, build

LARGE = 16 << 20
Runs = list[tuple[int, int]]
T = TypeVar("T")

every_kernel = pytest.mark.parametrize("kernel", TREES)


def shape_of(image: Image) -> TreeShape:
    superblock, geometry = image.superblock, TreeGeometry.of(image.superblock, image.data_size)
    return TreeShape(
        superblock.data_blocks,
        superblock.data_block_size,
        superblock.hash_block_size,
        geometry.digests_per_block,
        [(level.offset, level.blocks) for level in geometry.levels],
    )


def tree_of(kernel: str, image: Image, cache_bytes: int = LARGE) -> TreeVerifier:
    superblock = image.superblock
    hasher = HASHERS[kernel](superblock.algorithm, superblock.salt, superblock.hash_type)
    return TREES[kernel](hasher, shape_of(image), image.root_hash, cache_bytes)


def hash_block(image: Image, key: HashBlockKey) -> bytes:
    level, index = key
    size = image.superblock.hash_block_size
    offset = shape_of(image).levels[level][0] + index * size
    return bytes(image.content[offset : offset + size])


def data_of(image: Image, runs: Runs) -> list[bytes]:
    return [bytes(image.content[offset : offset + length]) for offset, length in runs]


def check(tree: TreeVerifier, image: Image, runs: Runs) -> tuple[set[HashBlockKey], list[int]]:
    """Give it all that is missing. Returns the hash blocks that were refused, and, if none was, the data blocks that
    differ."""
    paths, refused = tree.paths(runs), set()
    per_block = tree.shape.digests_per_block
    for key in paths.missing():
        if (key[0] + 1, key[1] // per_block) in refused or not paths.give(key, hash_block(image, key)):
            refused.add(key)
    if refused:
        return {key for key in refused if (key[0] + 1, key[1] // per_block) not in refused}, []
    assert paths.missing() == [], "what is held is not missing, however small the cache is"
    return set(), paths.mismatches(data_of(image, runs))


@st.composite
def images(draw: st.DrawFn) -> Image:
    return build(
        draw(st.integers(1, 300), "data_blocks"),
        draw(st.sampled_from([512, 1024])),
        draw(st.sampled_from([512, 1024])),
        draw(st.sampled_from(["sha256", "sha512"])),
        draw(st.sampled_from([b"", b"\x5a" * 32])),
        draw(st.sampled_from([0, 1])),
    )


@st.composite
def runs_of(draw: st.DrawFn, image: Image) -> Runs:
    """Runs of whole blocks, in order."""
    ends = sorted(draw(st.sets(st.integers(0, image.superblock.data_blocks), min_size=2, max_size=8)))
    size = image.block_size
    pairs = list(pairwise(ends))[:: draw(st.sampled_from([1, 2]))]
    return [(first * size, (end - first) * size) for first, end in pairs]


def in_both(pair: list[TreePaths], step: Callable[[TreePaths], T]) -> T | None:
    """What a step gives in both kernels; None for a ValueError in both."""
    results: list[T | None] = []
    for paths in pair:
        try:
            results.append(step(paths))
        except ValueError:
            results.append(None)
    assert results[0] == results[1]
    return results[0]


@needs_native
@given(st.data())
def test_both_are_alike_step_by_step(data: st.DataObject) -> None:
    """Requests that overlap in time, in any order of steps, right or wrong, over storage that changes."""
    image = data.draw(images(), "image")
    trees = [tree_of(kernel, image) for kernel in ("pure", "native")]
    requests = [data.draw(runs_of(image), "runs") for _ in range(3)]
    pairs = [[tree.paths(runs) for tree in trees] for runs in requests]
    missing: list[list[HashBlockKey]] = [[] for _ in requests]

    def give(number: int, key: HashBlockKey) -> None:
        in_both(pairs[number], lambda paths: paths.give(key, hash_block(image, key)))

    def compare(number: int) -> None:
        in_both(pairs[number], lambda paths: paths.mismatches(data_of(image, requests[number])))

    for _ in range(data.draw(st.integers(1, 30), "steps")):
        number = data.draw(st.integers(0, 2))
        match data.draw(st.sampled_from(["look", "give", "give", "give all", "compare", "damage"])):
            case "look":
                missing[number] = in_both(pairs[number], lambda paths: paths.missing()) or []
            case "give" if missing[number]:
                give(number, data.draw(st.sampled_from(missing[number])))
            case "give all":
                for key in missing[number]:
                    give(number, key)
            case "compare":
                compare(number)
            case "damage":
                image.content[data.draw(st.integers(0, len(image.content) - 1))] ^= 1
    assert trees[0].hash_blocks_verified == trees[1].hash_blocks_verified


@needs_native
@given(st.data())
def test_both_are_alike_with_any_cache(data: st.DataObject) -> None:
    """Whatever is dropped: the same hash blocks are refused, the same data differ, and those are the damaged ones."""
    image = data.draw(images(), "image")
    flips = data.draw(st.lists(st.integers(0, len(image.content) - 1), max_size=3, unique=True), "flips")
    for flip in flips:
        image.content[flip] ^= 4
    cache_bytes = data.draw(st.sampled_from([0, 1, 16 * 512, 40 * 512, LARGE]), "cache_bytes")
    trees = [tree_of(kernel, image, cache_bytes) for kernel in ("pure", "native")]
    for _ in range(data.draw(st.integers(1, 5), "requests")):
        runs = data.draw(runs_of(image), "runs")
        refused, differ = check(trees[0], image, runs)
        assert check(trees[1], image, runs) == (refused, differ)
        blocks = [
            number
            for offset, length in runs
            for number in range(offset // image.block_size, (offset + length) // image.block_size)
        ]
        damaged = [number for number in blocks if any(image.depends(number, flip) for flip in flips)]
        assert bool(damaged) == bool(refused or differ)
        if not refused:
            assert differ == damaged
    assert trees[0].blocks_verified == trees[1].blocks_verified


@every_kernel
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: str, kernel: str) -> None:
    image = build(**SHAPES[shape])
    tree = tree_of(kernel, image)
    everything = [(0, image.data_size)]
    assert check(tree, image, everything) == (set(), [])
    assert (tree.blocks_verified, tree.hash_blocks_verified) == (image.superblock.data_blocks, len(image.hash_blocks))
    assert tree.paths(everything).missing() == []
    image.content[image.data_size - 1] ^= 1
    assert check(tree, image, everything) == (set(), [image.superblock.data_blocks - 1])
    assert check(tree, image, []) == (set(), [])


@every_kernel
@pytest.mark.parametrize("blocks", [1, 300, 4100])
def test_digests_are_those_of_the_data(kernel: str, blocks: int) -> None:
    image = build(blocks, 512, 1024)
    runs = [(0, 512)] if blocks == 1 else [(0, 1024), (31 * 512, 66 * 512), ((blocks - 1) * 512, 512)]
    tree = tree_of(kernel, image, cache_bytes=0)
    paths = tree.paths(runs)
    if blocks > 1:
        with pytest.raises(ValueError, match="hash block"):
            paths.digests()
    for key in paths.missing():
        assert paths.give(key, hash_block(image, key))
    superblock = image.superblock
    hasher = HASHERS[kernel](superblock.algorithm, superblock.salt, superblock.hash_type)
    assert paths.digests() == [
        b"".join([hasher.digest(data[start : start + 512]) for start in range(0, len(data), 512)])
        for data in data_of(image, runs)
    ]


@every_kernel
def test_missing_hash_blocks_are_named_from_the_top(kernel: str) -> None:
    image = build(4100, 512, 512)
    paths = tree_of(kernel, image).paths([(0, 512), (511 * 512, 1024), (4099 * 512, 512)])
    assert paths.missing() == [
        (3, 0),
        (2, 0),
        (2, 1),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 16),
        (0, 0),
        (0, 31),
        (0, 32),
        (0, 256),
    ]


@every_kernel
def test_steps_out_of_order_are_errors(kernel: str) -> None:
    image = build(300, 512, 512)
    paths = tree_of(kernel, image).paths([(0, 512)])
    assert paths.missing() == [(2, 0), (1, 0), (0, 0)]
    wrong: list[Callable[[], object]] = [
        lambda: paths.give((0, 0), hash_block(image, (0, 0))),
        lambda: paths.give((0, 1), hash_block(image, (0, 1))),
        lambda: paths.give((3, 0), bytes(512)),
        lambda: paths.give((2, 0), bytes(511)),
        lambda: paths.mismatches([bytes(512)]),
    ]
    for step in wrong:
        with pytest.raises(ValueError):
            step()
    assert check(tree_of(kernel, image), image, [(0, 512)]) == (set(), [])
    for key in paths.missing():
        assert paths.give(key, hash_block(image, key))
    for sizes in [511], [513], [1024], [0], [], [512, 512]:
        with pytest.raises(ValueError):
            paths.mismatches([bytes(size) for size in sizes])
    assert paths.mismatches([image.data[:512]]) == []


@every_kernel
@pytest.mark.parametrize(
    "runs",
    [
        [(1, 512)],
        [(0, 511)],
        [(0, 0)],
        [(512, 512), (0, 512)],
        [(0, 1024), (512, 512)],
        [(20 * 512, 512)],
        [(0, 21 * 512)],
    ],
)
def test_impossible_runs_are_errors(runs: Runs, kernel: str) -> None:
    tree = tree_of(kernel, build(20, 512, 512))
    with pytest.raises(ValueError):
        tree.paths(runs)


@every_kernel
def test_a_root_hash_of_another_size_is_an_error(kernel: str) -> None:
    image = build(20)
    for root_hash in image.root_hash[1:], image.root_hash + b"\0", b"":
        with pytest.raises(ValueError):
            TREES[kernel](HASHERS[kernel]("sha256", b"", 1), shape_of(image), root_hash, LARGE)


@needs_native
def test_impossible_trees_are_refused_by_native() -> None:
    image = build(300, 512, 512)
    good, hasher = shape_of(image), HASHERS["native"]("sha256", b"", 1)
    levels = list(good.levels)
    for bad in (
        good._replace(data_blocks=0),
        good._replace(data_blocks=1),
        good._replace(data_blocks=1 << 55),
        good._replace(data_block_size=256),
        good._replace(data_block_size=1 << 20),
        good._replace(hash_block_size=513),
        good._replace(digests_per_block=0),
        good._replace(digests_per_block=1),
        good._replace(digests_per_block=32),
        good._replace(levels=[]),
        good._replace(levels=levels[:-1]),
        good._replace(levels=[*levels, (0, 1)]),
        good._replace(levels=[(0, 20), *levels[1:]]),
    ):
        with pytest.raises(MemoryError):
            TREES["native"](hasher, bad, image.root_hash, LARGE)
    TREES["native"](hasher, good, image.root_hash, LARGE)


@every_kernel
def test_what_is_kept_does_not_change_with_the_memory_that_it_came_in(kernel: str) -> None:
    image = build(300, 512, 512)
    tree = tree_of(kernel, image)
    paths = tree.paths([(0, 512)])
    for key in paths.missing():
        memory = bytearray(hash_block(image, key))
        assert paths.give(key, memory)
        memory[:] = bytes(len(memory))
    for each in paths, tree.paths([(0, 512)]):
        assert each.missing() == []
        assert each.mismatches([image.data[:512]]) == []


@every_kernel
def test_a_refused_block_is_not_kept_and_the_right_one_is_taken_afterwards(kernel: str) -> None:
    image = build(300, 512, 512)
    tree = tree_of(kernel, image)
    paths = tree.paths([(0, 512)])
    for key in paths.missing():
        block = hash_block(image, key)
        assert not paths.give(key, bytes([block[0] ^ 1]) + block[1:])
        assert key in tree.paths([(0, 512)]).missing()
        assert paths.give(key, block)
    assert paths.mismatches([image.data[:512]]) == []
    assert tree.hash_blocks_verified == 3


@every_kernel
def test_what_a_request_has_found_is_not_missing_again_when_it_is_dropped(kernel: str) -> None:
    image = build(4100, 512, 512)
    tree, runs = tree_of(kernel, image, 1), [(16 * 512, 512)]
    assert check(tree, image, [(0, 512)]) == (set(), [])
    paths = tree.paths(runs)
    assert paths.missing() == [(0, 1)]
    for block in range(300, 4000, 37):
        assert check(tree, image, [(block * 512, 512)]) == (set(), [])
    assert (1, 0) in tree.paths(runs).missing(), "it was dropped"
    assert paths.missing() == [(0, 1)]
    assert paths.give((0, 1), hash_block(image, (0, 1)))
    assert paths.mismatches(data_of(image, runs)) == []


@every_kernel
def test_threads_share_a_tree(kernel: str, busy_threads: ThreadPoolExecutor) -> None:
    image = build(4100, 512, 512)
    image.content[2000 * 512] ^= 1
    tree = tree_of(kernel, image, 1)
    requests = 400

    def read(seed: int) -> int:
        dice = random.Random(seed)
        first = dice.randrange(4000)
        runs = [(first * 512, dice.randint(1, 100) * 512)]
        damaged = [2000] if first <= 2000 < first + runs[0][1] // 512 else []
        assert check(tree, image, runs) == (set(), damaged)
        return runs[0][1] // 512 - len(damaged)

    assert sum(busy_threads.map(read, range(requests))) == tree.blocks_verified
    assert tree.hash_blocks_verified > requests
