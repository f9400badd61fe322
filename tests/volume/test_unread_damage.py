"""Damage that no program has read has no effect: it is not counted or logged, and ends no mount. Each read of damage
counts once, and each block is logged once."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Extent, PendingRead, read_now
from mystfuse.errors import IntegrityError
from mystfuse.mounting.mount_table import find_mount
from mystfuse.volume.file_reader import Reader
from mystfuse.volume.volume import Volume
from tests.support.commands import mystfuse, wait_until
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, at, listed, make_image
from tests.support.mounts import caches_kept, clear_mount, logged
from tests.support.verity_images import MemoryDevice as UnverifiedDevice
from tests.support.verity_images import build, device_over

PAGE = 4096

# The device


class CachedDevice(UnverifiedDevice):
    """All of it is in the page cache."""

    def begin(self, extents: Sequence[Extent]) -> PendingRead:  # type: ignore[override]
        return lambda: [memoryview(bytes(self.content[extent.offset : extent.end])) for extent in extents]


@pytest.mark.logs(r"^mystfuse\.devices\.verity")
@pytest.mark.parametrize("what", ["data", "hash block", "root"])
async def test_only_a_needed_read_reports_damage_each_time_and_logs_it_once(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = build(300)
    path = image.path(7)
    position = {"data": 7 * PAGE, "hash block": path[0].start + 7 * 32, "root": path[-1].start}[what]
    image.content[position] ^= 1
    device = device_over(CachedDevice(image.content), image)
    told: list[IntegrityError] = []
    device.on_damage = told.append
    wanted = [Extent(7 * PAGE + 5, 10)]
    assert read_now(device, wanted) is None
    with pytest.raises(IntegrityError):
        await device.read(wanted, quietly=True)
    assert not told and not device.blocks_failed and not caplog.records
    for count in (1, 2, 3):
        with pytest.raises(IntegrityError) as caught:
            await device.read(wanted)
        assert told[-1] is caught.value and len(told) == device.blocks_failed == count
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.ERROR
    # Another block is logged, together with the old one too.
    image.content[8 * PAGE] ^= 1
    if what == "data":
        with pytest.raises(IntegrityError, match="data blocks 7, 8 "):
            await device.read([Extent(7 * PAGE, 2 * PAGE)])
        assert device.blocks_failed == 5 and len(caplog.records) == 2


# The file system


class TellingDevice(MemoryDevice):
    """Records the damage that a reporting read met."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.told: list[int] = []
        self.quiet = 0

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        try:
            return await super().read(extents)
        except IntegrityError as error:
            self.quiet += 1
            start = self.damaged[0].start
            met = [extent.offset for extent in extents if extent.offset <= start < extent.end]

            def told(damage: DamagedBlocks) -> None:
                self.quiet -= 1
                self.told += met

            damage = DamagedBlocks(str(error), "", [], [Extent(start, len(self.damaged[0]))], told)
            if not quietly:
                damage.report()
            raise damage from error

    def damage(self, position: int, length: int = 1024) -> None:
        self.damaged = [range(position, position + length)]


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    """Blocks of 1 KiB: an inode-table block has four inodes, an indirect block reaches 256 KiB."""
    directory = tmp_path_factory.mktemp("unread")
    (directory / "tree").mkdir()
    for number in range(60):
        (directory / f"tree/f{number}").touch()
    (directory / "tree/large").write_bytes(os.urandom(2 << 20))
    path = make_image(directory / "image", "-b", "1024", "-I", "256", "-N", "96", size="8M", tree=directory / "tree")
    return Editor(path.read_bytes())


async def test_a_damaged_neighbour_in_the_inode_table_is_reported_to_its_own_lookup(editor: Editor) -> None:
    device = TellingDevice(editor.data)
    volume = await Volume.open(device)
    ino = (await at(volume, "f40")).ino
    other = (await at(volume, "f50")).ino
    block = editor.inode(ino) // 1024 * 1024
    assert editor.inode(other) // 1024 * 1024 != block
    device.damage(block)
    volume = await Volume.open(device)
    assert (await at(volume, "f50")).ino == other
    assert device.quiet and not device.told
    with pytest.raises(IntegrityError):
        await at(volume, "f40")
    assert device.told == [block]


async def test_a_listing_of_names_tells_of_no_inode(editor: Editor) -> None:
    device = TellingDevice(editor.data)
    volume = await Volume.open(device)
    names = {name for name, _ in await listed(volume, ROOT)}
    block = editor.inode((await at(volume, "f40")).ino) // 1024 * 1024
    device.damage(block)
    volume = await Volume.open(device)
    found = dict(await listed(volume, ROOT))
    assert found.keys() == names and found[b"f40"] is None and found[b"f50"] is not None
    assert device.quiet and not device.told
    with pytest.raises(IntegrityError):
        await at(volume, "f40")
    assert device.told == [block]


async def test_a_damaged_indirect_block_is_reported_to_reads_of_its_blocks(editor: Editor) -> None:
    device = TellingDevice(editor.data)
    ino = (await at(await Volume.open(device), "large")).ino
    # The first of the double-indirect ones: for the second 256 KiB.
    table = editor.block(ino, 13)
    second = editor.get("<I", table) * 1024
    device.damage(second)
    volume = await Volume.open(device)
    first, start = 12 * 1024, (12 + 256) * 1024
    assert len(await volume.read(ino, first, 64 << 10)) == 64 << 10
    assert len(await volume.read(ino, start + (256 << 10), 64 << 10)) == 64 << 10
    assert device.quiet and not device.told
    reader = Reader()
    # The kernel reads ahead, and then asks for the needed pages.
    with pytest.raises(IntegrityError):
        await volume.read(ino, start - PAGE, 8 * PAGE, reader, is_ahead=True)
    assert not device.told
    assert len(await volume.read(ino, start - PAGE, PAGE, reader)) == PAGE
    assert not device.told
    with pytest.raises(IntegrityError):
        await volume.read(ino, start, PAGE, reader)
    assert device.told == [second]


