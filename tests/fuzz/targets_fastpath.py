"""Targets: the fast path's answers in C to any request, on any file system: what Python answers, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import trio

from mystfuse.errors import FormatError, MystfuseError
from mystfuse.ext2.superblock import Superblock
from mystfuse.fuse.protocol import IN_HEADER, OUT_HEADER
from mystfuse.volume.volume import Volume
from tests.fuzz.harness import Choices, Target, bounded, ensure
from tests.fuzz.images import SparseDevice, SparseImage, load
from tests.fuzz.mutator import layout, mutate
from tests.support.fast_paths import OPTIONS, Answers, bare_fast_path
from tests.support.fuse_answers import (
    Kind,
    Reference,
    entries_of,
    getattr_of,
    getxattr,
    listxattr,
    lookup,
    open_file,
    read,
    readdirplus,
    readlink,
)

IMAGES = ("small", "small", "old", "groups", "large")
_NAMES = (b"file", b"large", b"dir", b"many", b"fast", b"slow", b"a-name-of-some-length-0007", b"no such name", b"..")
_XATTRS = (b"security.capability", b"security.selinux", b"system.posix_acl_access", b"system.posix_acl_default")
_LARGEST = (1 << 20) + (64 << 10)


@cache
def _in_memory(name: str) -> int:
    """The descriptor of a file in memory that holds an image, as long as the process lives."""
    image = load(name)
    descriptor = os.memfd_create(f"mystfuse-{name}")
    os.truncate(descriptor, image.size)
    for offset, piece in image.whole():
        os.pwrite(descriptor, piece, offset)
    return descriptor


@contextmanager
def _file_of(name: str, image: SparseImage) -> Iterator[int]:
    """The same with the changes of ``image``."""
    descriptor, changes = _in_memory(name), image.changes()
    try:
        for offset, now, _ in changes:
            os.pwrite(descriptor, now, offset)
        yield descriptor
    finally:
        for offset, _, before in changes:
            os.pwrite(descriptor, before, offset)


def answers(data: bytes) -> None:
    """C answers no request where Python fails or answers something else, however the file system is damaged."""
    choices = Choices(data)
    name = choices.pick(IMAGES)
    image = load(name).copy()
    for _ in range(choices.below(4)):
        mutate(image, name, choices)
    try:
        superblock = Superblock.parse(image.get(1024, 1024))
        superblock.check_fits(image.size)
    except FormatError:
        return
    questions = [_question(choices, name) for _ in range(1 + choices.below(24))]
    with _file_of(name, image) as descriptor:
        try:
            with bare_fast_path(descriptor, image.size, superblock) as fast_path:
                trio.run(_compare, Answers(fast_path), image, questions)
        except MemoryError:
            # Sizes that the fast path does not have: Python would answer alone.
            return


def _question(choices: Choices, image: str) -> bytes:
    """A request that the kernel could send."""
    place = layout(image)
    inodes = list(place.inodes)
    ino = choices.pick(inodes) if choices.below(8) else choices.nasty(8, choices.pick(inodes), (2, 1, 11))
    size = place.superblock.block_size
    edges = (0, 12 * size, (12 + size // 4) * size, (12 + size // 4 + (size // 4) ** 2) * size, 602_400, 70_000_000)
    match choices.below(9):
        case 0:
            return getattr_of(ino)
        case 1:
            return readlink(ino)
        case 2:
            return open_file(ino, choices.pick((os.O_RDONLY, os.O_WRONLY, os.O_TRUNC, os.O_RDONLY | os.O_DIRECT)))
        case 3 | 4:
            offset = choices.pick(edges) + choices.below(2 * size) - size
            if not choices.below(8):
                offset = choices.nasty(8, offset)
            return read(ino, max(offset, 0), choices.pick((0, 1, 4096, 131072, 1 << 20)) + choices.below(3))
        case 5:
            return listxattr(ino, choices.pick((0, 64, 65536)))
        case 6:
            return getxattr(ino, choices.pick(_XATTRS), choices.pick((0, 64)))
        case 7:
            position = choices.pick((0, 1, 2, 12, 24, 44, size - 1, size, 2 * size)) + choices.below(8) * 4
            if not choices.below(8):
                position = choices.nasty(8, position)
            return readdirplus(ino, position, choices.pick((0, 200, 4096, 131072)))
        case _:
            name = (
                choices.pick(_NAMES) if choices.below(6) else choices.take(1 + choices.below(255)).rstrip(b"\0") or b"x"
            )
            return lookup(choices.pick(list(place.directories)) if choices.below(4) else ino, name)


async def _compare(answers: Answers, image: SparseImage, questions: list[bytes]) -> None:
    reference = Reference(await Volume.open(SparseDevice(image)), OPTIONS)
    for question in questions:
        with bounded(2, "one answer"):
            answer = answers.ask(question)
        if answer is None:
            continue
        try:
            expected = await reference.answer(question)
        except (MystfuseError, OSError) as error:
            raise AssertionError(
                f"{_shown(question)} is answered by {answer.hex()}, but by Python: {error!r}"
            ) from error
        is_same = answer == expected
        if expected is not None and IN_HEADER.unpack_from(question)[1] == Kind.READDIRPLUS:
            is_same = is_same or _is_beginning(answer[OUT_HEADER.size :], expected[OUT_HEADER.size :])
        wanted = "nothing" if expected is None else expected.hex()
        ensure(is_same, f"{_shown(question)} is answered by {answer.hex()}, but by Python: {wanted}")


def _is_beginning(listing: bytes, whole: bytes) -> bool:
    """Whether a listing is the first entries of another; C may stop at something unusual."""
    entries = entries_of(listing)
    return bool(entries) and entries == entries_of(whole)[: len(entries)] and whole.startswith(listing)


def _shown(question: bytes) -> str:
    _, kind, _, nodeid, *_ = IN_HEADER.unpack_from(question)
    return f"{Kind(kind).name} of {nodeid}, {question[IN_HEADER.size :]!r},"


# -- requests


@cache
def _sound() -> Answers:
    descriptor = _in_memory("small")
    image = load("small")
    # For as long as the process lives.
    context = bare_fast_path(descriptor, image.size, Superblock.parse(image.get(1024, 1024)))
    _KEPT.append(context)
    return Answers(context.__enter__())


_KEPT: list[object] = []


def malformed(data: bytes) -> bytes:
    """Bytes that are no request, or hardly one."""
    return _malformed(Choices(data))


def _malformed(choices: Choices) -> bytes:
    raw = bytearray(_question(choices, "small"))
    match choices.below(6):
        case 0:
            del raw[choices.below(len(raw) + 1) :]
        case 1:
            raw += choices.take(choices.below(300))
        case 2:
            raw[4:8] = choices.pick((*Kind, 0, 63, 64, 255, 1 << 31)).to_bytes(4, "little")
        case 3:
            raw[4:8] = choices.pick((Kind.FORGET, Kind.BATCH_FORGET, Kind.RELEASE, Kind.OPENDIR)).to_bytes(4, "little")
            del raw[40:]
            raw += choices.nasty(4, 1).to_bytes(4, "little") + choices.take(choices.below(64))
        case 4:
            at = choices.below(len(raw))
            raw[at : at + 8] = choices.nasty(8, int.from_bytes(raw[at : at + 8], "little")).to_bytes(8, "little")
        case 5:
            raw = bytearray(raw[:40] + choices.rest())
    if choices.below(16) == 15:
        raw = raw.ljust(_LARGEST + choices.below(3) - 1, b"\xff")
    if choices.below(4):
        raw[:4] = len(raw).to_bytes(4, "little")
    return bytes(raw)


def requests(data: bytes) -> None:
    """No bytes that are no request do harm, and what is answered is a whole reply to the one who asked."""
    choices = Choices(data)
    for _ in range(1 + choices.below(6)):
        raw = _malformed(choices)
        answer = _sound().ask(raw)
        if answer:
            length, error, unique = OUT_HEADER.unpack_from(answer)
            ensure(length == len(answer) and -200 < error <= 0, f"{raw!r}: {answer!r}")
            ensure(unique == int.from_bytes(raw[8:16], "little"), f"{raw!r}: another's reply")


TARGETS = [
    Target(
        "fastpath", answers, seeds=lambda: [bytes([image, 0, 23, *range(200)]) for image in range(5)], max_length=1024
    ),
    Target("fastpath-requests", requests, seeds=lambda: [bytes(20), bytes(range(255))], max_length=1024),
]
