"""Damaged images: exactly the damaged parts give errors, everything else reads right, and no read gives a wrong
byte."""

from __future__ import annotations

import json
import os
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import mystfuse, run
from tests.support.damaged_images import (
    BLOCK,
    PER_BLOCK,
    Subject,
    assert_never_wrong,
    assert_sound,
    flip,
    read_at,
    walk,
    write_at,
)
from tests.support.mounts import clear_mount


@dataclass
class Seen:
    """The outcome for an image: refused with a status, or one word for each path."""

    status: int
    found: dict[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def failed(self) -> set[str]:
        return {path for path, how in self.found.items() if how != "right"}


def look(image: Path, subject: Subject, tmp_path: Path, *options: str) -> Seen:
    """Mount an image and read everything in it; asserts only what holds for every image."""
    mountpoint, log = tmp_path / "mount", tmp_path / "log"
    mountpoint.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    try:
        result = mystfuse("mount", f"--log-file={log}", *(options or (subject.trust,)), image, mountpoint, timeout=30)
        seen = Seen(result.returncode)
        if result.returncode:
            assert result.returncode in (3, 4, 6), result
            assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
            assert not os.path.ismount(mountpoint)
        else:
            seen.found = walk(mountpoint, subject)
            assert_never_wrong(seen.found)
    finally:
        clear_mount(mountpoint)
    seen.log = log.read_text() if log.exists() else ""
    assert_sound(seen.log)
    return seen


def swap(image: Path, first: int, second: int) -> None:
    one, two = read_at(image, first, BLOCK), read_at(image, second, BLOCK)
    assert one != two
    write_at(image, first, two)
    write_at(image, second, one)


def bad_ranges(image: Path, *options: str) -> list[tuple[str, int, int]]:
    """Each line of ``verify``: the kind, the first block of 4096 bytes, the number of blocks."""
    result = in_process("verify", "--json", *options, image)
    assert result.returncode == 4, result
    assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
    return [(bad["what"], bad["offset"] // BLOCK, bad["length"] // BLOCK)
            for bad in json.loads(result.stdout)["bad_ranges"]]  # fmt: skip


def check(subject: Subject, image: Path, tmp_path: Path, damaged: set[int]) -> Seen:
    """Mount a damaged image: undamaged parts read right, damaged ones give an error, or the mount is refused."""
    seen = look(image, subject, tmp_path)
    if not damaged.isdisjoint({0, subject.inode["."]}):
        # Superblock, group descriptors, root inode: without them there is no mount.
        assert seen.status == 4
        return seen
    if seen.status == 4:
        # The daemon may miss the root directory's names at once, or when a program lists it first.
        assert not damaged.isdisjoint(subject.data["."])
        return seen
    assert seen.status == 0
    must = subject.safe(damaged)
    assert not seen.failed & must, {path: seen.found[path] for path in seen.failed & must}
    # And no path that contains damage itself can have been read.
    lost = {path for path, blocks in subject.data.items() if not damaged.isdisjoint(blocks)}
    assert lost <= seen.failed
    return seen


def test_without_damage_everything_reads_right(subject: Subject, tmp_path: Path) -> None:
    seen = look(subject.image, subject, tmp_path)
    assert set(seen.found.values()) == {"right"}
    assert len(seen.found) > 280


@pytest.mark.parametrize("index", [0, 5, 300, -1])
def test_a_flipped_byte_of_a_file_costs_that_file_alone(
    index: int, subject: Subject, copy: Path, tmp_path: Path
) -> None:
    """A direct block, blocks beside its indirect blocks, the middle and the end."""
    block = subject.data["big"][index]
    flip(copy, block * BLOCK + 3000)
    assert bad_ranges(copy, subject.trust) == [("data", block, 1)]
    seen = check(subject, copy, tmp_path, {block})
    assert "big" in seen.failed
    assert f"data block {block} " in seen.log


def test_all_other_pages_of_a_damaged_file_read_right(subject: Subject, copy: Path, tmp_path: Path) -> None:
    content = (subject.source / "big").read_bytes()
    block = subject.data["big"][400]
    stored = read_at(copy, block * BLOCK, BLOCK)
    flip(copy, block * BLOCK)
    holds = {content.find(stored[start : start + 1024]) // BLOCK for start in range(0, BLOCK, 1024)} - {-1}
    assert 1 <= len(holds) <= 2
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    failed = set()
    try:
        assert mystfuse("mount", subject.trust, copy, mountpoint).returncode == 0
        descriptor = os.open(mountpoint / "big", os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            for page in range(-(-len(content) // BLOCK)):
                try:
                    data = os.pread(descriptor, BLOCK, page * BLOCK)
                except OSError:
                    failed.add(page)
                else:
                    assert data == content[page * BLOCK : (page + 1) * BLOCK]
        finally:
            os.close(descriptor)
    finally:
        clear_mount(mountpoint)
    assert failed == holds


def test_a_flipped_byte_of_a_directory_costs_what_is_below(subject: Subject, copy: Path, tmp_path: Path) -> None:
    block = subject.data["b"][1]
    flip(copy, block * BLOCK + 40)
    assert bad_ranges(copy, subject.trust) == [("data", block, 1)]
    seen = check(subject, copy, tmp_path, {block})
    assert "b" in seen.failed
    assert {"big", "empty", "a/3", "c/d/e/deep", "c/slow"} & seen.failed <= {"c/slow"}


def test_a_flipped_byte_of_the_inode_table_costs_its_inodes(subject: Subject, copy: Path, tmp_path: Path) -> None:
    victim = next(path for path in subject.inode if path.startswith("b/") and subject.inode[path] != subject.inode["b"])
    block = subject.inode[victim]
    flip(copy, block * BLOCK + 132)
    assert bad_ranges(copy, subject.trust) == [("data", block, 1)]
    seen = check(subject, copy, tmp_path, {block})
    assert victim in seen.failed
    assert len(seen.failed) <= BLOCK // 128
    # A listing still has every name of the directory, including those of lost inodes.
    assert seen.found["b"] == "right"


@pytest.mark.parametrize("where", ["superblock", "group descriptors", "root inode"])
def test_damage_to_essential_metadata_refuses_the_mount(
    where: str, subject: Subject, copy: Path, tmp_path: Path
) -> None:
    offset = {"superblock": 1024 + 24, "group descriptors": 2048 + 9, "root inode": subject.inode["."] * BLOCK + 200}
    flip(copy, offset[where])
    assert bad_ranges(copy, subject.trust) == [("data", offset[where] // BLOCK, 1)]
    assert check(subject, copy, tmp_path, {offset[where] // BLOCK}).status == 4


def test_damage_that_no_file_needs_costs_nothing_but_verify_sees_it(
    subject: Subject, copy: Path, tmp_path: Path
) -> None:
    """A free block, the last block, and the backup superblock."""
    for offset in (8193 * 1024 + 100, 18_000 * BLOCK, subject.hash_offset - 1):
        flip(copy, offset)
    damaged = {8193 * 1024 // BLOCK, 18_000, 20_479}
    assert bad_ranges(copy, subject.trust) == [("data", block, 1) for block in sorted(damaged)]
    assert not check(subject, copy, tmp_path, damaged).failed


@pytest.mark.parametrize(("level", "index"), [(2, 0), (1, 0), (1, 1), (0, 0), (0, 1), (0, 5), (0, 159)])
def test_a_flipped_byte_of_the_tree_costs_the_blocks_below_it(
    level: int, index: int, subject: Subject, copy: Path, tmp_path: Path
) -> None:
    offset = subject.level_offset(level) + index * BLOCK
    flip(copy, offset + 33, 0x80)
    span = PER_BLOCK ** (level + 1)
    first, count = index * span, min(span, 20480 - index * span)
    assert bad_ranges(copy, subject.trust) == [
        (f"hash tree level {level}", offset // BLOCK, 1),
        ("data under a bad hash block", first, count),
    ]
    check(subject, copy, tmp_path, set(range(first, first + count)))


@pytest.mark.parametrize("what", ["data", "hash", "hash of two levels", "data and hash"])
def test_swapped_blocks_are_both_found(what: str, subject: Subject, copy: Path, tmp_path: Path) -> None:
    level0, level1, big = subject.level_offset(0), subject.level_offset(1), subject.data["big"]
    one, two = {
        "data": (big[100] * BLOCK, big[500] * BLOCK),
        "hash": (level0 + 2 * BLOCK, level0 + 4 * BLOCK),
        "hash of two levels": (level0 + 2 * BLOCK, level1 + BLOCK),
        "data and hash": (big[100] * BLOCK, level0 + 159 * BLOCK),
    }[what]
    swap(copy, one, two)
    ranges = bad_ranges(copy, subject.trust)
    seen = {first + each for _, first, count in ranges for each in range(count)}
    if what != "hash of two levels":
        assert {one // BLOCK, two // BLOCK} <= seen
    else:
        # Blocks below a wrong hash block have no trusted digest, but verify lists the data under it.
        assert two // BLOCK in seen
        assert ("data under a bad hash block", PER_BLOCK * PER_BLOCK, 20480 - PER_BLOCK * PER_BLOCK) in ranges
    damaged = {first + each for kind, first, count in ranges if kind.startswith("data") for each in range(count)}
    check(subject, copy, tmp_path, damaged)


@pytest.mark.parametrize(
    ("name", "offset", "mask", "status"),
    [
        ("signature", 3, 1, 6),
        ("version", 8, 2, 6),
        ("hash_type 0", 12, 1, 6),
        ("hash_type 3", 12, 2, 6),
        ("uuid", 16, 1, 6),
        ("algorithm", 33, 1, 6),
        ("algorithm's padding", 50, 1, 6),
        ("data_block_size", 65, 0x30, 6),
        ("hash_block_size", 69, 0x30, 6),
        ("hash_block_size, not a power", 69, 1, 6),
        ("hash_block_size, too large", 71, 1, 6),
        ("data_blocks", 72, 1, 6),
        ("data_blocks, huge", 79, 0x80, 6),
        ("salt_size", 80, 1, 6),
        ("salt_size, too large", 81, 2, 6),
        ("padding", 84, 1, 6),
        ("salt", 88, 1, 4),
        ("salt's end", 119, 0x80, 6),
        ("behind the salt", 120, 1, 6),
        ("last padding", 511, 1, 6),
        ("behind the superblock", 4095, 1, 0),
    ],
)
def test_each_field_of_the_verity_superblock(
    name: str, offset: int, mask: int, status: int, subject: Subject, copy: Path, tmp_path: Path
) -> None:
    """The salt covers all of this image's superblock; the digests show other changes."""
    flip(copy, subject.hash_offset + offset, mask)
    verified = in_process("verify", subject.trust, copy)
    assert verified.returncode == status, verified
    assert "Traceback" not in verified.stderr
    assert verified.stderr.count("\n") == (status != 0)
    seen = look(copy, subject, tmp_path)
    assert seen.status == status
    assert not seen.failed


@pytest.mark.parametrize(
    ("name", "offset", "mask", "status", "with_self_trust"),
    [
        ("magic", 7, 1, 6, 6),
        ("version", 8, 2, 6, 6),
        ("hash_offset", 17, 0x10, 6, 6),
        ("hash_offset, huge", 23, 0x80, 6, 6),
        ("root_hash", 24, 1, 3, 4),
        ("root_hash's end", 55, 0x80, 3, 4),
        ("signer", 56, 1, 3, 0),
        ("signature", 88, 1, 3, 0),
        ("signature's end", 343, 1, 3, 0),
        ("behind the signature", 344, 1, 0, 0),
        ("signature_size", 1112, 1, 3, 0),
        ("signature_size 2^63", 1119, 0x80, 6, 6),
        ("padding", 1120, 1, 0, 0),
        ("last byte", 4095, 1, 0, 0),
    ],
)
def test_each_field_of_the_fssig(
    name: str, offset: int, mask: int, status: int, with_self_trust: int, subject: Subject, copy: Path, tmp_path: Path
) -> None:
    flip(copy, copy.stat().st_size - 4096 + offset, mask)
    result = in_process("verify", subject.trust, copy)
    assert result.returncode == status, result
    assert result.stderr.count("\n") == (status != 0)
    seen = look(copy, subject, tmp_path)
    assert seen.status == status
    assert not seen.failed
    result = in_process("verify", copy)
    assert result.returncode == with_self_trust, result
    assert "Traceback" not in result.stderr


def test_truncated_at_ten_places_it_is_refused(subject: Subject, copy: Path, tmp_path: Path) -> None:
    size, end = copy.stat().st_size, subject.hash_offset
    fssig = read_at(copy, size - 4096, 4096)
    places = (size - 1, size - 4095, size - 4096, size - 8192, end + 8192, end + 512, end + 100, end, 1 << 20, 4096, 0)
    for place in places:
        os.truncate(copy, place)
        assert look(copy, subject, tmp_path).status == 6, place
        for options in ((subject.trust,), ()):
            result = in_process("verify", *options, copy)
            assert result.returncode == 6, place
            assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
    # The same with the fssig put behind the rest, as an attacker would do.
    for place in places[3:]:
        os.truncate(copy, place)
        with copy.open("ab") as file:
            file.write(fssig)
        assert in_process("verify", subject.trust, copy).returncode == 6, place


def test_a_hole_in_the_middle_costs_what_was_in_it(subject: Subject, copy: Path, tmp_path: Path) -> None:
    """All of ``big`` has become a hole, as after a disk's trim."""
    blocks = subject.data["big"]
    run("fallocate", "--punch-hole", f"--offset={blocks[1] * BLOCK}", f"--length={200 * BLOCK}", copy)
    damaged = set(range(blocks[1], blocks[1] + 200))
    assert bad_ranges(copy, subject.trust) == [("data", blocks[1], 200)]
    assert "big" in check(subject, copy, tmp_path, damaged).failed


@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_random_flips(seed: int, subject: Subject, copy: Path, tmp_path: Path) -> None:
    """Anywhere behind the first blocks: the same rules, and verify finds them all."""
    dice = random.Random(seed)
    used = sorted({block for blocks in subject.data.values() for block in blocks} - {0, subject.inode["."]})
    damaged = {dice.choice(used) for _ in range(60)} | {dice.randrange(600, 20480) for _ in range(40)}
    damaged -= {*subject.data["."], subject.inode["."]}
    for block in damaged:
        flip(copy, block * BLOCK + dice.randrange(BLOCK), 1 << dice.randrange(8))
    listed = bad_ranges(copy, subject.trust)
    assert {first + each for _, first, count in listed for each in range(count)} == damaged
    assert check(subject, copy, tmp_path, damaged).failed
