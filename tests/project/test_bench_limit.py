"""``limit``, the peer of ``scripts/bench`` that shows what is possible, verifies what it returns."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.data import TINY, Image, Item, Store
from benchmarks.limit import Limit, arguments, extents

from tests.support.commands import SBIN

BLOCK = 4096


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Item:
    return Store(tmp_path_factory.mktemp("bench"), TINY, print).big()


@pytest.fixture(autouse=True)
def with_sbin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", SBIN)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "scripts"))


@contextmanager
def mounted(image: Image, scratch: Path) -> Iterator[Path]:
    limit = Limit(scratch)
    assert limit.missing() == ""
    with limit.mount(image) as mount:
        yield mount.path


def damaged(image: Image, scratch: Path, offset: int) -> Image:
    """A copy with one bit changed."""
    path = scratch / "damaged.img"
    shutil.copy(image.path, path)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    return replace(image, path=path)


def places(image: Image) -> tuple[list[int], list[int]]:
    """Offsets of the levels of the hash tree, the data's first, and of the blocks of the file."""
    words = arguments(image)[4:]
    levels = [int(word[1:].split(":")[0]) for word in words if word.startswith("@")]
    ranges = [tuple(map(int, word.split(":"))) for word in words if not word.startswith("@")]
    return levels, [block * BLOCK for first, count in ranges for block in range(first, first + count)]


def readable_blocks(path: Path) -> list[bool]:
    """Which blocks of a file can be read, each by itself."""
    found = []
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        for offset in range(0, os.fstat(descriptor).st_size, BLOCK):
            try:
                found.append(len(os.pread(descriptor, BLOCK, offset)) == BLOCK)
            except OSError as error:
                assert error.errno == errno.EIO
                found.append(False)
    finally:
        os.close(descriptor)
    return found


def test_it_returns_the_file_and_has_no_other(item: Item, tmp_path: Path) -> None:
    with mounted(item.image(), tmp_path) as path:
        assert (path / "big").read_bytes() == (item.directory / "source/big").read_bytes()
        assert not (path / "names").exists()
        assert os.stat(path / "big").st_size == TINY.big


def test_damage_is_found_in_that_block_alone(item: Item, tmp_path: Path) -> None:
    _, blocks = places(item.image())
    with mounted(damaged(item.image(), tmp_path, blocks[100] + 1234), tmp_path) as path:
        assert [index for index, good in enumerate(readable_blocks(path / "big")) if not good] == [100]


def test_a_damaged_digest_is_found_by_the_level_above(item: Item, tmp_path: Path) -> None:
    levels, blocks = places(item.image())
    bad = blocks[100] // BLOCK // 128
    with mounted(damaged(item.image(), tmp_path, levels[0] + bad * BLOCK), tmp_path) as path:
        expected = [offset // BLOCK // 128 != bad for offset in blocks]
        assert readable_blocks(path / "big") == expected
        assert 0 < sum(expected) < len(expected)


def test_nothing_is_read_with_another_root_hash(item: Item, tmp_path: Path) -> None:
    with mounted(replace(item.image(), root_hash="ab" * 32), tmp_path) as path:
        assert not any(readable_blocks(path / "big"))


def test_extents_are_those_of_the_data() -> None:
    said = "Size: 57344\nBLOCKS:\n(0-11):1000-1011, (IND):1012, (12):1013, (13-14):99-100\nTOTAL: 16\n"
    assert extents(said) == ["1000:12", "1013:1", "99:2"]
