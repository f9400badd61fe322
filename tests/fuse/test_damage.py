"""Damage: whatever is flipped, cut or swapped, a mount refuses, answers EIO, or is exactly right; never a wrong byte.

Which files a damage may cost is worked out with debugfs: a file is safe as long as no block of its data, its inode, or
the directories above it lies in a damaged block of the hash tree's. Every safe file has to read right.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_in_process import in_process
from tests.support.commands import SBIN, mystfuse, run
from tests.support.mounts import caches_kept, clear_mount, drop_caches

BLOCK = 4096
PER_BLOCK = 128
WALK = r"""
import errno, json, os, sys
root, source, expected = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
found = {}
for path, want in expected.items():
    full, got = os.path.join(root, path), "right"
    try:
        status = os.lstat(full)
        if [status.st_mode, status.st_uid, status.st_gid, status.st_nlink] != want["status"]:
            got = "WRONG status"
        if "target" in want and os.readlink(full) != want["target"]:
            got = "WRONG target"
        if "names" in want and set(os.listdir(full)) - {"lost+found"} != set(want["names"]):
            got = "WRONG names"
        if {name: os.getxattr(full, name, follow_symlinks=False).hex()
            for name in os.listxattr(full, follow_symlinks=False)} != want["xattrs"]:
            got = "WRONG xattrs"
        if "size" in want:
            if status.st_size != want["size"]:
                got = "WRONG size"
            first, position, step = None, 0, 65536
            data = open(os.path.join(source, path), "rb").read()
            with open(full, "rb", buffering=0) as file:
                while position < len(data):
                    try:
                        part = os.pread(file.fileno(), step, position)
                    except OSError as error:
                        # Past what cannot be read, to what can.
                        first = first or error
                        position = position // 4096 * 4096 + 4096
                        continue
                    if not part or part != data[position : position + len(part)]:
                        got = "WRONG bytes at %d" % position
                        break
                    position += len(part)
            if first and got == "right":
                raise first
    except OSError as error:
        # An error excuses what could not be seen, but not what was seen wrong before.
        got = got if got != "right" else errno.errorcode[error.errno]
    found[path] = got
