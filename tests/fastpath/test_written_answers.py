"""What C answers while Python changes the file system: always of the present state, wherever its blocks are."""

from __future__ import annotations

import random
import stat
from collections import Counter
from pathlib import Path

import pytest

from mystfuse.crypto.secret import Secret
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.fastpath.written_blocks import WrittenBlocks
from mystfuse.image.keys import Keys
from mystfuse.overlay.encrypted_store import open_store_file
from tests.support.fast_path_images import ADMIN, all_questions, change_something, make_file_system, make_tree
from tests.support.fast_paths import Comparison, TreeImage, TreeOptions, add_tree, opened
from tests.support.fault_schedules import Subject, make_subject
from tests.support.fuse_answers import Kind, getattr_of, lookup, read, readdirplus
from tests.support.kernels import needs_native

pytestmark = needs_native

ROUNDS = 8
CHANGES = 25


@pytest.fixture(scope="module", params=[1024, 4096])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TreeImage:
    directory = tmp_path_factory.mktemp("image")
    made = make_file_system(directory / "image", make_tree(directory / "tree"), request.param, 256)
    return add_tree(made, TreeOptions())


@pytest.mark.parametrize("seed", range(2))
async def test_random_changes_between_questions(image: TreeImage, seed: int) -> None:
    noise = random.Random(seed)
    async with opened(image, 64 << 20) as pair:
        comparison = Comparison(pair)
        for _ in range(ROUNDS):
            for _ in range(CHANGES):
                await change_something(pair.volume, noise)
            questions = await all_questions(pair.volume, noise)
            await comparison.ask_all(questions[:1200])
        assert pair.volume.overlay is not None and pair.volume.overlay.blocks > 100
        assert comparison.wasted.total() < comparison.answered.total() / 50, comparison.wasted
        assert comparison.answered.keys() >= {Kind.LOOKUP, Kind.GETATTR, Kind.READ, Kind.READDIRPLUS, Kind.READLINK}


async def test_blocks_that_come_and_go(image: TreeImage) -> None:
    """Each file is written, read by C, and removed, so that table and arenas grow, shrink, and are used again."""
    noise = random.Random(5)
    async with opened(image, 64 << 20) as pair:
        comparison = Comparison(pair)
        for number in range(12):
            made = [
                await pair.volume.create(EXT2_ROOT_INO, b"%d %d" % (number, index), stat.S_IFREG | 0o644, ADMIN)
                for index in range(8)
            ]
            for inode in made:
                await pair.volume.write(inode.ino, noise.randrange(9000), noise.randbytes(200_000), ADMIN)
                await comparison.ask(read(inode.ino, noise.randrange(9000), 131072))
                await comparison.ask(getattr_of(inode.ino))
            await comparison.ask(readdirplus(EXT2_ROOT_INO, 0))
            for index, inode in enumerate(made):
                await pair.volume.remove(EXT2_ROOT_INO, b"%d %d" % (number, index), False)
                await comparison.ask(lookup(EXT2_ROOT_INO, b"%d %d" % (number, index)))
                assert pair.answers.ask(getattr_of(inode.ino)) is None, "of an inode without a name"
                await pair.volume.release(inode.ino)
        assert not comparison.wasted and comparison.answered[Kind.READ] == 96


async def test_blocks_in_the_store_are_pythons(image: TreeImage, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    noise = random.Random(6)
    async with opened(image, 1 << 20, store_file=open_store_file(str(tmp_path / "store"))) as pair:
        comparison = Comparison(pair)
        file = await pair.volume.create(EXT2_ROOT_INO, b"file", stat.S_IFREG | 0o644, ADMIN)
        for megabyte in range(6):
            await pair.volume.write(file.ino, megabyte << 20, noise.randbytes(1 << 20), ADMIN)
        assert pair.volume.overlay is not None and pair.volume.overlay.store_used > 0
        for megabyte in range(6):
            for offset in range(0, 1 << 20, 131072):
                await comparison.ask(read(file.ino, (megabyte << 20) + offset, 131072))
        await comparison.ask_all((await all_questions(pair.volume, noise))[:1500])
        assert comparison.wasted[Kind.READ] > 10 and comparison.answered[Kind.READ] > 10


async def test_the_overlay_outlives_the_fast_path(image: TreeImage, tmp_path: Path) -> None:
    """At the end of a mount blocks may be on their way to the store."""
    (tmp_path / "store").mkdir()
    async with opened(
        image, 1 << 20, store_file=open_store_file(str(tmp_path / "store")), is_stopped_inside=True
    ) as pair:
        mirror = WrittenBlocks(pair.fast_path)
        token = mirror.begin([7], 1)
        mirror.end(token, {})
        pair.fast_path.stop()
        assert token is not None and mirror.begin([7], 1) is None
        file = await pair.volume.create(EXT2_ROOT_INO, b"file", stat.S_IFREG | 0o644, ADMIN)
        for megabyte in range(4):
            await pair.volume.write(file.ino, megabyte << 20, bytes([megabyte]) * (1 << 20), ADMIN)
        assert pair.volume.overlay is not None and pair.volume.overlay.store_used > 0
        assert bytes(await pair.volume.read(file.ino, (3 << 20) - 1, 2)) == b"\2\3"


@pytest.fixture(
    scope="module",
    params=["LUKS1", "LUKS1, tiny hash blocks, long salt", "LUKS2, SHA-512", "plain, small blocks, SHA-512"],
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(request.param, tmp_path_factory.mktemp("subject"))


async def test_encrypted_images_as_they_are_and_changed(subject: Subject) -> None:
    made = TreeImage(subject.path, None, subject.hash_offset, subject.root_hash)
    keys = Keys(Secret.copy_of(subject.key)) if subject.key else Keys()
    noise = random.Random(3)
    counts: list[Counter[Kind]] = []
    async with opened(made, 1 << 24, keys=keys) as pair:
        for _ in range(2):
            comparison = Comparison(pair)
            await comparison.ask_all(await all_questions(pair.volume, noise))
            counts.append(comparison.answered)
            assert comparison.wasted.total() < comparison.answered.total() / 50, comparison.wasted
            for _ in range(60):
                await change_something(pair.volume, noise)
        assert min(count[Kind.READ] for count in counts) > 100
