"""The log's lines about damage name what it belongs to, and the path is looked for without harm to anything else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from mystfuse.devices.crypt import CryptDevice
from mystfuse.devices.damaged_blocks import DamagedBlocks
from mystfuse.devices.device import Extent
from mystfuse.errors import IntegrityError, MystfuseError
from mystfuse.ext2.caller import ROOT as CALLER
from mystfuse.volume import damaged_paths
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import ROOT, Editor, MemoryDevice, at, listed, make_image

SIZE = 1024


class TellingDevice(MemoryDevice):
    """Keeps the lines that are reported for the log."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.lines: list[str] = []
        self.reads = 0

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.reads += 1
        try:
            return await super().read(extents)
        except IntegrityError as error:
            bad = [
                Extent(low, high - low)
                for extent in extents
                for damage in self.damaged
                if (low := max(extent.offset, damage.start)) < (high := min(extent.end, damage.stop))
            ]
            damaged = DamagedBlocks(
                "it is corrupted", "a detail", [], bad, lambda damage: self.lines.append(str(damage))
            )
            if not quietly:
                damaged.report()
            raise damaged from error


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Editor:
    directory = tmp_path_factory.mktemp("damage-names")
    tree = directory / "tree"
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "usr/lib/large").write_bytes(os.urandom(400 << 10))
    (tree / "usr/new\nline").write_bytes(b"x" * 3000)
    for number in range(60):
        (tree / f"usr/lib/name-{number:04}-{'n' * 20}").touch()
    os.symlink("t" * 200, tree / "usr/link")
    os.setxattr(tree / "usr/lib/large", "user.note", bytes(500))
    path = make_image(directory / "image", "-b", "1024", "-I", "128", "-N", "128", size="4M", tree=tree)
    return Editor(path.read_bytes())


async def ino_of(editor: Editor, *path: str) -> int:
    volume = await Volume.open(MemoryDevice(editor.data))
    return (await at(volume, *path)).ino