print(json.dumps(found))
"""


def describe(root: Path) -> dict[str, dict[str, Any]]:
    """What a walk has to find, by path."""
    expected: dict[str, dict[str, Any]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        entry: dict[str, Any] = {
            "status": [status.st_mode, status.st_uid, status.st_gid, status.st_nlink],
            "xattrs": {name: os.getxattr(path, name, follow_symlinks=False).hex()
                       for name in os.listxattr(path, follow_symlinks=False)},
        }  # fmt: skip
        if path.is_symlink():
            entry["target"] = os.readlink(path)
        elif path.is_dir():
            entry["names"] = os.listdir(path)
            if path == root:
                entry["status"][3] += 1  # lost+found
        else:
            entry["size"] = status.st_size
        expected[str(path.relative_to(root))] = entry
    return expected


@dataclass(frozen=True)
class Subject:
    """A signed image, and where everything in it is."""

    image: Path
    source: Path
    trust: str
    hash_offset: int
    expected: Path
    """A JSON file: what ``describe`` says of the source."""
    data: dict[str, list[int]] = field(default_factory=dict)
    """path -> the blocks of the tree that its contents and its block map lie in, in the order of the file."""
    inode: dict[str, int] = field(default_factory=dict)
    """path -> the block of the tree that its inode lies in."""

    def level_offset(self, level: int) -> int:
        """Three levels: 20480 data blocks are 160, 2 and 1 hash blocks, the top first behind the superblock."""
        return self.hash_offset + BLOCK * {2: 1, 1: 2, 0: 4}[level]

    def safe(self, damaged: set[int]) -> set[str]:
        """The paths that must read right when these data blocks of the tree are not vouched for."""
        if 0 in damaged:
            return set()
        safe = set()
        for path in self.data:
            chain = [".", *(str(parent) for parent in Path(path).parents if str(parent) != "."), path]
            if all(self.inode[part] not in damaged and damaged.isdisjoint(self.data[part]) for part in chain):
                safe.add(path)
        return safe


@pytest.fixture(scope="module")
def subject(make_keys: Callable[..., tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("damage")
    source, image = directory / "source", directory / "image"
    source.mkdir()
    noise = random.Random(1)
    (source / "big").write_bytes(noise.randbytes(3_000_000))
    (source / "empty").touch()
    for name in ("a", "b", "c/d/e"):
        (source / name).mkdir(parents=True)
    for number in range(20):
        (source / "a" / f"{number}").write_bytes(noise.randbytes(5000 + 300 * number))
    for number in range(250):
        (source / "b" / f"{number} {'x' * 40}").write_bytes(b"%d" % number)
    (source / "c/d/e/deep").write_bytes(noise.randbytes(100_000))
    (source / "c/fast").symlink_to("d/e/deep")
    (source / "c/slow").symlink_to("d/e/" + "y" * 100)
    os.setxattr(source / "empty", "user.note", b"in the inode")
    public, private = make_keys("damage", 2048, 65537)
    assert mystfuse("mkext2", "--size=80M", f"--sign={public}:{private}", source, image).returncode == 0
    fields = dict(line.split("=") for line in mystfuse("fssig", image).stdout.splitlines())
    expected = describe(source)
    (directory / "expected").write_text(json.dumps(expected))
    subject = Subject(image, source, f"--pubkey={public}", int(fields["hash_offset"]), directory / "expected")
    assert subject.hash_offset == 20480 * BLOCK
    requests = "".join(f'blocks "/{path}"\nimap "/{path}"\n' for path in expected)
    (directory / "requests").write_text(requests)
    answers = run("debugfs", "-f", directory / "requests", image).stdout.split("debugfs: blocks ")[1:]
    assert len(answers) == len(expected)
    for path, answer in zip(expected, answers, strict=True):
        _, blocks, *_ = answer.split("\n")
        numbers = [int(number) for number in blocks.split()] if "debugfs:" not in blocks else []
        located = re.search(r"located at block (\d+)", answer)
        assert located
        if "target" in expected[path] and len(expected[path]["target"]) < 60:
            numbers = []
        subject.data[path] = list(dict.fromkeys(number // 4 for number in numbers if number))
        subject.inode[path] = int(located[1]) // 4
    assert len(subject.data["big"]) > 730
    assert len(subject.data["b"]) > 3
    return subject


@dataclass
class Seen:
    """What became of an image: refused with a status, or a word for each path."""

    status: int
    found: dict[str, str] = field(default_factory=dict)
    log: str = ""

    @property
    def failed(self) -> set[str]:
        return {path for path, how in self.found.items() if how != "right"}


def walk(mountpoint: Path, subject: Subject) -> dict[str, str]:
    """Look at everything that there should be; in a process that can be given up, since a hang is a failure."""
    result = run(sys.executable, "-c", WALK, mountpoint, subject.source, subject.expected, timeout=40)
    found: dict[str, str] = json.loads(result.stdout)
    return found


def assert_never_wrong(found: dict[str, str]) -> None:
    for path, how in found.items():
        assert how in ("right", "EIO", "EUCLEAN"), (path, how)


def assert_sound(log: str) -> None:
    assert "Traceback" not in log, log
    assert "internal error" not in log, log


def look(image: Path, subject: Subject, tmp_path: Path, *options: str) -> Seen:
    """Mount an image and look at everything in it. Only what must hold of every image is asserted here."""
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


@pytest.fixture
def copy(subject: Subject, tmp_path: Path) -> Path:
    """A copy of the image, to be damaged."""
    target = tmp_path / "image"
    run("cp", "--sparse=always", subject.image, target)
    return target


def read_at(image: Path, offset: int, length: int) -> bytes:
    with image.open("rb") as file:
        return os.pread(file.fileno(), length, offset)


def write_at(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), data, offset) == len(data)


def flip(image: Path, offset: int, mask: int = 1) -> None:
    write_at(image, offset, bytes([read_at(image, offset, 1)[0] ^ mask]))


def swap(image: Path, first: int, second: int) -> None:
    one, two = read_at(image, first, BLOCK), read_at(image, second, BLOCK)
    assert one != two
    write_at(image, first, two)
    write_at(image, second, one)


def bad_ranges(image: Path, *options: str) -> list[tuple[str, int, int]]:
    """What ``verify`` lists: what, first block of 4096 bytes, number of blocks."""
    result = in_process("verify", "--json", *options, image)
    assert result.returncode == 4, result
    assert re.fullmatch(r"mystfuse: [^\n]+\n", result.stderr), result.stderr
    return [(bad["what"], bad["offset"] // BLOCK, bad["length"] // BLOCK)
            for bad in json.loads(result.stdout)["bad_ranges"]]  # fmt: skip


def check(subject: Subject, image: Path, tmp_path: Path, damaged: set[int]) -> Seen:
    """Mount a damaged image: what is safe reads right, what is not gives an error, or the mount is refused."""
    seen = look(image, subject, tmp_path)
    if not damaged.isdisjoint({0, subject.inode["."]}):
        # Superblock, group descriptors, root inode: there is nothing to show.
        assert seen.status == 4
        return seen
    if seen.status == 4:
        # The root directory's names may be missed at once, or by the first who looks.
        assert not damaged.isdisjoint(subject.data["."])
        return seen
    assert seen.status == 0
    must = subject.safe(damaged)
    assert not seen.failed & must, {path: seen.found[path] for path in seen.failed & must}
    # And what holds damage in itself cannot have been read.
    lost = {path for path, blocks in subject.data.items() if not damaged.isdisjoint(blocks)}
    assert lost <= seen.failed
    return seen


def test_without_damage_everything_reads_right(subject: Subject, tmp_path: Path) -> None:
    seen = look(subject.image, subject, tmp_path)
    assert set(seen.found.values()) == {"right"}
    assert len(seen.found) > 280


# Data


@pytest.mark.parametrize("index", [0, 5, 300, -1])
def test_a_flipped_byte_of_a_file_costs_that_file_alone(
    index: int, subject: Subject, copy: Path, tmp_path: Path
) -> None:
    """A direct block, its indirect blocks' neighbourhood, the middle and the end."""
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
    # The directory is still listed: every name of it, also of the inodes that are lost.
    assert seen.found["b"] == "right"