async def test_what_is_asked_for_again_is_needed_however_long_it_is(editor: Editor) -> None:
    """Kernels that read a file's pages in larger units do not ask for single ones."""
    device = TellingDevice(editor.data)
    ino = (await at(await Volume.open(device), "large")).ino
    device.damage(editor.block(ino, 5))
    volume = await Volume.open(device)
    reader = Reader()
    with pytest.raises(IntegrityError):
        await volume.read(ino, 0, 16 * PAGE, reader, is_ahead=True)
    assert not device.told
    with pytest.raises(IntegrityError):
        await volume.read(ino, 0, 4 * PAGE, reader, is_ahead=True)
    assert device.told
    # Without a reader, the kernel does not say that more will follow.
    told = len(device.told)
    with pytest.raises(IntegrityError):
        await volume.read(ino, 0, 16 * PAGE, is_ahead=True)
    assert len(device.told) == told + 1


# Mounts

SMALL, LARGE = 20_000, 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unread-image")
    (directory / "tree").mkdir()
    (directory / "tree/small").write_bytes(os.urandom(SMALL))
    (directory / "tree/large").write_bytes(os.urandom(LARGE))
    for number in range(60):
        (directory / f"tree/f{number}").touch()
    result = mystfuse("mkext2", "--block-size=4096", directory / "tree", directory / "image")
    assert result.returncode == 0, result.stderr
    return directory / "image"


Damage = Callable[[bytearray, Path], int]
"""The position of the byte to damage."""


@contextmanager
def damaged_mount(image: Path, where: Damage, tmp_path: Path, *options: str) -> Iterator[tuple[Path, Path]]:
    """A mount of a copy with one byte changed; yields the mountpoint and the log."""
    copy, mountpoint, log = tmp_path / "image", tmp_path / "mount", tmp_path / "log"
    data = bytearray(image.read_bytes())
    data[where(data, image.parent / "tree")] ^= 1
    copy.write_bytes(data)
    mountpoint.mkdir()
    try:
        result = mystfuse("mount", f"--log-file={log}", *options, copy, mountpoint)
        assert result.returncode == 0, result.stderr
        yield mountpoint, log
    finally:
        clear_mount(mountpoint)


def failed(mountpoint: Path) -> int:
    return int(json.loads((mountpoint / ".mystfuse/status.json").read_text())["blocks_failed"])


def in_file(name: str, offset: int) -> Damage:
    return lambda data, tree: data.index((tree / name).read_bytes()[offset // PAGE * PAGE :][:PAGE])


def in_inode_table(data: bytearray, tree: Path) -> int:
    """The last used block of the table, not the root's."""
    return Editor(data).inode(60)


def open_only(mountpoint: Path) -> None:
    with (mountpoint / "small").open("rb"):
        pass


def read_the_beginning(mountpoint: Path) -> None:
    with (mountpoint / "large").open("rb", buffering=0) as file:
        assert len(file.read(PAGE)) == PAGE


UNREAD: dict[str, tuple[Damage, Callable[[Path], object]]] = {
    "a small file is opened": (in_file("small", PAGE), open_only),
    "a long file is read in front of it": (in_file("large", 2 * PAGE), read_the_beginning),
    "names are listed": (in_inode_table, lambda mountpoint: os.listdir(mountpoint)),
}


@pytest.mark.parametrize("case", UNREAD)
def test_unread_damage_ends_no_mount_and_is_not_in_the_log(case: str, image: Path, tmp_path: Path) -> None:
    where, use = UNREAD[case]
    with caches_kept(), damaged_mount(image, where, tmp_path, "--on-corruption=unmount") as (mountpoint, log):
        for _ in range(3):
            use(mountpoint)
        assert failed(mountpoint) == 0
        assert "digest" not in logged(mountpoint, log)
        assert find_mount(str(mountpoint))


@pytest.mark.parametrize(("name", "offset"), [("small", PAGE), ("large", 5 * PAGE), ("large", LARGE - PAGE)])
def test_damage_that_is_read_counts_once_a_read_and_is_logged_once(
    name: str, offset: int, image: Path, tmp_path: Path
) -> None:
    content = (image.parent / "tree" / name).read_bytes()
    with caches_kept(), damaged_mount(image, in_file(name, offset), tmp_path) as (mountpoint, log):
        with (mountpoint / name).open("rb", buffering=0) as file:
            # Up to the damage: the kernel has met it, and reports it when a program asks for that page.
            assert os.pread(file.fileno(), 3 * PAGE, offset - PAGE) == content[offset - PAGE : offset]
            assert failed(mountpoint) == 1
            for count in (2, 3):
                with pytest.raises(OSError) as caught:
                    os.pread(file.fileno(), PAGE, offset)
                assert caught.value.errno == errno.EIO
                assert failed(mountpoint) == count
            # Everything in front of it, and nothing else.
            assert os.pread(file.fileno(), offset, 0) == content[:offset]
            assert failed(mountpoint) == 3
        assert logged(mountpoint, log).count(" is corrupted") == 1


def test_damage_that_is_read_ends_the_mount_that_is_to_end(image: Path, tmp_path: Path) -> None:
    where = in_file("small", PAGE)
    with damaged_mount(image, where, tmp_path, "--on-corruption=unmount") as (mountpoint, log):
        with pytest.raises(OSError):
            (mountpoint / "small").read_bytes()
        wait_until(lambda: find_mount(str(mountpoint)) is None)
        wait_until(lambda: "unmounting because of damage" in log.read_text())
