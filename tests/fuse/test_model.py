"""Random sequences of operations on a writable mount, on the kernel's own mount of the same image, and on a model.

After every operation the answers of the three and the files that it touched must agree. Every now and then, and at the
end, their whole trees are compared and e2fsck judges what ``.mystfuse/image`` has become. A mount serves many
sequences, each in a directory of its own that is removed afterwards: blocks and inodes are used again, and none may
leak.

    MYSTFUSE_MODEL_EXAMPLES=2000 pytest tests/fuse/test_model.py  # so many sequences per configuration, always others
    MYSTFUSE_MODEL_SEED=7 ...                                  # these again
    MYSTFUSE_MODEL_PEER=kernel ...                             # the kernel against itself: judges this test

A failure prints the sequence as it goes into REGRESSIONS, and names a file with everything the mount had served before.
"""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from removal import temporary_directory

from tests.support.model.contents import At, boundaries
from tests.support.model.handle_operations import (
    ChmodHandle,
    CloseHandle,
    OpenHandle,
    ReadHandle,
    StatHandle,
    SyncHandle,
    TruncateHandle,
    WriteHandle,
)
from tests.support.model.mounted import Mounted
from tests.support.model.operations import (
    Create,
    Drain,
    Fill,
    Link,
    Mkdir,
    Operation,
    Read,
    Rename,
    Truncate,
    Unlink,
    Utime,
    Write,
    numbered_name,
)
from tests.support.model.results import Failed
from tests.support.model_pairs import DEFAULT_EXAMPLES, STEPS, Configuration, Pair, Run, Sequence
from tests.support.model_sequences import Sequences

pytestmark = pytest.mark.usefixtures("no_umask")

EXAMPLES = os.environ.get("MYSTFUSE_MODEL_EXAMPLES")
SEED = os.environ.get("MYSTFUSE_MODEL_SEED")

MOST = "ea_inode,large_dir,metadata_csum_seed,orphan_file"
EVERYTHING = "inline_data,ea_inode,large_dir,metadata_csum_seed,^has_journal"
"""Without a journal: with one, the kernel's driver may wait for itself for ever when it moves data out of inodes. And
only with blocks as large as pages: with smaller ones it (6.18) loses the first part of a write that begins behind the
first page and goes on to another."""
CONFIGURATIONS = [
    Configuration(block_size, inode_size, indexed)
    for block_size in (1024, 4096)
    for inode_size in (128, 256)
    for indexed in (True, False)
] + [Configuration(1024, 256, indexed=True, encrypted=True), Configuration(1024, 256, indexed=True, stored=True)]
EXTENDED = [
    Configuration(4096, 256, indexed=True, features=""),
    Configuration(1024, 256, indexed=True, features=MOST),
]
MORE_EXTENDED = [
    Configuration(4096, 256, indexed=True, features=EVERYTHING),
    Configuration(1024, 128, indexed=False, features="^metadata_csum,uninit_bg,^64bit,^has_journal"),
    Configuration(4096, 512, indexed=True, features=f"{EVERYTHING},meta_bg,^resize_inode,sparse_super2"),
    Configuration(4096, 256, indexed=True, stored=True, features=EVERYTHING),
]
"""ext4, with the kernel's ext4 as the peer."""
SLOW = [pytest.param(configuration, marks=pytest.mark.slow) for configuration in MORE_EXTENDED]

REGRESSIONS: list[Sequence] = [
    # A rename made the directory longer; after that, no name could be added to it.
    Sequence(
        "empty",
        [
            Mkdir("d"),
            Fill("d", 200, 20),
            *(Rename(f"d/{numbered_name(number, 20)}", f"d/{numbered_name(number, 200)}", 0) for number in range(60)),
            Create("d/a"),
            Mkdir("d/e"),
            Drain("d", 200, 20, 1),
        ],
    ),
    # The first and the last second that an inode can hold have no nanoseconds.
    Sequence(
        "empty",
        [
            *(Create(name) for name in "abc"),
            Utime("a", -2147483647_000000001),
            Utime("b", 15032385535_999999999),
            Utime("c", 2147483647_999999999),
        ],
    ),
]
"""Sequences that failed once, as the failures print them. They run always, in every configuration."""


