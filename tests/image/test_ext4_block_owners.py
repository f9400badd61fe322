"""Owners of the blocks of ext4 file systems, as debugfs, dumpe2fs and e2fsck know them: by feature set."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.image.affected import ATTRIBUTES, DATA, EXTENT_BLOCK, INODE, NAME, AffectedInode
from mystfuse.image.lost_names import LostNames
from tests.image.test_block_owners import Case
from tests.support.commands import run
from tests.support.ext4_images import make_populated

KINDS: dict[str, tuple[str, ...]] = {
    "ext4": ("-t", "ext4", "-b", "4096"),
    "flex_bg, 1 KiB": ("-t", "ext4", "-b", "1024", "-g", "2048", "-G", "4", "-I", "256"),
    "meta_bg": ("-t", "ext4", "-O", "meta_bg,^resize_inode,^has_journal", "-b", "1024", "-g", "1024"),
    "sparse_super2": ("-t", "ext4", "-O", "sparse_super2,^resize_inode,orphan_file", "-b", "1024"),
    "bigalloc": ("-t", "ext4", "-O", "bigalloc,^resize_inode", "-b", "1024", "-C", "4096"),
    "inline data": ("-t", "ext4", "-O", "inline_data,ea_inode", "-I", "512", "-b", "1024"),
    "uninit_bg": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg,^64bit", "-b", "1024"),
}

SOME = [
    pytest.param(name, marks=() if name in ("flex_bg, 1 KiB", "inline data") else pytest.mark.slow) for name in KINDS
]


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    directory = tmp_path_factory.mktemp("ext4 owners")
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            made[name] = Case(make_populated(directory / str(len(made)), directory / "mount", *KINDS[name], size="40M"))
        return made[name]

    return make


def assert_paths(case: Case, names: LostNames, inode: AffectedInode) -> None:
    """Its paths are those that ncheck knows, or some of very many."""
    if inode.names_left_out:
        assert {os.fsdecode(path) for path in names.paths_of(inode)} < case.judges.paths(inode.ino)[inode.ino]
    else:
        case.assert_paths(names, inode)


@pytest.mark.parametrize("name", SOME)
async def test_data_are_found_by_extents(name: str, make_case: Callable[[str], Case]) -> None:
    """Many blocks at a time, of all files."""
    case = make_case(name)
    dice, size = random.Random(3), case.block_size
    expected: dict[int, set[int]] = {}
    numbers: list[int] = []
    spare = 0
    files = sorted(ino for ino in set(case.judges.owner.values()) if ino >= 12 and case.judges.paths(ino)[ino])
    for ino in files:
        found = case.judges.map_of(ino)
        end = -(-case.judges.size_of(ino) // size)
        if case.judges.is_directory(ino):
            continue
        for place in dice.sample(sorted(found.data), min(len(found.data), 7)):
            numbers.append(found.data[place])
            if place in found.unwritten or place >= end:
                spare += size
            else:
                expected.setdefault(ino, set()).add(place)
    owners, names = await case.damage(*numbers)
    recorded = owners.affected.recorded
    assert recorded.keys() == expected.keys() and len(expected) > 5
    for ino, inode in recorded.items():
        places = {place for part in inode.parts for place in range(part.start // size, -(-part.end // size))}
        assert places == expected[ino] and {part.what for part in inode.parts} == {DATA}
        assert_paths(case, names, inode)
    assert owners.is_complete and not owners.fixed and not owners.unowned
    assert spare <= owners.spare_bytes < spare + size * len(expected)


@pytest.mark.parametrize("name", SOME)
async def test_each_extent_block_costs_what_it_leads_to(name: str, make_case: Callable[[str], Case]) -> None:
    case, seen = make_case(name), 0
    for ino in sorted(set(case.judges.owner.values())):
        found = case.judges.map_of(ino)
        for number, places in sorted(found.below.items())[:6]:
            if ino == 7 or number in case.judges.fixed:
                continue
            owners, names = await case.damage(number)
            (inode,) = (inode for inode in owners.affected.recorded.values() if inode.parts[0].what != NAME)
            (part,) = inode.parts
            assert (inode.ino, part.what) == (ino, EXTENT_BLOCK) and not owners.is_complete
            lost = {place for place in found.data if part.start <= place * case.block_size < part.end}
            end = -(-case.judges.size_of(ino) // case.block_size)
            assert lost == {place for place in places if place < end}
            assert_paths(case, names, inode)
            seen += 1
    assert seen >= 3


@pytest.mark.parametrize("name", SOME)
async def test_metadata_is_named_wherever_it_is(name: str, make_case: Callable[[str], Case]) -> None:
    case = make_case(name)
    dice = random.Random(5)
    by_kind: dict[str, list[int]] = {}
    for number, (what, _) in case.judges.fixed.items():
        # Without the superblock, copies are looked for where groups of the usual size have them.
        if what != "superblock":
            by_kind.setdefault(what, []).append(number)
    for what, numbers in by_kind.items():
        for number in dice.sample(sorted(numbers), min(len(numbers), 8)):
            owners, _ = await case.damage(number)
            (fixed,) = owners.fixed
            group = case.judges.fixed[number][1]
            assert (fixed.run.what, fixed.run.group, fixed.first, fixed.length) == (what, group, number, 1)
            assert not owners.free_bytes and not owners.unowned_bytes
            if what == "group descriptors" and "backup group descriptors" not in by_kind:
                assert not owners.is_complete
            elif what != "inode table" or fixed.in_use == 0:
                assert owners.is_complete and not owners.affected.recorded


@pytest.mark.parametrize("name", SOME)
async def test_lost_inodes_have_their_names(name: str, make_case: Callable[[str], Case], tmp_path: Path) -> None:
    case, seen = make_case(name), 0
    tables = [number for number, (what, group) in case.judges.fixed.items() if what == "inode table" and group == 0]
    for number in sorted(tables)[1:12]:
        owners, _ = await case.damage(number)
        found = {
            ino: {name.decode() for _, name in inode.names}
            for ino, inode in owners.affected.recorded.items()
            if inode.parts[0].what == INODE
        }
        expected = case.judges.named_without_inode(number, tmp_path)
        assert found.keys() == expected.keys()
        # Of very many names some are recorded.
        assert all(
            names == expected[ino] or (len(names) == 8 and names < expected[ino]) for ino, names in found.items()
        )
        seen += len(found)
    assert seen > 5


@pytest.mark.parametrize("name", SOME)
async def test_free_blocks_and_others(name: str, make_case: Callable[[str], Case]) -> None:
    case = make_case(name)
    free = random.Random(7).sample(sorted(case.judges.free), 60)
    owners, _ = await case.damage(*free)
    assert owners.free_bytes == len(free) * case.block_size
    assert not owners.unowned and not owners.affected.recorded and not owners.fixed
    attributes = 0
    for ino in sorted(set(case.judges.owner.values())):
        found = case.judges.map_of(ino)
        others = {number for number, owner in case.judges.owner.items() if owner == ino} - case.judges.fixed.keys()
        others -= found.below.keys() | set(found.data.values())
        for number in sorted(others)[:1]:
            owners, _ = await case.damage(number)
            assert {part.what for part in owners.affected.recorded[ino].parts} == {ATTRIBUTES}
            attributes += 1
    assert attributes
    if "has_journal" in owners.superblock.features:
        journal = [number for number, ino in case.judges.owner.items() if ino == 8]
        owners, _ = await case.damage(*journal[5:50])
        (inode,) = owners.affected.recorded.values()
        assert (inode.ino, inode.kind) == (8, "reserved inode")


@pytest.mark.parametrize("name", ["flex_bg, 1 KiB", "inline data"])
async def test_each_block_of_a_directory_takes_the_names_that_e2fsck_misses(
    name: str, make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case, lost = make_case(name), 0
    for path in ("directories", "middling"):
        ino = case.judges.ino_of(path)
        for number in case.judges.map_of(ino).data.values():
            owners, _ = await case.damage(number)
            nameless = {
                other
                for other, inode in owners.affected.recorded.items()
                if any(part.what == NAME for part in inode.parts)
            }
            assert nameless == case.judges.unconnected_without(number, tmp_path)
            lost += len(nameless)
    assert lost > 50


@pytest.mark.parametrize("name", ["flex_bg, 1 KiB", pytest.param("meta_bg", marks=pytest.mark.slow)])
async def test_damaged_descriptors_are_read_from_their_copies(name: str, make_case: Callable[[str], Case]) -> None:
    case = make_case(name)
    damaged = [number for number, (what, _) in case.judges.fixed.items() if what == "group descriptors"]
    ino = case.judges.ino_of("file 3000000")
    data = case.judges.map_of(ino).data[300]
    owners, names = await case.damage(*damaged, data)
    assert names.paths_of(owners.affected.recorded[ino]) == [b"/file 3000000"]
    assert owners.is_complete


async def test_a_value_of_an_attribute_is_no_file_without_a_name(make_case: Callable[[str], Case]) -> None:
    case = make_case("inline data")
    values = [
        ino
        for ino in set(case.judges.owner.values())
        if ino >= 12 and "Flags: 0x280000" in case.judges.debugfs(f"stat <{ino}>")
    ]
    assert values
    directory = case.judges.map_of(case.judges.ino_of("directories")).data[0]
    data = case.judges.map_of(values[0]).data[0]
    owners, _ = await case.damage(directory, data)
    assert owners.affected.recorded[values[0]].kind == "attribute value"
    assert [part.what for part in owners.affected.recorded[values[0]].parts] == [DATA]
    assert not set(values[1:]) & owners.affected.recorded.keys()


async def test_the_block_of_multiple_mount_protection_is_named(tmp_path: Path) -> None:
    image = tmp_path / "image"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "mmp", image, "8M")
    match = re.search(r"mmp_block: (\d+)|MMP block number: +(\d+)", run("dumpe2fs", "-h", image).stdout)
    assert match
    number = int(match[1] or match[2])
    owners, _ = await Case(image).damage(number)
    (fixed,) = owners.fixed
    assert (fixed.run.what, fixed.first) == ("multiple mount protection", number) and owners.is_complete
