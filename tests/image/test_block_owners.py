"""Each block's owner, as debugfs, dumpe2fs and e2fsck know it: every block of rich file systems, damaged in turn."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mystfuse.image.affected import ATTRIBUTES, DATA, INDIRECT, INODE, NAME, AffectedInode
from mystfuse.image.block_owners import BlockOwners
from mystfuse.image.damage import find_superblock
from mystfuse.image.damaged_ranges import DamagedRanges
from mystfuse.image.lost_names import LostNames
from mystfuse.image.verified_blocks import VerifiedBlocks
from tests.support.commands import run
from tests.support.ext2_editor import Editor, MemoryDevice, debugfs, make_image
from tests.support.owner_judges import Judges

KINDS: dict[str, tuple[str, ...]] = {
    "1 KiB": ("-b", "1024", "-g", "1024", "-N", "512"),
    "1 KiB, a copy in each group": ("-b", "1024", "-g", "1024", "-N", "512", "-O", "^sparse_super,^resize_inode"),
    "1 KiB, no types in names": ("-b", "1024", "-g", "2048", "-I", "128", "-O", "^filetype,^dir_index"),
    "4 KiB": ("-b", "4096", "-g", "512", "-N", "2048"),
    "4 KiB, a journal": ("-b", "4096", "-g", "1024", "-I", "128", "-O", "has_journal,^resize_inode", "-J", "size=4"),
}
BAD_BLOCK = 3000


class Case:
    """An image and its judges."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.judges = Judges(image)
        self.data = image.read_bytes()
        self.editor = Editor(self.data)
        self.block_size = self.editor.block_size

    async def damage(self, *numbers: int) -> tuple[BlockOwners, LostNames]:
        """Find the owners of damaged blocks."""
        size = self.block_size
        damaged = DamagedRanges()
        for number in sorted(numbers):
            damaged.add(number * size, (number + 1) * size)
        device = MemoryDevice(self.data, [range(part.start, part.end) for part in damaged])
        superblock = await find_superblock(device)
        assert superblock is not None
        blocks = VerifiedBlocks(device, size, damaged)
        owners = BlockOwners(superblock, blocks, damaged)
        await owners.find(lambda count: None)
        names = LostNames(owners, blocks)
        await names.find(lambda count: None)
        return owners, names

    def assert_paths(self, names: LostNames, inode: AffectedInode) -> None:
        """Its paths are those that ncheck knows."""
        found = {os.fsdecode(path) for path in names.paths_of(inode)}
        assert found == self.judges.paths(inode.ino)[inode.ino], inode


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each depth of indirection, attributes, links, symlinks, long directories."""
    root = tmp_path_factory.mktemp("owners") / "tree"
    (root / "deep/er/and/deeper").mkdir(parents=True)
    (root / "many").mkdir()
    dice = random.Random(17)
    (root / "small").write_bytes(b"small")
    (root / "single").write_bytes(dice.randbytes(60 << 10))
    (root / "double").write_bytes(dice.randbytes(700 << 10))
    with (root / "deep/sparse").open("wb") as file:
        for place in (0, 15 << 10, 400 << 10, 60 << 20, 70 << 20, 300 << 20, 4200 << 20, 4300 << 20):
            file.seek(place)
            file.write(dice.randbytes(9000))
    for number in range(300):
        (root / "many" / f"{number:04}-{'n' * 40}").write_bytes(b"x" * (number % 3))
    for number in range(40):
        (root / "many" / f"directory-{number}").mkdir()
        (root / "many" / f"directory-{number}/file").write_bytes(b"in it")
    (root / "deep/er/and/deeper/a b").write_bytes(b"1")
    os.link(root / "single", root / "deep/er/other name")
    os.symlink("x" * 300, root / "deep/long link")
    os.symlink("short", root / "deep/short link")
    os.mkfifo(root / "deep/fifo")
    for name in ("small", "single", "many", "deep/er"):
        os.setxattr(root / name, "user.comment", name.encode() * 20 + bytes(200))
    return root


@pytest.fixture(scope="module")
def make_case(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    directory = tmp_path_factory.mktemp("cases")
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            image = directory / str(len(made))
            bad = directory / "bad"
            bad.write_text(f"{BAD_BLOCK}\n")
            make_image(image, *KINDS[name], "-l", str(bad), size="16M" if "4 KiB" in name else "6M", tree=tree)
            # The attributes' block of one file for another too; e2fsck corrects the counts, and indexes directories.
            number = Editor(image.read_bytes()).get(
                "<I", Editor(image.read_bytes()).inode(inode_of(image, "/small")) + 104
            )
            if number:
                debugfs(image, f"set_inode_field /double file_acl {number}")
            run("e2fsck", "-fyD", image, check=False)
            run("e2fsck", "-fn", image)
            made[name] = Case(image)
        return made[name]

    return make


def inode_of(image: Path, path: str) -> int:
    return int(run("debugfs", "-R", f"stat {path}", image).stdout.split()[1])


def test_the_file_systems_have_everything(make_case: Callable[[str], Case]) -> None:
    """What the other tests are about is there."""
    sharing = indexed = triple = 0
    for name in KINDS:
        case = make_case(name)
        editor = case.editor
        inode = {path: inode_of(case.image, path) for path in ("/small", "/double", "/deep/sparse", "/many")}
        acl = editor.get("<I", editor.inode(inode["/small"]) + 104)
        sharing += bool(acl) and acl == editor.get("<I", editor.inode(inode["/double"]) + 104)
        indexed += bool(editor.get("<I", editor.inode(inode["/many"]) + 32) & 0x1000)
        triple += editor.get("<I", editor.pointer(inode["/deep/sparse"], 14)) > 0
        assert editor.blocks_count > BAD_BLOCK and len(case.judges.map_of(inode["/many"]).data) > 2
    assert sharing >= 2 and indexed >= 3 and triple == len(KINDS)


@pytest.mark.parametrize("name", KINDS)
async def test_all_data_at_once_has_the_owners_that_debugfs_names(name: str, make_case: Callable[[str], Case]) -> None:
    """Every block that is neither in a fixed place, nor an indirect one, nor a directory's."""
    case = make_case(name)
    judges, size = case.judges, case.block_size
    maps = {ino: judges.map_of(ino) for ino in set(judges.owner.values())}
    kinds = dict.fromkeys(maps, "")
    indirect = {number for found in maps.values() for number in found.below}
    directories = {ino for ino in maps if case.editor.get("<H", case.editor.inode(ino)) & 0o170000 == 0o040000}
    kept = {number for number, ino in judges.owner.items() if ino in directories} | indirect | judges.fixed.keys()
    wanted = set(range(1, case.editor.blocks_count)) - kept - {BAD_BLOCK}
    owners, names = await case.damage(*wanted)
    expected: dict[int, set[tuple[int, int]]] = {}
    for ino, found in maps.items():
        places = {place for place, number in found.data.items() if number in wanted}
        expected |= {ino: {(place * size, (place + 1) * size) for place in places}} if places else {}
    with_attributes = {ino for ino in (*kinds,) if case.editor.get("<I", case.editor.inode(ino) + 104) in wanted}
    shared = case.editor.get("<I", case.editor.inode(inode_of(case.image, "/double")) + 104)
    with_attributes |= {inode_of(case.image, "/double")} if shared in wanted else set()
    recorded = owners.affected.recorded
    assert {ino for ino, inode in recorded.items() if any(part.what == DATA for part in inode.parts)} == expected.keys()
    assert {
        ino for ino, inode in recorded.items() if any(part.what == ATTRIBUTES for part in inode.parts)
    } == with_attributes
    for ino, inode in recorded.items():
        assert {part.what for part in inode.parts} <= {DATA, ATTRIBUTES}
        lost = {
            (start, start + size)
            for part in inode.parts
            if part.what == DATA
            for start in range(part.start, part.end, size)
        }
        assert lost == expected.get(ino, set()), inode
        if ino > 10:
            case.assert_paths(names, inode)
    assert owners.free_bytes == len(judges.free & wanted) * size
    assert not owners.unowned and not owners.fixed and owners.is_complete and not owners.has_lost_names