def damage(device: TellingDevice, *blocks: int) -> TellingDevice:
    device.damaged = [range(block // SIZE * SIZE, block // SIZE * SIZE + SIZE) for block in blocks]
    return device


async def test_data_is_named_by_inode_and_bytes(editor: Editor) -> None:
    ino = await ino_of(editor, "usr", "lib", "large")
    device = damage(TellingDevice(editor.data), editor.block(ino, 3), editor.block(ino, 4), editor.block(ino, 7))
    volume = await Volume.open(device)
    with pytest.raises(IntegrityError):
        await volume.read(ino, 1000, 20_000)
    assert device.lines == [f"it is corrupted (inode {ino}, bytes 3072-5119, 7168-8191; a detail)"]
    # Of the blocks, what was asked for.
    with pytest.raises(IntegrityError):
        await volume.read(ino, 3100, 10)
    assert device.lines[1] == f"it is corrupted (inode {ino}, bytes 3100-3109; a detail)"


async def test_each_structure_is_named(editor: Editor) -> None:
    large, usr, lib, link = [await ino_of(editor, *path.split("/")) for path in
                             ("usr/lib/large", "usr", "usr/lib", "usr/link")]  # fmt: skip
    per_block = SIZE // editor.inode_size
    low = (large - 1) // per_block * per_block + 1
    descriptor = editor.descriptor()
    bitmap = editor.get("<I", descriptor) * SIZE
    acl = editor.get("<I", editor.inode(large) + 104) * SIZE
    assert acl
    cases: list[tuple[int, Callable[[Volume], object], str]] = [
        (editor.block(large, 12), lambda volume: volume.read(large, 20 * SIZE, 9), f"indirect block of inode {large}"),
        (editor.block(usr), lambda volume: at(volume, "usr", "link"), f"directory inode {usr}"),
        (editor.block(lib, 1), lambda volume: at(volume, "usr", "lib", "missing"), f"directory inode {lib}"),
        (editor.block(ROOT), lambda volume: at(volume, "usr"), "directory inode 2, /"),
        (editor.block(link), lambda volume: volume.target(link), f"target of symbolic link inode {link}"),
        (acl, lambda volume: volume.xattrs(large), f"extended attributes of inode {large}"),
        (editor.inode(large), lambda volume: volume.inode(large),
         f"inode table of group 0, inodes {low}-{low + per_block - 1}, for inode {large}"),
        (descriptor, lambda volume: volume.inode(large), "group descriptors, of group 0"),
    ]  # fmt: skip
    for position, action, expected in cases:
        device = damage(TellingDevice(editor.data), position)
        volume = await Volume.open(device)
        with pytest.raises(IntegrityError):
            await action(volume)  # type: ignore[misc]
        assert device.lines == [f"it is corrupted ({expected}; a detail)"]
    device = damage(TellingDevice(editor.data), bitmap)
    volume = await Volume.open(device, overlay_limit=1 << 20)
    with pytest.raises((MystfuseError, OSError)):
        await volume.create(ROOT, b"new", 0o100644, CALLER)
        await volume.write((await at(volume, "new")).ino, 0, b"x", CALLER)
    assert set(device.lines) == {"it is corrupted (block bitmap of group 0; a detail)"}


async def test_the_merged_image_names_bytes_and_structures(editor: Editor) -> None:
    ino = await ino_of(editor, "usr", "lib", "large")
    for position, expected in (
        (editor.block(ino, 2), f"bytes {editor.block(ino, 2)}-{editor.block(ino, 2) + SIZE - 1}"),
        (editor.inode(ino), "inode table of group 0"),
    ):
        device = damage(TellingDevice(editor.data), position)
        volume = await Volume.open(device)
        image = await volume.open_image()
        with pytest.raises(IntegrityError):
            await image.read(position // SIZE * SIZE, SIZE)
        image.close()
        (line,) = device.lines
        assert line.startswith("it is corrupted (the merged image, ") and expected in line


async def test_offsets_of_a_payload_are_those_of_the_file_system(editor: Editor) -> None:
    """Above a crypt device, damage keeps its place in files."""

    class Copy:
        def decrypt_into(self, data: memoryview, sector: int, target: memoryview) -> None:
            target[:] = data

    ino, offset = await ino_of(editor, "usr", "lib", "large"), 8192
    device = damage(TellingDevice(bytes(offset) + bytes(editor.data)), offset + editor.block(ino, 5))
    volume = await Volume.open(CryptDevice(device, Copy(), offset, len(editor.data), 512))  # type: ignore[arg-type]
    with pytest.raises(IntegrityError):
        await volume.read(ino, 0, 10 * SIZE)
    assert device.lines == [f"it is corrupted (inode {ino}, bytes {5 * SIZE}-{6 * SIZE - 1}; a detail)"]


# Paths


@contextmanager
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(damaged_paths, "_GATHERING", 0.01)
    yield


async def search(
    volume: Volume, action: Callable[[], object], caplog: pytest.LogCaptureFixture, count: int
) -> list[str]:
    """The lines that a search for paths logs, after an action that meets damage."""
    caplog.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volume.name_damaged)
        await action()  # type: ignore[misc]
        with trio.fail_after(20):
            while len(caplog.messages) < count:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return caplog.messages


def failing(volume: Volume, *inos: int) -> Callable[[], object]:
    async def read() -> None:
        for ino in inos:
            with pytest.raises(IntegrityError):
                await volume.read(ino, 0, SIZE)

    return read


@pytest.mark.logs(r"^mystfuse\.volume\.damaged_paths: inode ")
async def test_the_path_is_found_and_in_later_lines(
    editor: Editor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, other = await ino_of(editor, "usr", "lib", "large"), await ino_of(editor, "usr", "new\nline")
    device = damage(TellingDevice(editor.data), editor.block(large), editor.block(other))
    volume = await Volume.open(device, overlay_limit=1 << 20)
    with quick(monkeypatch):
        said = await search(volume, failing(volume, large, other), caplog, 2)
    # One search for both.
    assert sorted(said) == sorted([f"inode {large} is /usr/lib/large", f"inode {other} is /usr/new\\nline"])
    assert all(record.levelno == logging.ERROR for record in caplog.records)
    device.lines.clear()
    await failing(volume, large)()  # type: ignore[misc]
    assert device.lines == [f"it is corrupted (inode {large}, /usr/lib/large, bytes 0-1023; a detail)"]
    # Names may have changed: it is looked for again.
    usr = (await at(volume, "usr")).ino
    await volume.rename((await at(volume, "usr", "lib")).ino, b"large", usr, b"moved", 0, CALLER)
    with quick(monkeypatch):
        assert await search(volume, failing(volume, large), caplog, 1) == [f"inode {large} is /usr/moved"]
    # And one that has none is not looked for in vain again.
    await volume.remove(usr, b"moved", False)
    with quick(monkeypatch):
        assert await search(volume, failing(volume, large), caplog, 1) == [f"inode {large} has no name"]
        caplog.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.name_damaged)
            await failing(volume, large)()  # type: ignore[misc]
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
    assert not caplog.messages


@pytest.mark.logs(r"^mystfuse\.volume\.damaged_paths: inode ")
@pytest.mark.parametrize("bound", ["MAX_BLOCKS", "MAX_DIRECTORIES", "MAX_SECONDS"])
async def test_a_search_ends_at_its_bounds(
    bound: str, editor: Editor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damaged_paths, bound, 1 if bound != "MAX_SECONDS" else 0.0)
    large = await ino_of(editor, "usr", "lib", "large")
    device = damage(TellingDevice(editor.data), editor.block(large))
    volume = await Volume.open(device)
    with quick(monkeypatch):
        (line,) = await search(volume, failing(volume, large), caplog, 1)
    assert line.startswith(f"inode {large}: no path found in ") and line.endswith("verify --files names it")


@pytest.mark.logs(r"^mystfuse\.volume\.damaged_paths: inode ")
async def test_damage_that_a_search_meets_is_not_reported(
    editor: Editor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, lib = await ino_of(editor, "usr", "lib", "large"), await ino_of(editor, "usr", "lib")
    usr = editor.block(await ino_of(editor, "usr"))
    blocks = [editor.block(lib, index) for index in range(3)]
    device = damage(TellingDevice(editor.data), editor.block(large), *blocks)
    volume = await Volume.open(device)
    with quick(monkeypatch):
        (line,) = await search(volume, failing(volume, large), caplog, 1)
    assert line.startswith(f"inode {large}: no path found")
    assert device.lines == [f"it is corrupted (inode {large}, bytes 0-1023; a detail)"]
    # Nor does what it reads take room in the cache of the requests.
    assert volume.cache.get(usr // SIZE) is None
    await at(volume, "usr", "link")
    assert volume.cache.get(usr // SIZE) is not None


@pytest.mark.logs(r"^mystfuse\.volume\.damaged_paths: inode ")
@pytest.mark.parametrize("option", ["filetype", "^filetype,^dir_index"])
async def test_directories_in_a_circle_end_the_search(
    option: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in a directory for a directory above it, and without file types a name for a file."""
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "tree/a/file").write_bytes(b"x" * 100)
    image = make_image(tmp_path / "image", "-b", "1024", "-O", option, tree=tmp_path / "tree")
    editor = Editor(image.read_bytes())
    a, file = await ino_of(editor, "a"), await ino_of(editor, "a", "file")
    b = await ino_of(editor, "a", "b")
    run("debugfs", "-w", "-R", f"link <{a}> a/b/circle", image)
    data = image.read_bytes()
    device = damage(TellingDevice(data), editor.block(file))
    volume = await Volume.open(device, overlay_limit=1 << 20)
    assert {name for name, _ in await listed(volume, b)} == {b"circle"}
    await volume.remove(a, b"file", False)
    with quick(monkeypatch):
        (line,) = await search(volume, failing(volume, file), caplog, 1)
    assert line == f"inode {file} has no name"