@pytest.fixture(scope="module", params=[*CONFIGURATIONS, *EXTENDED, *SLOW], ids=str)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both mounts of one configuration."""
    with temporary_directory("mystfuse-test-model-") as directory:
        pair = Pair(request.param, Path(directory))
        try:
            pair.mount()
            yield pair
        finally:
            pair.close()


LEVELS = range(len(boundaries(1024)))


def boundary_sequence(level: int) -> Sequence:
    """Writing up to, across and from a boundary of the block map, and cutting there; with a name and without."""
    operations: list[Operation] = []
    around = [At(level, blocks, extra) for blocks in (-1, 0, 1) for extra in (-1, 0, 1)]
    for at in around:
        for length in (At(extra=2), At(blocks=2)):
            operations += [Write("g", at, length, 1, os.O_CREAT), Truncate("g", at), Truncate("g", At(level, 2, 5))]
        operations += [Read("g", At(level, -2), At(blocks=4)), Truncate("g", At(extra=5))]
    operations += [
        OpenHandle(0, "g", os.O_RDWR),
        Link("g", "h"),
        Unlink("g"),
        StatHandle(0),
        Unlink("h"),
        StatHandle(0),
    ]
    for at in around:
        operations += [WriteHandle(0, at, At(blocks=1), 2), ReadHandle(0, At(level, -2), At(blocks=4))]
    for at in reversed(around):
        operations += [TruncateHandle(0, at), ReadHandle(0, At(level, -2), At(blocks=4))]
    return Sequence("empty", [*operations, ChmodHandle(0, 0o4711), SyncHandle(0), CloseHandle(0), StatHandle(0)])


@pytest.mark.parametrize("level", LEVELS)
def test_every_boundary_of_the_block_map(pair: Pair, level: int) -> None:
    run_sequence(pair, boundary_sequence(level))


def run_sequence(pair: Pair, sequence: Sequence) -> None:
    running = Run(pair, sequence.start)
    for operation in sequence.operations:
        running.step(operation)
    running.finish()


@pytest.mark.parametrize("sequence", REGRESSIONS, ids=lambda sequence: f"{len(sequence.operations)}-operations")
def test_sequence_that_failed_once(pair: Pair, sequence: Sequence) -> None:
    run_sequence(pair, sequence)


def test_random_sequences_agree(pair: Pair, record_property: Callable[[str, Any], None]) -> None:
    kind = zlib.crc32(str(pair.configuration).encode())
    number = kind + int(SEED) if SEED else random.randrange(1 << 32) if EXAMPLES else kind
    counts: dict[str, list[int]] = {}

    def count(operation: Operation, result: object) -> None:
        counts.setdefault(type(operation).__name__, [0, 0])[isinstance(result, Failed)] += 1

    def machine() -> Sequences:
        return Sequences(pair, count)

    run_state_machine_as_test(
        seed(number)(machine),  # type: ignore[arg-type]  # any callable will do
        settings=settings(
            max_examples=int(EXAMPLES or DEFAULT_EXAMPLES),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("seed", number)
    print(f"seed {number}; succeeded and failed: {dict(sorted(counts.items()))}")


@pytest.mark.parametrize("pair", CONFIGURATIONS[:1], ids=str, indirect=True)
def test_comparison_sees_differences(pair: Pair) -> None:
    """The comparison finds every change on our side alone."""

    def replace_link(side: Mounted) -> None:
        side.unlink("c")
        side.symlink("d/b", "c")

    def copy_link(side: Mounted) -> None:
        side.unlink("d/b")
        shutil.copy2(f"{side.root}/a", f"{side.root}/d/b")

    tricks: dict[str, Callable[[Mounted], object]] = {
        "'d/e': status": lambda side: side.chmod("d/e", 0o700),
        "'a': mtime": lambda side: side.utime("a", 1, follow=True),
        "'d': xattrs": lambda side: side.setxattr("d", "user.new", b"", 0, follow=True),
        "'a': status": lambda side: side.truncate("a", 10),
        "'a': sha256": lambda side: Write("a", At(), At(extra=1), 77).apply(side),
        "'': names": lambda side: side.rename("a", "A", 0),
        "'c': target": replace_link,
        "'d/b': same as": copy_link,
    }
    for expected, trick in tricks.items():
        running = Run(pair, "small")
        running.step(Utime("a", 10**18))
        trick(running.ours)
        with pytest.raises(AssertionError, match=f"(?s)ours differs.*{expected} is"):
            running.check()
        running.abandon()
