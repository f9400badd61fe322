"""Names of inodes are found wherever they are, and mostly soon."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mystfuse.devices.device import Extent
from mystfuse.tree.diff.inode_names import InodeNames, Link
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import MemoryDevice, at, make_image

KINDS = {
    "1024": ("-b", "1024"),
    "4096": ("-b", "4096"),
    "no file types": ("-b", "1024", "-O", "^filetype"),
    "several groups": ("-b", "1024", "-g", "1024", "-N", "1200"),
}


class CountingDevice(MemoryDevice):
    """Counts the bytes that are read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.count = 0

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.count += sum(extent.length for extent in extents)
        return await super().read(extents, quietly)


@pytest.fixture(scope="module", params=KINDS)
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tree of 40 directories with 10 files each, and links far from each other."""
    directory = tmp_path_factory.mktemp("names")
    for number in range(40):
        below = directory / f"tree/d{number // 10}/s{number % 10}"
        below.mkdir(parents=True)
        for name in range(10):
            (below / f"f{name}").touch()
    (directory / "tree/d3/s9/link").hardlink_to(directory / "tree/d0/s0/f0")
    (directory / "tree/d0/s0/link").hardlink_to(directory / "tree/d0/s0/f0")
    return make_image(directory / "image", *KINDS[request.param], size="8M", tree=directory / "tree").read_bytes()


async def test_every_name_is_found(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image))
    expected: dict[int, set[Link]] = {}
    counts: dict[int, int] = {}
    for number in range(40):
        directory = await at(volume, f"d{number // 10}", f"s{number % 10}")
        entries, _ = await volume.entries(directory.ino, 0, 100)
        for entry, inode in entries:
            assert inode is not None
            expected.setdefault(entry.ino, set()).add(Link(directory.ino, entry.name))
            counts[entry.ino] = inode.i_links_count
    assert len(expected) == 400 and max(counts.values()) == 3
    assert await InodeNames(volume).find(counts, []) == expected
    for ino in [*expected][::20]:
        assert await InodeNames(volume).find({ino: counts[ino]}, []) == {ino: expected[ino]}


async def test_one_file_is_found_soon(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image))
    ino, directory = (await at(volume, "d2", "s4", "f7")).ino, (await at(volume, "d2", "s4")).ino
    device = CountingDevice(image)
    found = await InodeNames(await Volume.open(device)).find({ino: 1}, [])
    assert found == {ino: {Link(directory, b"f7")}}
    soon = device.count
    # A second name, which it does not have, takes a look at every directory.
    await InodeNames(await Volume.open(device)).find({ino: 2}, [])
    assert soon < 150_000 and device.count - soon > 2 * soon


async def test_directories_are_found_by_what_is_above(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image))
    names = InodeNames(volume)
    above, below = (await at(volume, "d2")).ino, (await at(volume, "d2", "s4")).ino
    assert await names.above(below) == Link(above, b"s4")
    assert await names.above(above) == Link(2, b"d2")
    assert await names.above(2) is None


async def test_an_inode_without_a_name_is_found_nowhere(image: bytes) -> None:
    volume = await Volume.open(MemoryDevice(image))
    assert await InodeNames(volume).find({1000: 1}, [2]) == {1000: set()}
