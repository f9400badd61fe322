"""What C answers from an image and from written blocks, byte for byte what Python answers; no kernel takes part."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.fuse.mount_options import MountOptions
from tests.support.fast_path_images import all_questions, inodes_of, make_file_system, make_tree
from tests.support.fast_paths import OPTIONS, Comparison, TreeImage, TreeOptions, add_tree, opened
from tests.support.fuse_answers import (
    Kind,
    entries_of,
    getattr_of,
    listxattr,
    lookup,
    read,
    readdirplus,
    release,
    request,
)
from tests.support.kernels import needs_native

pytestmark = needs_native

LAYOUTS: dict[str, tuple[int, int, tuple[str, ...], TreeOptions, bool]] = {
    "1 KiB": (1024, 128, (), TreeOptions(), False),
    "1 KiB, small groups, SHA-512": (
        1024, 256, ("-g", "1024"), TreeOptions("sha512", 1024, 1024, b""), False,
    ),
    "2 KiB, tree of 512 bytes": (2048, 256, (), TreeOptions(data_block_size=512, hash_block_size=512), False),
    "4 KiB, larger data blocks": (4096, 256, (), TreeOptions(data_block_size=16384, hash_block_size=1024), False),
    "4 KiB, tree apart, no file types": (4096, 128, ("-O", "^filetype"), TreeOptions(hash_type=0), True),
    "revision 0": (1024, 128, ("-r", "0", "-O", "none"), TreeOptions(salt=b"s" * 256), False),
    "ext4": (4096, 256, ("-t", "ext4"), TreeOptions(), False),
    "ext4, 1 KiB, groups with their own descriptors": (
        1024, 256, ("-t", "ext4", "-g", "1024", "-O", "meta_bg,^resize_inode,^has_journal"), TreeOptions(), False,
    ),
    "ext4, checksums of descriptors alone": (
        2048, 128, ("-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit"), TreeOptions(), False,
    ),
    "ext4, block maps, groups in one place": (
        1024, 512, ("-t", "ext4", "-O", "^extent,^64bit,^flex_bg,^has_journal"), TreeOptions(), False,
    ),
    "32 KiB": (32768, 1024, (), TreeOptions(data_block_size=65536, hash_block_size=65536), False),
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree") / "tree")


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS.keys())
def image(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> TreeImage:
    block_size, inode_size, options, tree_options, is_apart = request.param
    path = tmp_path_factory.mktemp("image") / "image"
    return add_tree(make_file_system(path, tree, block_size, inode_size, *options), tree_options, is_apart)


async def test_all_of_an_image(image: TreeImage) -> None:
    async with opened(image) as pair:
        comparison = Comparison(pair)
        await comparison.ask_all(await all_questions(pair.volume, random.Random(1)))
        # A listing that has no room for one entry is Python's.
        few = {Kind.READDIRPLUS: 30, Kind.GETXATTR: 4}
        assert all(count <= few.get(kind, 0) for kind, count in comparison.wasted.items()), comparison.wasted
        assert comparison.answered.keys() >= set(Kind) - {Kind.RELEASE, Kind.FORGET, Kind.BATCH_FORGET, Kind.OPENDIR}
        assert min(comparison.answered.values()) >= 4 and comparison.answered.total() > 2000
        status = pair.fast_path.counts()
        assert status.open_files == comparison.answered[Kind.OPEN]


async def test_requests_that_read_nothing(image: TreeImage) -> None:
    async with opened(image) as pair:
        assert (opened_answer := pair.answers.ask(request(Kind.OPENDIR, EXT2_ROOT_INO, bytes(8)))) is not None
        assert opened_answer == await pair.reference.answer(request(Kind.OPENDIR, EXT2_ROOT_INO))
        assert pair.answers.ask(release(12)) == await pair.reference.answer(release(12))
        foreign = request(Kind.RELEASE, 12, bytes(24))
        assert pair.answers.ask(foreign) is None


async def test_listings_from_where_they_stopped(image: TreeImage) -> None:
    """A directory comes out once and whole, whatever the room of the replies, from any position between entries."""
    async with opened(image) as pair:
        async for inode, names in inodes_of(pair.volume):
            if not inode.is_directory:
                continue
            for room in (500, 4096, 32768):
                listed: list[bytes] = []
                position = 0
                while True:
                    answer = pair.answers.ask(question := readdirplus(inode.ino, position, room))
                    assert answer is not None and answer == await pair.reference.answer(question)
                    if not (entries := entries_of(answer[16:])):
                        break
                    listed += [name for name, _, _ in entries]
                    position = entries[-1][2]
                assert listed == [b".", b"..", *names]


async def test_what_it_lists_and_looks_up_is_counted(image: TreeImage) -> None:
    from mystfuse.kernels.native import lib

    async with opened(image) as pair:
        handle = pair.fast_path.handle
        root = await pair.volume.lookup(EXT2_ROOT_INO, b"a")
        assert root is not None
        for _ in range(3):
            assert pair.answers.ask(lookup(EXT2_ROOT_INO, b"a"))
        assert pair.answers.ask(readdirplus(EXT2_ROOT_INO, 0))
        assert lib.fastpath_count(handle, root.ino) == 4 and lib.fastpath_count(handle, EXT2_ROOT_INO) == 0
        one, count = root.ino.to_bytes(8, "little"), (2).to_bytes(8, "little")
        assert pair.answers.ask(request(Kind.FORGET, root.ino, count)) == b""
        batch = (1).to_bytes(4, "little") + bytes(4) + one + (1).to_bytes(8, "little")
        assert pair.answers.ask(request(Kind.BATCH_FORGET, 0, batch)) == b""
        assert lib.fastpath_count(handle, root.ino) == 1
        pair.answers.ask(lookup(EXT2_ROOT_INO, b"no such name"))
        assert lib.fastpath_count(handle, 0) == 0


@pytest.mark.parametrize(
    "options",
    [
        replace(OPTIONS, map_root=True, owner=(4321, 8765)),
        replace(OPTIONS, uid=99, control=False, xattr=False),
        replace(OPTIONS, gid=77, map_root=True, owner=(4321, 8765)),
    ],
    ids=["map_root", "uid, nocontrol, noxattr", "gid, map_root"],
)
async def test_owners_and_options(tree: Path, tmp_path: Path, options: MountOptions) -> None:
    made = add_tree(make_file_system(tmp_path / "image", tree, 1024, 256), TreeOptions())
    async with opened(made, options=options) as pair:
        comparison = Comparison(pair)
        await comparison.ask_all(await all_questions(pair.volume, random.Random(2)))
        assert comparison.answered[Kind.GETATTR] > 50 and comparison.answered[Kind.LOOKUP] > 100
        assert bool(comparison.answered[Kind.LISTXATTR]) == options.xattr == bool(comparison.answered[Kind.GETXATTR])


async def test_the_control_directory_is_pythons(tree: Path, tmp_path: Path) -> None:
    (other := tmp_path / "tree").mkdir()
    (other / ".mystfuse").mkdir()
    (other / "sub").mkdir()
    (other / "sub/.mystfuse").touch()
    made = add_tree(make_file_system(tmp_path / "image", other, 4096, 256), TreeOptions())
    control = (1 << 32) + 1
    async with opened(made) as pair:
        sub = await pair.volume.lookup(EXT2_ROOT_INO, b"sub")
        assert sub is not None
        assert pair.answers.ask(lookup(EXT2_ROOT_INO, b".mystfuse")) is None
        assert pair.answers.ask(lookup(sub.ino, b".mystfuse")) is not None
        for question in (
            getattr_of(control),
            listxattr(control, 0),
            lookup(control, b"status.json"),
            read(control, 0, 9),
        ):
            assert pair.answers.ask(question) is None
        answer = pair.answers.ask(readdirplus(EXT2_ROOT_INO, 0))
        assert answer is None or b".mystfuse" not in [name for name, _, _ in entries_of(answer[16:])]
    async with opened(made, options=replace(OPTIONS, control=False)) as pair:
        assert pair.answers.ask(lookup(EXT2_ROOT_INO, b".mystfuse")) is not None
