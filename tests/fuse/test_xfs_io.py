"""xfs_io(8) on our mount and on the kernel's ext2, compared line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.errno_pairs import Pair, pair_of
from tests.support.mounts import HAS_FAST_PATH

pytestmark = pytest.mark.skipif(not HAS_FAST_PATH, reason="pyfuse3 has no such requests")

K = {"4096": (12 * 4, (12 + 1024) * 4, (12 + 1024 + 1024) * 4), "1024": (12, 12 + 256, 12 + 256 + 256)}
"""By block size: KiB at which the first three tables of indirect pointers end."""

OF_THIS_ONE = r" ops;|tv_n?sec|\.ino =|\.dev|_m(aj|in)or|stat\.blocks"
"""Lines with times, rates, and what tells file systems apart."""


@pytest.fixture(scope="module", params=("1024", "4096"))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    image = tmp_path_factory.mktemp("xfs_io") / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", request.param, "-I", "256", image, "64M")
    with pair_of(image, int(request.param)) as pair:
        yield pair


def said(side: Path, *commands: str, options: tuple[str, ...] = ("-f",), name: str = "file") -> list[str]:
    """What xfs_io prints, but for times, rates, and what tells file systems apart."""
    words = [word for command in commands for word in ("-c", command)]
    result = run("xfs_io", *options, *words, name, cwd=side, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    return [line for line in lines if not re.search(OF_THIS_ONE, line)]


def compare(pair: Pair, *commands: str, **given: object) -> list[str]:
    kernel, ours = (said(side, *commands, **given) for side in pair.sides())  # type: ignore[arg-type]
    assert ours == kernel
    return ours


@pytest.mark.parametrize("end", range(3))
def test_seeking_and_punching_around_boundaries(pair: Pair, end: int) -> None:
    at, size = K[str(pair.block_size)][end], pair.block_size // 1024
    for place in (f"{at - size}k", f"{at}k", f"{at + size}k", f"{at * 1024 - 1}", f"{at * 1024 + 1}"):
        compare(pair, f"pwrite -q {place} {3 * size}k", "seek -a -r 0", f"seek -d {place}", f"seek -h {place}")
        compare(pair, f"fpunch {place} {size}k", "seek -a -r 0", "stat -r")
        compare(pair, f"fpunch {at - 2 * size}k {at + 9 * size}k", "seek -a -r 0", f"pread -v {at - size}k 64")
        for side in pair.sides():
            (side / "file").unlink()


def test_copying(pair: Pair) -> None:
    for side in pair.sides():
        (side / "source").write_bytes(bytes(range(256)) * 400)
    compare(pair, "copy_range source", "stat -r", "seek -a -r 0", name="copied")
    compare(pair, "copy_range -s 100 -d 5000 -l 70000 source", "pread -v 4990 64", "stat -r", name="copied")
    compare(pair, "copy_range -s 200000 -d 0 -l 10 source", "copy_range -s 0 -d 1M -l 10 source", name="copied")
    compare(pair, "copy_range missing", name="copied")
    compare(pair, "reflink source 0 0 4096", name="copied")
    compare(pair, "dedupe source 0 0 4096", name="copied")


def test_flags(pair: Pair) -> None:
    compare(
        pair, "pwrite -q 0 10", "lsattr -v", "chattr +d", "lsattr", "chattr +A", "lsattr -v", "chattr -dA", "lsattr"
    )
    compare(pair, "chattr +i", "lsattr", "pwrite 0 1", "chattr -i", "chattr +a", "lsattr")
    compare(pair, "pwrite 0 1")
    compare(pair, "lsattr", "chattr -a", "lsattr", options=("-r",))
    compare(pair, "extsize", "cowextsize", "lsproj", "version")


def test_what_is_refused(pair: Pair) -> None:
    compare(pair, "pwrite -q 0 64k")
    refused = "fcollapse 0 4k", "finsert 0 4k", "funshare 0 4k", "falloc -k 0 1M", "fpunch 0 0", "fpunch -- -1 5"
    for command in (*refused, "seek -d 1M", "seek -h 64k"):
        assert compare(pair, command)


def test_nameless_files(pair: Pair) -> None:
    compare(pair, "pwrite -q 0 100k", "fpunch 4k 4k", "flink linked", "seek -a -r 0", options=("-T",), name=".")
    compare(pair, "stat -r", "pread -v 8k 32", options=("-r",), name="linked")
