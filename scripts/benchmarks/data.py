"""The files to measure with: made once, from a seed, and kept for the next run.

Each ``Item`` is a directory whose name ends in a hash of its recipe, with its facts in ``facts.json``. Items of other
recipes are left alone until ``--clean``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from removal import remove_tree

from benchmarks.programs import IMPORTS, copy_library, make_repository
from benchmarks.reader import MIB, Result, checksum
from benchmarks.tools import check_installed, drop_caches, mystfuse_command, run

GIB = 1 << 30
SEED = 2026
BLOCK_SIZE = 4096
"""The size in bytes; mke2fs gives small images smaller blocks than large ones."""
NAMES_A_DIRECTORY = 100
EVERY_NTH = 5
"""Every nth file of a tree is read."""
MEAN_SIZE = 6000
"""The mean size of a tree's files in bytes; sizes are exponentially distributed."""
MAX_SIZE = 256 << 10
Say = Callable[[str], None]
_NAMES = ("big", "secret", "tree", "repository", "python", "root", "empty", "sparse", "flat", "scratch")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The amounts to measure with. Sizes are bytes."""

    big: int = 1 << 30
    """The large file."""
    names: int = 1000
    """Small files beside it, for first look-ups."""
    tree: int = 50_000
    """Entries of the tree, directories included."""
    untarred: int = 5000
    """The approximate number of files in the archive."""
    repository: int = 5000
    """Files and directories of the git checkout."""
    created: int = 20_000
    written: int = 1 << 30
    small_writes: int = 5000
    random_reads: int = 2000
    mounts: int = 10
    root: int = 1 << 30
    """The image of a Debian system, about."""
    hosts: int = 64
    """Mounts at once of one image elsewhere."""
    large_image: int = 64 << 30
    rounds: int = 3
    memory_passes: int = 4
    """How often a reading of memory reads the large file first."""


FULL = Sizes()
QUICK = Sizes(
    big=256 << 20,
    names=300,
    tree=6000,
    untarred=500,
    repository=1000,
    created=1000,
    written=256 << 20,
    small_writes=2000,
    random_reads=500,
    mounts=3,
    hosts=16,
    rounds=1,
    memory_passes=2,
)
TINY = Sizes(
    big=4 * MIB,
    names=100,
    tree=300,
    untarred=100,
    repository=100,
    created=50,
    written=4 * MIB,
    small_writes=50,
    random_reads=50,
    mounts=2,
    root=300 << 20,
    hosts=4,
    large_image=1 << 30,
    rounds=1,
    memory_passes=1,
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image made by mystfuse, and its contents."""

    path: Path
    contents: Path
    """JSON: bytes of each file by path, for ``floor``."""
    hash_offset: int
    """Bytes of the file system (or of its ciphertext) before the hash tree."""
    root_hash: str
    key: Path | None = None
    passphrase: Path | None = None
    ext4: Image | None = None
    """The same contents in an ext4 file system."""


@dataclass(frozen=True, slots=True)
class Item:
    directory: Path
    facts: dict[str, Any]

    def image(self, name: str = "image") -> Image:
        """The image ``name``.img of this item."""
        found = self.facts[name]
        ext4 = f"{name}-ext4"
        secret = self.directory / "key"
        return Image(
            self.directory / f"{name}.img",
            self.directory / "contents.json",
            found["hash_offset"],
            found["root_hash"],
            secret if secret.exists() else None,
            self.directory / "passphrase" if secret.exists() else None,
            self.image(ext4) if ext4 in self.facts else None,
        )

    def listed(self, name: str) -> Result:
        """What reading the files in ``name``.list gives."""
        return {"bytes": self.facts[f"{name}_bytes"], "crc": self.facts[f"{name}_crc"]}


