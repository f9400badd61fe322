"""The mounts that the tests of errnos share: ours and the kernel's, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run
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


@pytest.fixture(scope="session")
def errno_images() -> Iterator[dict[int, Path]]:
    """The image that most tests of errnos use, by block size."""
    with open_directory() as directory:
        make_source(directory / "source")
        commands = [
            *(f"sif /{name}{what} flags {flags:#x}" for name, flags in FLAGS.items() for what in ("", "-directory")),
            *(
                f"sif /{kind}-{number} links_count {number}"
                for number in LINKS_COUNTS
                for kind in ("links", "directory")
            ),
        ]
        (directory / "commands").write_text("\n".join(commands))
        images = {}
        for block_size in (1024, 4096):
            (directory / str(block_size)).mkdir()
            path = make_image(directory / str(block_size), directory / "source", block_size, "32M", "-N", "16384")
            run("debugfs", "-w", "-f", directory / "commands", path)
            images[block_size] = path
        yield images


@pytest.fixture(scope="module", params=(1024, 4096))
def pair(request: pytest.FixtureRequest, errno_images: dict[int, Path]) -> Iterator[Pair]:
    """Both mounts of that image."""
    with pair_of(errno_images[request.param], request.param) as pair:
        pair.unchanged.update((contents, copies(contents)) for contents in CONTENTS)
        yield pair


@pytest.fixture(scope="module", params=(1024, 4096))
def read_only_pair(request: pytest.FixtureRequest, errno_images: dict[int, Path]) -> Iterator[Pair]:
    with pair_of(errno_images[request.param], request.param, read_only=True) as pair:
        yield pair


@pytest.fixture(scope="module")
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)