@pytest.mark.parametrize("where", ["superblock", "group descriptors", "root inode"])
def test_what_everything_depends_on_is_refused(where: str, subject: Subject, copy: Path, tmp_path: Path) -> None:
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


# The tree


@pytest.mark.parametrize(("level", "index"), [(2, 0), (1, 0), (1, 1), (0, 0), (0, 1), (0, 5), (0, 159)])
def test_a_flipped_byte_of_the_tree_costs_what_it_vouched_for(
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
        # What is below a hash block that is wrong cannot be judged, but the data under it are told.
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
    """Of an image whose salt vouches for all of it; what begins otherwise is told by the digests."""
    flip(copy, subject.hash_offset + offset, mask)
    verified = in_process("verify", subject.trust, copy)
    assert verified.returncode == status, verified
    assert "Traceback" not in verified.stderr
    assert verified.stderr.count("\n") == (status != 0)
    seen = look(copy, subject, tmp_path)
    assert seen.status == status
    assert not seen.failed


# The fssig


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


# Truncation


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
    # And with the fssig put back behind what is left, which is what an attacker would do.
    for place in places[3:]:
        os.truncate(copy, place)
        with copy.open("ab") as file:
            file.write(fssig)
        assert in_process("verify", subject.trust, copy).returncode == 6, place


def test_a_hole_in_the_middle_costs_what_was_in_it(subject: Subject, copy: Path, tmp_path: Path) -> None:
    """All of ``big`` gone, as after a disk's trim."""
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


# While it is mounted


@contextlib.contextmanager
def mounted_copy(copy: Path, subject: Subject, tmp_path: Path, *options: str) -> Iterator[Path]:
    """A mount with a log; it has to end in order."""
    mountpoint, log = tmp_path / "mount", tmp_path / "log"
    mountpoint.mkdir()
    try:
        result = mystfuse("mount", f"--log-file={log}", subject.trust, *options, copy, mountpoint)
        assert result.returncode == 0, result.stderr
        yield mountpoint
        assert mystfuse("status", mountpoint).returncode == 0
        assert mystfuse("umount", mountpoint).returncode == 0
    finally:
        clear_mount(mountpoint)
    assert_sound(log.read_text())


def test_changed_in_place_while_mounted(subject: Subject, copy: Path, tmp_path: Path) -> None:
    with caches_kept(), mounted_copy(copy, subject, tmp_path) as mountpoint:
        seen_before = (mountpoint / "a/19").read_bytes()
        damaged = {block for path in ("big", "a/7", "a/19") for block in subject.data[path]}
        before = {block: read_at(copy, block * BLOCK, BLOCK) for block in damaged}
        for block in damaged:
            write_at(copy, block * BLOCK, os.urandom(BLOCK))
        found = walk(mountpoint, subject)
        assert_never_wrong(found)
        assert found["big"] == found["a/7"] == "EIO"
        assert (mountpoint / "a/19").read_bytes() == seen_before, "the kernel had it already"
        safe = subject.safe(damaged)
        assert {path for path in safe if found[path] != "right"} == set()
        status = json.loads(mystfuse("status", "--json", mountpoint).stdout)
        assert status["blocks_failed"] > 0
        # What is put right reads right again.
        for block, data in before.items():
            write_at(copy, block * BLOCK, data)
        assert set(walk(mountpoint, subject).values()) == {"right"}


def test_hash_tree_overwritten_while_mounted(subject: Subject, copy: Path, tmp_path: Path) -> None:
    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        (mountpoint / "empty").read_bytes()
        write_at(copy, subject.level_offset(2), bytes(163 * BLOCK))
        found = walk(mountpoint, subject)
        assert_never_wrong(found)
        assert found["big"] == "EIO"
        # What was verified is remembered: the first hash block of level 0 vouches for all that is in its span.
        early = subject.safe(set(range(PER_BLOCK, 20480)))
        assert {path for path in early if found[path] != "right"} == set()


@pytest.mark.parametrize("how", ["truncated", "truncated and grown", "zeroed"])
def test_cut_short_while_mounted(how: str, subject: Subject, copy: Path, tmp_path: Path) -> None:
    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        (mountpoint / "a/5").read_bytes()
        size = copy.stat().st_size
        os.truncate(copy, 0 if how == "zeroed" else 5000)
        if how != "truncated":
            os.truncate(copy, size)
        drop_caches(1)
        found = walk(mountpoint, subject)
        assert_never_wrong(found)
        assert found["big"] == "EIO"


def test_deleted_or_replaced_while_mounted(subject: Subject, copy: Path, small_image: Path, tmp_path: Path) -> None:
    """The daemon holds the file open: nothing is lost."""
    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        other = tmp_path / "other"
        run("cp", small_image, other)
        os.replace(other, copy)
        (mountpoint / "a/1").read_bytes()
        copy.unlink()
        assert set(walk(mountpoint, subject).values()) == {"right"}


def test_never_a_wrong_byte_while_somebody_keeps_writing(subject: Subject, copy: Path, tmp_path: Path) -> None:
    """The image flips back and forth between right and wrong under four readers."""
    stop = threading.Event()
    used = sorted(
        {block for path, blocks in subject.data.items() if path.startswith(("big", "a/")) for block in blocks}
    )
    original = {block: read_at(copy, block * BLOCK, BLOCK) for block in used}

    def spoil() -> None:
        dice = random.Random(5)
        with copy.open("r+b", buffering=0) as file:
            while not stop.is_set():
                block = dice.choice(used)
                os.pwrite(file.fileno(), dice.randbytes(BLOCK), block * BLOCK)
                os.pwrite(file.fileno(), original[block], block * BLOCK)

    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        writer = threading.Thread(target=spoil)
        writer.start()
        results = 0
        try:
            for _ in range(3):
                walkers = [
                    subprocess.Popen(
                        [sys.executable, "-c", WALK, mountpoint, subject.source, subject.expected],
                        stdout=subprocess.PIPE,
                    )
                    for _ in range(3)
                ]
                for walker in walkers:
                    try:
                        output, _ = walker.communicate(timeout=40)
                    finally:
                        walker.kill()
                    assert_never_wrong(json.loads(output))
                    results += 1
                drop_caches(1)
        finally:
            stop.set()
            writer.join()
        assert results == 9
        assert set(walk(mountpoint, subject).values()) == {"right"}


# --on-corruption=unmount


def test_on_corruption_unmount_ends_the_mount_and_the_daemon(subject: Subject, copy: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    flip(copy, subject.data["big"][300] * BLOCK)
    read_end, write_end = os.pipe()
    options = ("-f", f"--ready-fd={write_end}", subject.trust, "--on-corruption=unmount")
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mount", *options, copy, mountpoint],
        env={**os.environ, "PATH": SBIN},
        pass_fds=[write_end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        os.close(write_end)
        assert select.select([read_end], [], [], 20)[0]
        assert os.read(read_end, 100) == b"ready\n"
        assert (mountpoint / "a/3").read_bytes() == (subject.source / "a/3").read_bytes()
        with pytest.raises(OSError, match=r"Input/output error|not connected|connection abort"):
            (mountpoint / "big").read_bytes()
        _, error = process.communicate(timeout=20)
        assert process.returncode == 4
        assert "unmounting because of damage" in error
        assert_sound(error)
        assert not os.path.ismount(mountpoint)
        assert not list(mountpoint.iterdir())
    finally:
        os.close(read_end)
        if process.poll() is None:
            process.kill()
            process.communicate()
        clear_mount(mountpoint)


def test_on_corruption_unmount_as_a_daemon(subject: Subject, copy: Path, tmp_path: Path) -> None:
    mountpoint, log = tmp_path / "mount", tmp_path / "log"
    mountpoint.mkdir()
    flip(copy, subject.data["c/d/e/deep"][20] * BLOCK)
    try:
        result = mystfuse("mount", "-o", "on_corruption=unmount", f"--log-file={log}", subject.trust, copy, mountpoint)
        assert result.returncode == 0
        pid = json.loads(mystfuse("status", "--json", mountpoint).stdout)["pid"]
        run("cat", mountpoint / "c/d/e/deep", check=False, timeout=20)
        deadline = time.monotonic() + 15
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()
        assert not os.path.ismount(mountpoint)
        assert "unmounting because of damage" in log.read_text()
        assert_sound(log.read_text())
    finally:
        clear_mount(mountpoint)
