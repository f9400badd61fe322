"""C gives no byte of a block that does not match the hash tree, and nothing made of one."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mystfuse.errors import MystfuseError
from tests.support.fast_path_images import all_questions, make_file_system, make_tree
from tests.support.fast_paths import Comparison, TreeImage, TreeOptions, add_tree, opened
from tests.support.kernels import needs_native

pytestmark = [needs_native, pytest.mark.logs(r"^mystfuse\.devices\.verity", r"^mystfuse\.(ext2|volume)")]

ROUNDS = 10
Answered = dict[bytes, bytes]


@pytest.fixture(
    scope="module", params=[(1024, TreeOptions(data_block_size=512, hash_block_size=512)), (4096, TreeOptions())]
)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TreeImage:
    block_size, options = request.param
    directory = tmp_path_factory.mktemp("image")
    return add_tree(make_file_system(directory / "image", make_tree(directory / "tree"), block_size, 256), options)


@pytest.fixture(scope="module")
def answered(image: TreeImage) -> Answered:
    """Python's answers about the sound image."""

    async def ask() -> Answered:
        found: Answered = {}
        async with opened(image) as pair:
            for question in (await all_questions(pair.volume, random.Random(1)))[:1500]:
                try:
                    answer = await pair.reference.answer(question)
                except (MystfuseError, OSError):
                    continue
                if answer is not None:
                    found[question] = answer
        return found

    return trio.run(ask)


@pytest.fixture
def damaged(image: TreeImage, tmp_path: Path) -> TreeImage:
    """A copy to damage."""
    shutil.copy(image.path, tmp_path / "image")
    return TreeImage(tmp_path / "image", None, image.hash_offset, image.root_hash)


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << position % 8]))


def used_places(path: Path, hash_offset: int) -> list[int]:
    """The offsets of blocks that are not all zeros: of data, metadata and hashes."""
    content = path.read_bytes()
    return [at for at in range(2048, len(content), 512) if content[at : at + 512].count(0) < 512]


def is_beginning(answer: bytes, whole: bytes) -> bool:
    """Whether an answer is the right one. A listing may end before a name whose inode is damaged."""
    is_shorter_listing = whole[4:8] == answer[4:8] == bytes(4) and whole.startswith(answer[16:], 16)
    return answer == whole or is_shorter_listing


async def test_blocks_that_were_damaged_before(damaged: TreeImage, answered: Answered) -> None:
    """C and Python refuse the same, or C leaves it to Python."""
    noise = random.Random(2)
    places = used_places(damaged.path, damaged.hash_offset)
    refused = 0
    for _ in range(ROUNDS):
        flipped = [place + noise.randrange(512) for place in noise.sample(places, noise.choice((1, 20, 200)))]
        for position in flipped:
            flip(damaged.path, position)
        try:
            async with opened(damaged) as pair:
                comparison = Comparison(pair)
                for question in noise.sample(list(answered), 200):
                    await comparison.ask(question)
                    answer = pair.answers.ask(question)
                    assert answer is None or is_beginning(answer, answered[question]), question
                    refused += answer is None
        except BaseExceptionGroup as errors:
            # The superblock's block, or the top of the tree.
            if errors.split(MystfuseError)[1] is not None:
                raise
        for position in flipped:
            flip(damaged.path, position)
    assert refused > 50


async def test_blocks_that_are_damaged_meanwhile(damaged: TreeImage, answered: Answered) -> None:
    """The fast path keeps what it has verified, and verifies what it reads again."""
    noise = random.Random(3)
    places = used_places(damaged.path, damaged.hash_offset)
    # The first block of the tree is its superblock, which is read once.
    in_tree = [place for place in places if place >= damaged.hash_offset][1:]
    refused = 0
    async with opened(damaged) as pair:
        for _ in range(2 * ROUNDS):
            flipped = [place + noise.randrange(512) for place in noise.sample(in_tree, 5) + noise.sample(places, 200)]
            for position in flipped:
                flip(damaged.path, position)
            for question in noise.sample(list(answered), 100):
                answer = pair.answers.ask(question)
                assert answer is None or is_beginning(answer, answered[question]), question
                refused += answer is None
            for position in flipped:
                flip(damaged.path, position)
    assert refused > 20


@pytest.mark.parametrize("spoil", ["truncated", "emptied", "zeros"])
async def test_a_file_that_changes_its_size(spoil: str, damaged: TreeImage, answered: Answered) -> None:
    change: dict[str, Callable[[], None]] = {
        "truncated": lambda: os.truncate(damaged.path, 3 << 20),
        "emptied": lambda: os.truncate(damaged.path, 0),
        "zeros": lambda: damaged.path.open("r+b").write(bytes(damaged.hash_offset)) and None,
    }
    async with opened(damaged) as pair:
        change[spoil]()
        answers = {question: pair.answers.ask(question) for question in answered}
        assert all(answer in (None, answered[question]) for question, answer in answers.items())
        # The rest is in front of the new end, or in memory, verified: Python and C share the hash blocks.
        assert sum(answer is None for answer in answers.values()) > 50