class Store:
    """The items, each made when it is first asked for."""

    def __init__(self, work: Path, sizes: Sizes, say: Say) -> None:
        self.work = work
        self.sizes = sizes
        self._say = say

    def big(self) -> Item:
        """A directory ``source`` with a large file ``big`` and small ones in ``names`` (``names.list``); its image."""
        return self._make("big", {"big": self.sizes.big, "names": self.sizes.names}, self._make_big)

    def secret(self) -> Item:
        """The image of the same directory, encrypted."""
        return self._make("secret", {"big": self.sizes.big, "names": self.sizes.names}, self._make_secret)

    def tree(self) -> Item:
        """An image with a directory ``tree`` of many small files; every nth in ``files.list``; ``part.tar`` and its
        contents (``tar.list``)."""
        return self._make("tree", {"tree": self.sizes.tree, "untarred": self.sizes.untarred}, self._make_tree)

    def repository(self) -> Item:
        """An image with a git checkout ``repository``: one file of it is changed, one is not in it."""
        return self._make("repository", {"repository": self.sizes.repository}, self._make_repository)

    def python(self) -> Item:
        """An image with the library of the Python that runs us below ``python``; modules of it in ``imports.list``."""
        return self._make("python", {"python": sys.version, "imports": " ".join(IMPORTS)}, self._make_python)

    def root(self) -> Item:
        """An image of a small Debian system with Python, filled up with a file of noise."""
        return self._make("root", {"root": self.sizes.root}, self._make_root)

    def empty(self) -> Item:
        """An empty image with room to write."""
        return self._make("empty", {"size": self._room()}, self._make_empty)

    def sparse(self) -> Item:
        """Two nearly empty images: ``small`` of 64 MiB, and ``large``."""
        return self._make("sparse", {"large": self.sizes.large_image}, self._make_sparse)

    def flat(self, count: int) -> Item:
        """An image with a directory ``flat`` of this many names; one of them in ``first.list``, 99 in
        ``later.list``."""
        return self._make("flat", {"flat": count}, functools.partial(self._make_flat, count))

    def _make(self, name: str, recipe: dict[str, int | str], build: Callable[[Path, Any], None]) -> Item:
        recipe = {"version": 6, "seed": SEED, **recipe}
        stamp = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
        directory = self.work / f"{name}-{stamp}"
        facts_file = directory / "facts.json"
        if not facts_file.exists():
            self._say(f"making {directory}")
            self.work.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.work))
            try:
                unfinished.chmod(0o755)
                facts: dict[str, Any] = {}
                build(unfinished, facts)
                (unfinished / "facts.json").write_text(json.dumps(facts, indent=1))
                remove_tree(directory, ignore_errors=True)
                unfinished.rename(directory)
            finally:
                remove_tree(unfinished, ignore_errors=True)
            run("sync", "--file-system", directory)
            drop_caches()
        return Item(directory, json.loads(facts_file.read_text()))

    def _make_big(self, directory: Path, facts: dict[str, Any]) -> None:
        source = directory / "source"
        source.mkdir()
        facts["crc"] = write_random(source / "big", self.sizes.big, "big")
        sizes = {"big": self.sizes.big}
        names = make_files(source, [f"names/{d:03}/{n:04}" for d, n in _grid(self.sizes.names)], "names")
        _describe(directory, sizes | names)
        (directory / "names.list").write_text("\n".join(names))
        facts["names_bytes"] = sum(names.values())
        facts["image"] = make_image(source, directory / "image.img")
        facts["image-ext4"] = make_image(source, directory / "image-ext4.img", "--type", "ext4")

    def _make_secret(self, directory: Path, facts: dict[str, Any]) -> None:
        big = self.big()
        shutil.copy(big.directory / "contents.json", directory)
        generator = random.Random("key")  # nosec B311  # the same data every time
        (directory / "key").write_bytes(generator.randbytes(64))
        (directory / "passphrase").write_text(generator.randbytes(12).hex())
        for name in ("key", "passphrase"):
            # The key protects nothing, and an ordinary user reads it too.
            (directory / name).chmod(0o644)
        options = ["--encrypt", str(directory / "key"), "--passphrase-file", str(directory / "passphrase")]
        facts["crc"] = big.facts["crc"]
        facts["image"] = make_image(big.directory / "source", directory / "image.img", *options)

    def _make_tree(self, directory: Path, facts: dict[str, Any]) -> None:
        source = directory / "source"
        paths = tree_paths(self.sizes.tree)
        sizes = make_files(source, paths, "tree")
        _describe(directory, sizes)
        facts["entries"] = len(sizes) + len(_parents(paths)) - 1
        facts["bytes"] = sum(sizes.values())
        _list(directory / "files.list", source, paths[::EVERY_NTH], facts, "files")
        in_tar = paths[:: len(paths) // self.sizes.untarred]
        _list(directory / "tar.list", source, in_tar, facts, "tar")
        contents = sorted([*_parents(in_tar), *in_tar])
        facts["tar_entries"] = len(contents)
        names = directory / "contents.list"
        names.write_text("\n".join(contents))
        run("tar", "-cf", directory / "part.tar", "--no-recursion", "-C", source, "-T", names)
        facts["image"] = make_image(source, directory / "image.img")
        facts["image-ext4"] = make_image(source, directory / "image-ext4.img", "--type", "ext4")
        remove_tree(source)

    def _make_repository(self, directory: Path, facts: dict[str, Any]) -> None:
        source = directory / "source"
        root = source / "repository"
        root.mkdir(parents=True)
        sizes = make_files(root, tree_paths(self.sizes.repository), "repository")
        _describe(directory, {})
        facts["files"] = len(sizes)
        facts["crc"] = make_repository(root, list(sizes))
        facts["image"] = make_image(source, directory / "image.img")
        facts["image-ext4"] = make_image(source, directory / "image-ext4.img", "--type", "ext4")
        remove_tree(source)

    def _make_python(self, directory: Path, facts: dict[str, Any]) -> None:
        source = directory / "source"
        copy_library(source / "python")
        _describe(directory, {})
        (directory / "imports.list").write_text("\n".join(IMPORTS))
        facts["imports"] = len(IMPORTS)
        facts["image"] = make_image(source, directory / "image.img")
        facts["image-ext4"] = make_image(source, directory / "image-ext4.img", "--type", "ext4")
        remove_tree(source)

    def _make_root(self, directory: Path, facts: dict[str, Any]) -> None:
        check_installed("mmdebstrap")
        source = directory / "source"
        suite = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
        run("mmdebstrap", "--variant=minbase", "--include=python3", suite[1] if suite else "stable", source)
        used = int(run("du", "-s", "--block-size=1", "--exclude=./dev/*", source).split()[0])
        (source / "srv").mkdir(exist_ok=True)
        # The rest is for inodes, block maps and the hash tree.
        write_random(source / "srv/noise", max(MIB, int(self.sizes.root * 0.97) - used), "root")
        _describe(directory, {})
        facts["image"] = make_image(source, directory / "image.img", "--size", "min")
        remove_tree(source)

    def _make_flat(self, count: int, directory: Path, facts: dict[str, Any]) -> None:
        # Written through a mount: mke2fs searches the whole directory for each name that it adds.
        source, mountpoint, empty = directory / "source", directory / "mountpoint", directory / "empty.img"
        source.mkdir()
        mountpoint.mkdir()
        # mke2fs makes an inode for each 16 KiB.
        make_image(source, empty, "--size", str((count + 1000) * 16384 + (64 << 20)))
        generator = random.Random(f"{SEED} flat")  # nosec B311  # the same data every time
        paths = [f"flat/{_name(generator)}" for _ in range(count)]
        run(*mystfuse_command(), "mount", "--trust-self", empty, mountpoint)
        try:
            sizes = make_files(mountpoint, paths, "flat", mean=16)
            run(*mystfuse_command(), "commit", mountpoint, directory / "image.img")
        finally:
            run(*mystfuse_command(), "umount", mountpoint)
        empty.unlink()
        _describe(directory, sizes)
        looked_up = generator.sample(sorted(sizes), min(count, 100))
        for part, names in ("first", looked_up[:1]), ("later", looked_up[1:]):
            (directory / f"{part}.list").write_text("\n".join(names))
            facts[f"{part}_bytes"] = sum(sizes[path] for path in names)
        facts["image"] = _describe_image(directory / "image.img")

    def _make_empty(self, directory: Path, facts: dict[str, Any]) -> None:
        (directory / "source").mkdir()
        _describe(directory, {})
        facts["image"] = make_image(directory / "source", directory / "image.img", "--size", str(self._room()))

    def _room(self) -> int:
        """Bytes of a file system into which all these files fit, inodes included."""
        return self.sizes.written * 3 // 2 + (self.sizes.created + self.sizes.untarred) * 16384 + (64 << 20)

    def _make_sparse(self, directory: Path, facts: dict[str, Any]) -> None:
        source = directory / "source"
        make_files(source, ["file"], "sparse")
        _describe(directory, {})
        facts["small"] = make_image(source, directory / "small.img", "--size", str(64 << 20))
        facts["large"] = make_image(source, directory / "large.img", "--size", str(self.sizes.large_image))


def recipes(sizes: Sizes) -> dict[str, int]:
    """The sizes, for the record."""
    return asdict(sizes)


def make_image(source: Path, image: Path, *options: str) -> dict[str, Any]:
    """Make an image of a directory; returns its hash offset and root hash."""
    run(*mystfuse_command(), "mkext2", "--force", f"--block-size={BLOCK_SIZE}", *options, source, image)
    return _describe_image(image)


def _describe_image(image: Path) -> dict[str, Any]:
    image.chmod(0o644)
    found = json.loads(run(*mystfuse_command(), "fssig", "--json", image))
    return {"hash_offset": found["hash_offset"], "root_hash": found["root_hash"]}


def write_random(path: Path, size: int, seed: str) -> int:
    """Write a file of ``size`` incompressible bytes; returns its CRC-32."""
    crc = 0
    generator = random.Random(f"{SEED} {seed}")  # nosec B311  # the same data every time
    with path.open("wb") as file:
        for offset in range(0, size, MIB):
            part = generator.randbytes(min(MIB, size - offset))
            file.write(part)
            crc = checksum([part], crc)
    return crc


def make_files(root: Path, paths: list[str], seed: str, mean: int = MEAN_SIZE) -> dict[str, int]:
    """Make small files of ``mean`` bytes on average; returns their sizes in bytes."""
    generator = random.Random(f"{SEED} {seed}")  # nosec B311  # the same data every time
    sizes: dict[str, int] = {}
    for path in paths:
        sizes[path] = min(1 + int(generator.expovariate(1 / mean)), MAX_SIZE)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(generator.randbytes(sizes[path]))
    return sizes


def tree_paths(entries: int) -> list[str]:
    """Files of a tree like /usr; with its directories there are about ``entries``. On average nine in a directory: a
    few have thousands, most have two or three; several levels deep."""
    generator = random.Random(f"{SEED} paths")  # nosec B311  # the same data every time
    directories = ["tree"]
    for index in range(1, entries // 10):
        # The first directories are more likely than the last ones.
        parent = directories[int(index * generator.random() ** 1.5)]
        directories.append(f"{parent}/{_name(generator)}")
    files = {
        f"{directories[int(len(directories) * generator.random() ** 3)]}/{_name(generator)}.x"
        for _ in range(entries - len(directories))
    }
    return sorted(files)


def _name(generator: random.Random) -> str:
    """10 to 26 characters, all different."""
    return generator.randbytes(generator.randint(5, 13)).hex()


def _parents(paths: list[str]) -> set[str]:
    """All directories above some files."""
    return {str(parent) for path in paths for parent in PurePosixPath(path).parents if str(parent) != "."}


def remove_unfinished(work: Path) -> None:
    """Remove an item that a killed run did not finish."""
    for entry in work.iterdir():
        if entry.name.startswith(tuple(f".{name}-" for name in _NAMES)):
            remove_tree(entry)


def clean(work: Path) -> None:
    """Remove our items in ``work``, and nothing else."""
    remove_unfinished(work)
    for entry in work.iterdir():
        if (entry / "facts.json").exists():
            remove_tree(entry)
    (work / "lock").unlink(missing_ok=True)
    if not any(work.iterdir()):
        work.rmdir()


def _grid(count: int) -> Iterator[tuple[int, int]]:
    return (divmod(index, NAMES_A_DIRECTORY) for index in range(count))


def _describe(directory: Path, sizes: dict[str, int]) -> None:
    (directory / "contents.json").write_text(json.dumps(sizes))


def _list(list_file: Path, source: Path, paths: list[str], facts: dict[str, Any], name: str) -> None:
    """Record which files to read, and their contents."""
    list_file.write_text("\n".join(paths))
    contents = [(source / path).read_bytes() for path in paths]
    facts[f"{name}_bytes"], facts[f"{name}_crc"] = sum(map(len, contents)), checksum(contents)
