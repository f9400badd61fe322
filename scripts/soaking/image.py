"""The image under test, and its contents."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from benchmarks.data import tree_paths
from benchmarks.tools import mystfuse_command, run

from soaking.contents import stream

KEPT_WORKER = 65535
"""The writer, in records, of the files in shared directories that no worker changes."""
_KEPT, _OWN_FILES = 200, 20
_WORKERS_A_DIRECTORY = 8
_BIG_FILES = 2
_MEAN_SIZE, _LARGEST = 6000, 256 << 10
"""The mean size of the tree's files in bytes."""
_MIB = 1 << 20


@dataclass(slots=True)
class Manifest:
    """The image's contents, by paths relative to its root.

    Attributes:
        files: (size, CRC-32) of the tree's files.
        big: CRC-32 of each MiB of large files.
        own: of each worker: sizes of the files in its directory, by name.
    """

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    big: dict[str, list[int]] = field(default_factory=dict)
    own: list[dict[str, int]] = field(default_factory=list)
    kept_size: int = 5000
    """Bytes of each of ``kept``."""
    paths: list[str] = field(default_factory=list)
    """Of ``files``."""
    tops: list[str] = field(default_factory=list)
    """Directories that workers walk."""
    _below: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def kept(self) -> frozenset[str]:
        """Names that are always in every shared directory."""
        return frozenset(self.kept_name(number) for number in range(_KEPT))

    @staticmethod
    def kept_name(number: int) -> str:
        return f"kept-{number:04}-{'k' * 80}"

    @staticmethod
    def shared_of(worker: int) -> str:
        """The directory that a worker shares with other workers."""
        return f"shared/{worker // _WORKERS_A_DIRECTORY:03}"

    def below(self, top: str) -> dict[str, int]:
        """The expected result of a walk: sizes of files, and the number of entries of directories."""
        return self._below[top]

    def index(self) -> None:
        """Compute the attributes that follow from ``files``."""
        self.paths = sorted(self.files)
        directories: dict[str, set[str]] = {}
        for path in self.paths:
            for parent in PurePosixPath(path).parents:
                if str(parent) != ".":
                    directories.setdefault(str(parent), set())
                    if str(parent.parent) != ".":
                        directories.setdefault(str(parent.parent), set()).add(str(parent))
        self.tops = [path for path in sorted(directories) if path.count("/") == 1] or ["tree"]
        for top in self.tops:
            inside = {path: len(below) for path, below in directories.items() if f"{path}/".startswith(f"{top}/")}
            inside |= {path: size for path, (size, _) in self.files.items() if path.startswith(f"{top}/")}
            self._below[top] = inside


def fill_source(source: Path, workers: int, files: int, seed: int) -> Manifest:
    """Make the image's source: about ``files`` files, large ones, and the workers' initial files."""
    generator = random.Random(f"{seed} image")  # nosec B311  # the same data every time
    manifest = Manifest()
    for path in tree_paths(files):
        data = generator.randbytes(min(1 + int(generator.expovariate(1 / _MEAN_SIZE)), _LARGEST))
        _put(source / path, data)
        manifest.files[path] = len(data), zlib.crc32(data)
    for number in range(_BIG_FILES):
        parts = [generator.randbytes(_MIB) for _ in range(max(files // 300, 2))]
        _put(source / f"big/{number}", b"".join(parts))
        manifest.big[f"big/{number}"] = [zlib.crc32(part) for part in parts]
    for worker in range(workers):
        sizes = {f"image-{n}": int(generator.expovariate(1 / 30_000)) for n in range(_OWN_FILES)}
        manifest.own.append(sizes)
        for number, (name, size) in enumerate(sizes.items(), 1):
            _put(source / f"own/{worker:03}/{name}", stream(worker, number, 1, 0, size))
        shared = source / Manifest.shared_of(worker)
        if not shared.exists():
            for number in range(_KEPT):
                _put(shared / Manifest.kept_name(number), stream(KEPT_WORKER, number, 1, 0, manifest.kept_size))
    manifest.index()
    return manifest


def make_image(work: Path, workers: int, files: int, free: int, seed: int, key: Path | None) -> tuple[Path, Manifest]:
    """Make an image of the source, with ``free`` bytes of free space.

    Raises:
        BenchmarkError: a tool failed.
    """
    source, image = work / "source", work / "image.img"
    manifest = fill_source(source, workers, files, seed)
    options = ["--encrypt", str(key)] if key else []
    run(*mystfuse_command(), "mkext2", "--block-size=4096", f"--free={free}", *options, source, image)
    run("rm", "-r", source)
    return image, manifest


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
