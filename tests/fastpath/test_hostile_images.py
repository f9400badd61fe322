"""C answers nothing from a file system in which Python finds something wrong, and nothing else than Python."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.superblock import Superblock
from mystfuse.volume.volume import Volume
from tests.fuzz.ext2_memory import numbers
from tests.fuzz.harness import Choices
from tests.fuzz.images import SparseDevice, SparseImage, load
from tests.fuzz.mutator import layout, mutate
from tests.fuzz.targets_fastpath import answers
from tests.support.fast_path_images import all_questions
from tests.support.fast_paths import OPTIONS, Answers, Comparison, TreeOptions, add_tree, bare_fast_path, opened
from tests.support.fuse_answers import Reference, lookup, readdirplus
from tests.support.kernels import needs_native

pytestmark = [needs_native, pytest.mark.logs(r"^mystfuse\.(ext2|volume)")]

SEEDS = int(os.environ.get("MYSTFUSE_FASTPATH_SEEDS", "400"))
GROUPS_OF_SEEDS = 4


@pytest.mark.parametrize("part", range(GROUPS_OF_SEEDS))
def test_damaged_structures(part: int) -> None:
    for seed in range(part, SEEDS, GROUPS_OF_SEEDS):
        try:
            answers(random.Random(seed).randbytes(300))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("seed", range(6))
async def test_damaged_structures_under_a_hash_tree(seed: int, tmp_path: Path) -> None:
    """The signer's own mistake or intent: every block is verified, and wrong."""
    choices = Choices(random.Random(seed).randbytes(100))
    name = ("small", "old")[seed % 2]
    image = load(name).copy()
    for _ in range(3):
        mutate(image, name, choices)
    # That is the whole image's business (image/contents.py).
    image.put(1024, load(name).get(1024, 1024))
    (tmp_path / "image").write_bytes(image.get(0, image.size))
    async with opened(add_tree(tmp_path / "image", TreeOptions())) as pair:
        comparison = Comparison(pair)
        await comparison.ask_all(await sound_questions(name))
        assert comparison.answered.total() > 100


async def sound_questions(name: str) -> list[bytes]:
    """All questions about an image before it was damaged."""
    volume = await Volume.open(SparseDevice(load(name)))
    return (await all_questions(volume, random.Random(1)))[:1500]


class Damaged:
    """The image ``small`` with changes, as the fast path has it and as Python has it."""

    def __init__(self) -> None:
        self.image: SparseImage = load("small").copy()
        self.place = layout("small")
        self.size = self.place.superblock.block_size
        self.many = numbers("small")[b"many"]
        """The directory of several blocks."""
        self.blocks = self.place.directories[self.many]

    def put_pointer(self, index: int, number: int) -> None:
        self.image.put_number(self.place.inodes[self.many] + 40 + 4 * index, 4, number)

    def compare(self, *questions: bytes) -> list[tuple[bytes | None, bytes | Exception | None]]:
        """The answers of both."""
        descriptor = os.memfd_create("image")
        try:
            os.write(descriptor, self.image.get(0, self.image.size))
            superblock = Superblock.parse(self.image.get(1024, 1024))
            with bare_fast_path(descriptor, self.image.size, superblock) as fast_path:
                of_c = [Answers(fast_path).ask(question) for question in questions]
            return list(zip(of_c, trio.run(self._ask_python, questions), strict=True))
        finally:
            os.close(descriptor)

    async def _ask_python(self, questions: tuple[bytes, ...]) -> list[bytes | Exception | None]:
        reference = Reference(await Volume.open(SparseDevice(self.image)), OPTIONS)
        found: list[bytes | Exception | None] = []
        for question in questions:
            try:
                found.append(await reference.answer(question))
            except Exception as error:
                found.append(error)
        return found


def test_a_directory_that_has_a_block_twice() -> None:
    damaged = Damaged()
    name = b"a-name-of-some-length-0000"
    questions = lookup(damaged.many, name), readdirplus(damaged.many, 2), readdirplus(damaged.many, 2 * damaged.size)
    sound = damaged.compare(*questions)
    assert all(answer is not None and answer == expected for answer, expected in sound)
    damaged.put_pointer(len(damaged.blocks) - 1, damaged.blocks[1])
    looked_up, listed = damaged.compare(*questions[:2])
    # The index leads to the name's own block.
    assert looked_up == (None, sound[0][1])
    assert listed[0] is None and "has a block twice" in str(listed[1])
    # Between the last two alone.
    damaged.put_pointer(1, damaged.blocks[-1])
    damaged.put_pointer(len(damaged.blocks) - 1, damaged.blocks[-2])
    ((answer, expected),) = damaged.compare(readdirplus(damaged.many, (len(damaged.blocks) - 2) * damaged.size))
    assert answer is None and "has a block twice" in str(expected)


def test_a_directory_with_a_pointer_outside_behind_what_is_listed() -> None:
    damaged = Damaged()
    damaged.put_pointer(len(damaged.blocks) - 1, 1 << 30)
    listed, looked_up = damaged.compare(readdirplus(damaged.many, 2), lookup(damaged.many, b"x"))
    assert listed[0] is None and "outside the file system" in str(listed[1])
    # The index leads elsewhere.
    assert looked_up[0] is None and isinstance(looked_up[1], bytes)


def test_a_name_with_a_slash() -> None:
    damaged = Damaged()
    block = damaged.place.directories[EXT2_ROOT_INO][0] * damaged.size
    place = damaged.image.get(block, damaged.size).index(b"large")
    damaged.image.put(block + place, b"la/ge")
    ((answer, expected), (listed, _)) = damaged.compare(lookup(EXT2_ROOT_INO, b"la/ge"), readdirplus(EXT2_ROOT_INO, 0))
    assert answer in (None, expected)
    assert listed is None or b"la/ge" not in listed
