"""What e2fsprogs says about the blocks of a file system: who has them, and what is lost without them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.commands import run
from tests.support.ext2_editor import Editor

_FIXED = {
    "Primary superblock": "superblock",
    "Backup superblock": "backup superblock",
    "Group descriptors": "group descriptors",
    "Group descriptor": "group descriptors",
    "Reserved GDT blocks": "reserved group descriptors",
    "Block bitmap": "block bitmap",
    "Inode bitmap": "inode bitmap",
    "Inode table": "inode table",
}


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


@dataclass
class Map:
    """An inode's blocks as debugfs's ``stat`` lists them."""

    data: dict[int, int] = field(default_factory=dict)
    """Block number by place in the file."""
    below: dict[int, set[int]] = field(default_factory=dict)
    """Of each indirect or extent block, the places in the file that it leads to."""
    unwritten: set[int] = field(default_factory=set)
    """Places in the file whose blocks are allocated, and read as zeros."""


class Judges:
    """The judges' answers about an image."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.fixed: dict[int, tuple[str, int]] = {}
        """By block: what it holds, and its group."""
        self.free: set[int] = set()
        sizes: list[int] = []
        group, per_block = -1, 0
        for line in run("dumpe2fs", image).stdout.splitlines():
            if match := re.match(r"(?:Block size|Group descriptor size): +(\d+)", line):
                sizes.append(int(match[1]))
                per_block = sizes[0] // (sizes[1:] or [32])[0]
            if match := re.match(r"Group (\d+):", line):
                group = int(match[1])
            elif group >= 0:
                for name, blocks in re.findall(r"(\w[\w ]*?) at ([\d-]+)", line):
                    what = _FIXED[name]
                    if what == "group descriptors" and group and not (name[-1] == "r" and group % per_block == 0):
                        what = "backup " + what
                    self.fixed.update(dict.fromkeys(_numbers(blocks), (what, group)))
                if match := re.match(r"\s+Free blocks: (.*)", line):
                    for part in filter(None, match[1].split(", ")):
                        self.free.update(_numbers(part))
        blocks_count = Editor(image.read_bytes()).blocks_count
        asked = [number for number in range(blocks_count) if number not in self.fixed]
        self.owner = {
            int(number): int(ino)
            for number, ino in re.findall(r"^(\d+)\t(\d+)$", self._ask("icheck", asked), re.MULTILINE)
        }
        """By block: its inode, indirect blocks and attributes included."""
        self._paths: dict[int, set[str]] = {}

    def debugfs(self, *commands: str) -> str:
        result = run("debugfs", "-f", "/dev/stdin", self.image, input="\n".join(commands) + "\n", check=False)
        return result.stdout

    def _ask(self, command: str, numbers: Sequence[int]) -> str:
        # Its lines may be 8 KiB long.
        steps = range(0, len(numbers), 500)
        return self.debugfs(*(f"{command} {' '.join(map(str, numbers[start : start + 500]))}" for start in steps))

    def paths(self, *inos: int) -> dict[int, set[str]]:
        """The paths of inodes."""
        missing = [ino for ino in inos if ino not in self._paths]
        if missing:
            self._paths |= {ino: set() for ino in missing}
            for ino, path in re.findall(r"^(\d+)\t(.*)$", self._ask("ncheck", missing), re.MULTILINE):
                self._paths[int(ino)].add(re.sub("^//", "/", path) or "/")
        return {ino: self._paths[ino] for ino in inos}

    def ino_of(self, path: str) -> int:
        """The inode of a path from the root on."""
        return int(self._said_of(f'"/{path}"', r"Inode: (\d+)"))

    def size_of(self, ino: int) -> int:
        """Bytes of an inode."""
        return int(self._said_of(f"<{ino}>", r"Size: (\d+)"))

    def is_directory(self, ino: int) -> bool:
        """Whether an inode is a directory's."""
        return self._said_of(f"<{ino}>", r"Type: (\w+)") == "directory"

    def _said_of(self, inode: str, pattern: str) -> str:
        match = re.search(pattern, self.debugfs(f"stat {inode}"))
        assert match
        return match[1]

    def map_of(self, ino: int) -> Map:
        """Where an inode's blocks are."""
        said = self.debugfs(f"stat <{ino}>")
        found, open_blocks = Map(), dict[int, int]()
        text = re.split("(?:BLOCKS|EXTENTS):\n", said + "BLOCKS:\n")[1].partition("\nTOTAL")[0]
        for place, number in re.findall(r"\(([^)]+)\):([\d-]+)", text):
            level = {"IND": 1, "DIND": 2, "TIND": 3}.get(place)
            if place.startswith("ETB"):
                # The root's entries are on level 0.
                level = 10 - int(place[3:])
            blocks = _numbers(number)
            if level:
                open_blocks = {other: block for other, block in open_blocks.items() if other > level}
                open_blocks[level] = blocks.start
                found.below[blocks.start] = set()
                continue
            places = _numbers(place.replace("[u]", ""))
            if "[u]" in place:
                found.unwritten.update(places)
            found.data.update(zip(places, blocks, strict=True))
            for block in open_blocks.values():
                found.below[block].update(places)
        return found

    def _checked_without(self, number: int, directory: Path) -> str:
        """What e2fsck says about a copy in which a block is zeros."""
        copy = directory / "without"
        shutil.copyfile(self.image, copy)
        size = Editor(self.image.read_bytes()).block_size
        with copy.open("r+b") as file:
            file.seek(number * size)
            file.write(bytes(size))
        return run("e2fsck", "-fy", copy, check=False).stdout

    def unconnected_without(self, number: int, directory: Path) -> set[int]:
        """The inodes that nothing names when a directory's block is zeros."""
        said = self._checked_without(number, directory)
        return {
            int(ino) for ino in re.findall(r"Un(?:connected directory|attached(?: zero-length)?) inode (\d+)", said)
        }

    def named_without_inode(self, number: int, directory: Path) -> dict[int, set[str]]:
        """The inodes that are named, and not there, when a block of an inode table is zeros: with the last parts of
        their paths."""
        found: dict[int, set[str]] = {}
        said = self._checked_without(number, directory)
        for name, ino in re.findall(
            r"^Entry '(.*)' in .* \(\d+\) has deleted/unused inode (\d+)\.", said, re.MULTILINE
        ):
            if name != "..":
                found.setdefault(int(ino), set()).add(name)
        return found
