"""The mounts that the tests of errnos share: ours and the kernel's, side by side."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import mystfuse, run
from tests.support.damaged_images import BLOCK, Subject, describe
from tests.support.errno_pairs import (
    CONTENTS,
    FLAGS,
    LINKS_COUNTS,
    Pair,
    copies,
    make_image,
    make_source,
    open_directory,
    pair_of,
)

PAIRS = (("ext2", 1024), ("ext2", 4096), ("ext4", 4096))
"""Kinds and block sizes."""
EXTENTS = 0x80000
"""In i_flags of files and directories of ext4."""


def commands_for(kind: str) -> list[str]:
    """What makes debugfs give the image's files and directories the flags and link counts that they are named for."""
    extents = EXTENTS if kind == "ext4" else 0
    return [
        *(f"sif /{name}{what} flags {flags | extents:#x}" for name, flags in FLAGS.items()
          for what in ("", "-directory")),
        *(f"sif /{kind}-{number} links_count {number}" for number in LINKS_COUNTS for kind in ("links", "directory")),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def errno_images() -> Iterator[dict[tuple[str, int], Path]]:
    """The image that most tests of errnos use, by kind and block size."""
    with open_directory() as directory:
        make_source(directory / "source")
        images = {}
        for kind, block_size in PAIRS:
            (directory / f"{kind}-{block_size}").mkdir()
            path = make_image(
                directory / f"{kind}-{block_size}", directory / "source", block_size, "32M", "-N", "16384", kind=kind
            )
            (directory / "commands").write_text("\n".join(commands_for(kind)))
            run("debugfs", "-w", "-f", directory / "commands", path)
            images[kind, block_size] = path
        yield images


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(map(str, pair)))
def pair(request: pytest.FixtureRequest, errno_images: dict[tuple[str, int], Path]) -> Iterator[Pair]:
    """Both mounts of that image."""
    kind, block_size = request.param
    with pair_of(errno_images[kind, block_size], block_size, kind=kind) as pair:
        pair.unchanged.update((contents, copies(contents)) for contents in CONTENTS)
        yield pair


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(map(str, pair)))
def read_only_pair(request: pytest.FixtureRequest, errno_images: dict[tuple[str, int], Path]) -> Iterator[Pair]:
    kind, block_size = request.param
    with pair_of(errno_images[kind, block_size], block_size, read_only=True, kind=kind) as pair:
        yield pair


@pytest.fixture(scope="module")
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


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


@pytest.fixture
def copy(subject: Subject, tmp_path: Path) -> Path:
    """A copy of the image, for the test to damage."""
    target = tmp_path / "image"
    run("cp", "--sparse=always", subject.image, target)
    return target


@pytest.fixture(scope="module")
def image(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned image of ``small_tree`` with 48 MiB of free space. Tests must not write to it."""
    path = tmp_path_factory.mktemp("writing") / "image"
    result = mystfuse("mkext2", "--free=48M", small_tree, path)
    assert result.returncode == 0, result.stderr
    return path
