"""A fast path without a kernel, beside the volume on the same image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mystfuse.build.hash_tree import write_tree
from mystfuse.devices.joined_source import JoinedSource
from mystfuse.devices.source import FileSource, SourcePart
from mystfuse.errors import MystfuseError
from mystfuse.ext2.superblock import Superblock
from mystfuse.fastpath.fast_path import FastPath
from mystfuse.fastpath.written_blocks import WrittenBlocks
from mystfuse.formats.verity import VeritySuperblock
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.protocol import IN_HEADER
from mystfuse.image.keys import Keys
from mystfuse.image.open import open_image
from mystfuse.image.pipeline import run_pipeline
from mystfuse.trust.policy import TrustPolicy
from mystfuse.volume.volume import Volume
from tests.support.fuse_answers import Kind, Reference, without_versions

REPLY_ROOM = (1 << 20) + 4096
OPTIONS = MountOptions(mountpoint="/nowhere", fsname="test")
NO_KERNEL: Any = SimpleNamespace(device=-1, other_end=-1, offered=0)
"""In place of ``InitRequest``."""


class Answers:
    """The answers of a fast path to single requests, without a kernel. For several threads, each with its own."""

    def __init__(self, fast_path: FastPath) -> None:
        from mystfuse.kernels.native import ffi, lib

        self._ffi, self._lib, self._handle = ffi, lib, fast_path.handle
        self._room = ffi.new("uint8_t[]", REPLY_ROOM)
        self._size = ffi.new("size_t *")

    def ask(self, request: bytes) -> bytes | None:
        """The whole reply (empty if the kernel expects none); None: the request would be handed over to Python."""
        answered = self._lib.fastpath_answer(
            self._handle, self._ffi.from_buffer("uint8_t[]", request), len(request), self._room, REPLY_ROOM, self._size
        )
        return bytes(self._ffi.buffer(self._room, self._size[0])) if answered else None


@dataclass(frozen=True)
class Pair:
    """A fast path, and the volume with the same blocks."""

    volume: Volume
    fast_path: FastPath
    answers: Answers
    reference: Reference


@dataclass(frozen=True)
class TreeOptions:
    """How a hash tree is made."""

    algorithm: str = "sha256"
    data_block_size: int = 4096
    hash_block_size: int = 4096
    salt: bytes = b"\x5a" * 32
    hash_type: int = 1


@dataclass(frozen=True)
class TreeImage:
    """A file system with a hash tree, behind it or in a file of its own."""

    path: Path
    tree: Path | None
    hash_offset: int
    root_hash: bytes

    def source(self) -> FileSource | JoinedSource:
        data = FileSource(self.path)
        return data if self.tree is None else JoinedSource(data, FileSource(self.tree), self.hash_offset)


def add_tree(path: Path, options: TreeOptions, is_apart: bool = False) -> TreeImage:
    """Make the hash tree of a file system."""
    size = path.stat().st_size
    superblock = VeritySuperblock(
        size // options.data_block_size,
        options.salt,
        bytes(16),
        options.hash_type,
        options.algorithm,
        options.data_block_size,
        options.hash_block_size,
    )
    with path.open("r+b") as file:
        root_hash = write_tree(file.fileno(), superblock, size)
    if not is_apart:
        return TreeImage(path, None, size, root_hash)
    tree = path.with_suffix(".tree")
    # Its place decides where the levels lie, so it stays where it is.
    tree.write_bytes(bytes(size) + path.read_bytes()[size:])
    os.truncate(path, size)
    return TreeImage(path, tree, size, root_hash)


@asynccontextmanager
async def opened(
    image: TreeImage,
    overlay_limit: int | None = None,
    options: MountOptions = OPTIONS,
    keys: Keys | None = None,
    store_file: int | None = None,
    init: Any = NO_KERNEL,
    is_stopped_inside: bool = False,
) -> AsyncIterator[Pair]:
    """A volume on an image, and a fast path that follows its overlay; whoever starts it stops it.

    Args:
        is_stopped_inside: the block stops it though it has not been started.
    """
    source = image.source()
    try:
        hash_offset = getattr(source, "hash_offset", image.hash_offset)
        trusted = open_image(source, TrustPolicy(), hash_offset, image.root_hash)
        async with run_pipeline(trusted, keys or Keys(), 30, _quiet) as pipeline:
            volume = await Volume.open(pipeline.device, overlay_limit, pipeline.workers, store_file)
            fast_path = FastPath.make(pipeline, source.parts, volume.superblock, options, init)
            try:
                if volume.overlay is not None:
                    volume.overlay.set_mirror(WrittenBlocks(fast_path))
                yield Pair(volume, fast_path, Answers(fast_path), Reference(volume, options))
            finally:
                if init is NO_KERNEL and not is_stopped_inside:
                    fast_path.stop()
    finally:
        source.close()


@contextmanager
def _quiet(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


class Comparison:
    """Counts what was compared, and complains of each difference."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.answered: Counter[Kind] = Counter()
        self.wasted: Counter[Kind] = Counter()
        """Requests handed over although C may answer them."""

    async def ask(self, question: bytes) -> None:
        kind = Kind(IN_HEADER.unpack_from(question)[1])
        try:
            expected = await self.pair.reference.answer(question)
        except (MystfuseError, OSError):
            expected = None
        answer = self.pair.answers.ask(question)
        if answer is not None and kind == Kind.READDIRPLUS:
            answer = without_versions(answer)
        assert answer is None or answer == expected, (kind, question[IN_HEADER.size :], answer, expected)
        if answer is not None:
            self.answered[kind] += 1
        elif expected is not None:
            self.wasted[kind] += 1

    async def ask_all(self, questions: list[bytes]) -> None:
        for question in questions:
            await self.ask(question)


@contextmanager
def bare_fast_path(
    descriptor: int, size: int, superblock: Superblock, options: MountOptions = OPTIONS
) -> Iterator[FastPath]:
    """A fast path over a file in memory that holds a file system without a hash tree."""
    pipeline: Any = SimpleNamespace(verity=None, unlocked=None)
    parts = [SourcePart(descriptor, True, 0, size, 0)]
    fast_path = FastPath.make(pipeline, parts, superblock, options, NO_KERNEL)
    try:
        yield fast_path
    finally:
        fast_path.stop()