@pytest.mark.parametrize("name", KINDS)
async def test_each_block_in_a_fixed_place_is_what_dumpe2fs_calls_it(
    name: str, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case(name)
    per_block = case.block_size // case.editor.inode_size
    has_lost = 0
    for number, (what, group) in case.judges.fixed.items():
        if what == "superblock":
            # With groups so small, its copies are where no other program looks for them either.
            continue
        owners, names = await case.damage(number)
        (fixed,) = owners.fixed
        assert (fixed.run.what, fixed.run.group, fixed.first, fixed.length) == (what, group, number, 1)
        assert not owners.free_bytes and not owners.unowned and owners.fixed_count == 1
        recorded = owners.affected.recorded
        if what != "inode table" or not fixed.in_use:
            assert not recorded and owners.is_complete
            continue
        assert len(fixed.inodes) == per_block
        if 2 in fixed.inodes:
            # Without the root's inode its names are not found.
            continue
        # What e2fsck misses when these inodes are zeros.
        expected = case.judges.named_without_inode(number, tmp_path)
        for ino, entries in expected.items():
            inode = recorded[ino]
            assert [part.what for part in inode.parts] == [INODE]
            assert {os.fsdecode(entry) for _, entry in inode.names} == entries
            case.assert_paths(names, inode)
            has_lost += 1
        assert {ino for ino, inode in recorded.items() if inode.names} == expected.keys()
    assert has_lost > 200


@pytest.mark.parametrize("name", KINDS)
async def test_each_indirect_block_costs_what_it_leads_to(name: str, make_case: Callable[[str], Case]) -> None:
    case = make_case(name)
    size, seen = case.block_size, 0
    for ino in sorted(set(case.judges.owner.values())):
        found = case.judges.map_of(ino)
        for number, places in found.below.items():
            if number in case.judges.fixed:
                continue
            owners, names = await case.damage(number)
            (inode,) = (inode for inode in owners.affected.recorded.values() if inode.parts[0].what != NAME)
            assert inode.ino == ino and not owners.fixed and not owners.free_bytes and not owners.is_complete
            (part,) = inode.parts
            assert part.what == INDIRECT
            lost = {place for place in found.data if part.start <= place * size < part.end}
            assert lost == places
            if ino > 10:
                case.assert_paths(names, inode)
            seen += 1
    assert seen >= 6


@pytest.mark.parametrize("name", KINDS)
async def test_each_block_of_a_directory_takes_the_names_that_e2fsck_misses(
    name: str, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case(name)
    size, lost_names = case.block_size, 0
    for path in ("/many", "/deep", "/deep/er", "/deep/er/and", "/lost+found"):
        ino = inode_of(case.image, path)
        for place, number in case.judges.map_of(ino).data.items():
            owners, names = await case.damage(number)
            recorded = owners.affected.recorded
            assert [(part.what, part.start, part.end) for part in recorded[ino].parts] == [
                (DATA, place * size, (place + 1) * size)
            ]
            case.assert_paths(names, recorded[ino])
            nameless = {other for other, inode in recorded.items() if any(part.what == NAME for part in inode.parts)}
            unconnected = case.judges.unconnected_without(number, tmp_path)
            assert nameless == unconnected, (path, place)
            lost_names += len(nameless)
            for other in nameless:
                inode = recorded[other]
                assert not inode.names
                shown = [os.fsdecode(found) for found in names.paths_of(inode)]
                assert shown == ([f"{path}/<inode {other}>"] if inode.kind == "directory" else [])
    assert lost_names > 200


@pytest.mark.parametrize("name", KINDS)
async def test_what_is_below_a_directory_without_a_name_is_found_there(
    name: str, make_case: Callable[[str], Case]
) -> None:
    """The block with the name, and the data of a file below."""
    case = make_case(name)
    directory, file = inode_of(case.image, "/many/directory-7"), inode_of(case.image, "/many/directory-7/file")
    many = case.judges.map_of(inode_of(case.image, "/many")).data.values()
    (data,) = case.judges.map_of(file).data.values()
    block = next(
        number for number in many if b"directory-7\0" in case.data[number * case.block_size :][: case.block_size]
    )
    owners, names = await case.damage(block, data)
    assert names.paths_of(owners.affected.recorded[file]) == [b"/many/<inode %d>/file" % directory]


@pytest.mark.parametrize("blocks", [(1,), (1, 2)])
async def test_damaged_superblocks_and_descriptors_are_read_from_their_copies(
    blocks: Sequence[int], tree: Path, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "image", "-b", "1024", size="24M", tree=tree)
    case = Case(image)
    ino = inode_of(image, "/double")
    data = case.judges.map_of(ino).data[300]
    owners, names = await case.damage(*blocks, data)
    assert names.paths_of(owners.affected.recorded[ino]) == [b"/double"]
    assert [fixed.run.what for fixed in owners.fixed] == ["superblock", "group descriptors"][: len(blocks)]
    assert owners.is_complete


async def test_bad_blocks_are_named(make_case: Callable[[str], Case]) -> None:
    case = make_case("1 KiB")
    owners, _ = await case.damage(BAD_BLOCK)
    assert [(inode.ino, inode.kind) for inode in owners.affected.recorded.values()] == [(1, "reserved inode")]
