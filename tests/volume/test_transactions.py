"""Operations that change something happen whole or not at all: in process, over a device that fails or pauses."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio

from mystfuse.devices.device import Extent
from mystfuse.errors import CorruptFilesystem, IntegrityError, MystfuseError
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import EXT2_INDEX_FL, EXT2_ROOT_INO
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.rename import RENAME_EXCHANGE
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import MemoryDevice, assert_clean, merged

ROOT = Caller(0, 0)
LIMIT = 64 << 20
LONG_TARGET = b"t" * 200

Operation = Callable[[Volume], Awaitable[object]]


class GatedDevice(MemoryDevice):
    """A device that can fail its nth read, or hold its reads until they are let go."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        self.failing: int | None = None
        self.has_failed = False
        self.gate: trio.Event | None = None
        self.waiting = trio.Event()

    async def read(self, extents: Sequence[Extent], quietly: bool = False) -> list[memoryview]:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        if self.failing is not None and self.reads > self.failing:
            self.has_failed = True
            raise IntegrityError("injected")
        return await super().read(extents)


@pytest.fixture(scope="module", params=[1024, 4096])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bare file system with a bit of everything, an indexed directory among it."""
    directory = tmp_path_factory.mktemp("transactions")
    source = directory / "source"
    (source / "many").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "full").mkdir()
    (source / "full/inner").mkdir()
    for number in range(400):
        (source / f"many/a-name-of-some-length-{number:04}").touch()
    (source / "small").write_bytes(b"small file\n")
    (source / "large").write_bytes(bytes(range(256)) * 4 * 700)
    os.link(source / "small", source / "hard")
    (source / "long").symlink_to("x" * 100)
    os.setxattr(source / "small", "user.big", b"v" * 300)
    path = directory / "image"
    run("mke2fs", "-q", "-F", "-t", "ext2", "-b", str(request.param), "-N", "1024", "-d", source, path, "8M")
    run("e2fsck", "-fyD", path, check=False)
    return path.read_bytes()


async def open_volume(image: bytes, limit: int = LIMIT) -> tuple[Volume, GatedDevice]:
    device = GatedDevice(image)
    return await Volume.open(device, limit), device


async def find(volume: Volume, name: bytes, parent: int = EXT2_ROOT_INO) -> Inode:
    inode = await volume.lookup(parent, name)
    assert inode is not None, name
    return inode


async def _write_over_the_end(volume: Volume) -> None:
    inode = await find(volume, b"large")
    await volume.write(inode.ino, inode.size - 100, b"w" * 30_000, ROOT)


async def _write_far_out(volume: Volume) -> None:
    inode = await find(volume, b"small")
    block_size = volume.superblock.block_size
    await volume.write(inode.ino, (12 + block_size // 4 + 5) * block_size - 10, b"f" * 20, ROOT)


async def _cut(volume: Volume) -> None:
    await volume.set_attributes((await find(volume, b"large")).ino, AttributeChanges(size=5000), ROOT)


async def _change_attributes(volume: Volume) -> None:
    changes = AttributeChanges(mode=0o640, uid=70_000, gid=80_000, atime_ns=1, mtime_ns=2)
    await volume.set_attributes((await find(volume, b"small")).ino, changes, ROOT)


async def _set_large_xattr(volume: Volume) -> None:
    await volume.set_xattr((await find(volume, b"large")).ino, b"user.x", b"x" * 500, ROOT)


async def _remove_xattr(volume: Volume) -> None:
    await volume.remove_xattr((await find(volume, b"small")).ino, b"user.big", ROOT)


async def _link(volume: Volume) -> None:
    await volume.link((await find(volume, b"large")).ino, (await find(volume, b"many")).ino, b"other", ROOT)


async def _rename_across(volume: Volume) -> None:
    many, full = await find(volume, b"many"), await find(volume, b"full")
    await volume.rename(full.ino, b"inner", many.ino, b"inner", 0, ROOT)


async def _exchange(volume: Volume) -> None:
    full = await find(volume, b"full")
    await volume.rename(full.ino, b"inner", EXT2_ROOT_INO, b"small", RENAME_EXCHANGE, ROOT)


async def _remove_and_release(volume: Volume) -> None:
    inode = await volume.remove(EXT2_ROOT_INO, b"large", False)
    if inode.ino in volume.orphans:
        await volume.release(inode.ino)


async def _create_in_indexed(volume: Volume) -> None:
    await volume.create((await find(volume, b"many")).ino, b"n" * 250, stat.S_IFREG | 0o644, ROOT)


OPERATIONS: dict[str, Operation] = {
    "create": lambda volume: volume.create(EXT2_ROOT_INO, b"new", stat.S_IFREG | 0o644, ROOT),
    "create in an indexed directory": _create_in_indexed,
    "mkdir": lambda volume: volume.create(EXT2_ROOT_INO, b"new", stat.S_IFDIR | 0o755, ROOT),
    "long symlink": lambda volume: volume.create(EXT2_ROOT_INO, b"new", stat.S_IFLNK | 0o777, ROOT, target=LONG_TARGET),
    "link": _link,
    "unlink": lambda volume: volume.remove(EXT2_ROOT_INO, b"hard", False),
    "unlink and release": _remove_and_release,
    "rmdir": lambda volume: volume.remove(EXT2_ROOT_INO, b"empty", True),
    "rename over a file": lambda volume: volume.rename(EXT2_ROOT_INO, b"small", EXT2_ROOT_INO, b"large", 0, ROOT),
    "rename a directory elsewhere": _rename_across,
    "exchange": _exchange,
    "write over the end": _write_over_the_end,
    "write far out": _write_far_out,
    "truncate": _cut,
    "set attributes": _change_attributes,
    "set xattr": _set_large_xattr,
    "remove xattr": _remove_xattr,
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_that_meets_damage_anywhere_leaves_nothing_behind(
    name: str, image: bytes, tmp_path: Path
) -> None:
    failures = 0
    for failing in range(40):
        volume, device = await open_volume(image)
        device.failing = device.reads + failing
        try:
            await OPERATIONS[name](volume)
        except MystfuseError:
            failures += 1
            device.failing = None
            # A look-up may have removed nothing either; what was committed before the failing step is whole.
            after = await merged(volume)
            if not volume.changes:
                assert after == image
            assert_clean(after, tmp_path / "merged")
            continue
        device.failing = None
        # Removed, and its release, which met the damage, is still to come; or all is done.
        assert volume.orphans or not device.has_failed
        assert_clean(await merged(volume), tmp_path / "merged")
        if not device.has_failed:
            break
    else:
        pytest.fail("it never came to its end")
    assert failures
    assert volume.changes


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_that_is_cancelled_anywhere_happened_or_did_not(
    name: str, image: bytes, tmp_path: Path
) -> None:
    volume, device = await open_volume(image)
    await OPERATIONS[name](volume)
    steps = device.reads
    for step in range(steps):
        volume, device = await open_volume(image)
        device.gate, seen = trio.Event(), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(OPERATIONS[name], volume)
            while seen < step:
                with trio.move_on_after(0.2) as late:
                    await device.waiting.wait()
                if late.cancelled_caught:
                    break
                seen += 1
                device.waiting = trio.Event()
                device.gate.set()
                device.gate = trio.Event()
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        device.gate = None
        after = await merged(volume)
        if not volume.changes:
            assert after == image
        assert_clean(after, tmp_path / "merged")


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("free", range(5))
async def test_an_operation_without_space_leaves_nothing_behind(
    name: str, free: int, image: bytes, tmp_path: Path
) -> None:
    """With 0 to 4 blocks free, and no inode when none is."""
    volume, _ = await open_volume(image)
    filler = await volume.create(EXT2_ROOT_INO, b"filler", stat.S_IFREG | 0o644, ROOT)
    block_size = volume.superblock.block_size
    position = 0
    while (left := (await volume.statistics()).free_blocks - free) > 0:
        try:
            position += await volume.write(filler.ino, position, bytes(min(left, 64) * block_size), ROOT)
        except OSError:
            break
    # What is left is less than an indirect block and a block of data, or just as much as wanted.
    while (left := (await volume.statistics()).free_blocks) > free:
        await volume.create(EXT2_ROOT_INO, b"f%d" % left, stat.S_IFDIR | 0o755, ROOT)
    if not free:
        count = 0
        while (await volume.statistics()).free_inodes:
            # In a directory that has room for the name: no block is free any more.
            directory = (await find(volume, b"many")).ino if count % 2 else EXT2_ROOT_INO
            try:
                await volume.create(directory, b"s%d" % count, stat.S_IFLNK | 0o777, ROOT, target=b"t")
            except OSError:
                break
            count += 1
    before, changes = await merged(volume), volume.changes
    try:
        await OPERATIONS[name](volume)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        if volume.changes == changes:
            assert await merged(volume) == before
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_for_which_the_overlay_is_too_small_leaves_nothing_behind(
    name: str, image: bytes, tmp_path: Path
) -> None:
    refused = 0
    block_size = (await open_volume(image))[0].superblock.block_size
    for blocks in range(50):
        volume, _ = await open_volume(image, blocks * (block_size + 128))
        try:
            await OPERATIONS[name](volume)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            refused += 1
            if not volume.changes:
                assert volume.overlay is not None and volume.overlay.used == 0
        assert volume.overlay is not None and volume.overlay.used <= volume.overlay.limit
    assert refused


async def test_a_read_that_races_with_writes_gives_the_old_or_the_new_bytes(image: bytes) -> None:
    volume, device = await open_volume(image)
    inode = await find(volume, b"large")
    old = await volume.read(inode.ino, 0, 65536)
    device.gate = trio.Event()
    results: list[bytes] = []

    async def read() -> None:
        results.append(bytes(await volume.read(inode.ino, 0, 65536)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await device.waiting.wait()
        gate, device.gate = device.gate, None
        await volume.write(inode.ino, 4096, b"n" * 8192, ROOT)
        gate.set()
    assert results == [bytes(old[:4096]) + b"n" * 8192 + bytes(old[12288:])]


async def test_a_read_whose_blocks_are_freed_and_used_again_gives_no_bytes_of_the_other_file(image: bytes) -> None:
    volume, device = await open_volume(image)
    inode = await find(volume, b"large")
    device.gate = trio.Event()
    results: list[bytes] = []

    async def read() -> None:
        results.append(bytes(await volume.read(inode.ino, 0, 65536)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await device.waiting.wait()
        gate, device.gate = device.gate, None
        await volume.set_attributes(inode.ino, AttributeChanges(size=0), ROOT)
        other = await volume.create(EXT2_ROOT_INO, b"other", stat.S_IFREG | 0o600, ROOT)
        await volume.write(other.ino, 0, b"secret" * 200_000, ROOT)
        await volume.write(inode.ino, 60_000, b"end", ROOT)
        gate.set()
    assert results == [bytes(60_000) + b"end"]


async def test_a_reader_is_not_starved_by_a_writer(image: bytes) -> None:
    """Each attempt to read finds the mapping changed; the third holds the writer back."""
    volume, _ = await open_volume(image)
    inode = await find(volume, b"large")
    size = inode.size
    stop = False

    async def keep_truncating() -> None:
        while not stop:
            await volume.set_attributes(inode.ino, AttributeChanges(size=size // 2), ROOT)
            await volume.set_attributes(inode.ino, AttributeChanges(size=size), ROOT)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_truncating)
        for _ in range(50):
            with trio.fail_after(10):
                assert len(await volume.read(inode.ino, 0, 65536)) == 65536
        stop = True


async def test_removed_files_live_until_they_are_released_and_their_numbers_come_back_changed(
    image: bytes, tmp_path: Path
) -> None:
    volume, _ = await open_volume(image)
    before = await volume.statistics()
    inode = await find(volume, b"large")
    content = bytes(await volume.read(inode.ino, 0, 100_000))
    await volume.remove(EXT2_ROOT_INO, b"large", False)
    assert volume.orphans == {inode.ino}
    assert bytes(await volume.read(inode.ino, 0, 100_000)) == content
    await volume.write(inode.ino, 0, b"still written to", ROOT)
    assert (await volume.inode(inode.ino)).i_links_count == 0
    with pytest.raises(OSError, match="removed") as caught:
        await volume.link(inode.ino, EXT2_ROOT_INO, b"again", ROOT)
    assert caught.value.errno == errno.ENOENT
    assert_clean(await merged(volume), tmp_path / "merged")
    await volume.release(inode.ino)
    assert not volume.orphans
    after = await volume.statistics()
    assert after.free_inodes == before.free_inodes + 1
    assert after.free_blocks >= before.free_blocks + inode.size // volume.superblock.block_size
    with pytest.raises(CorruptFilesystem):
        await volume.inode(inode.ino)
    again = await volume.create(EXT2_ROOT_INO, b"new", stat.S_IFREG | 0o644, ROOT)
    assert again.ino == inode.ino and again.i_generation != inode.i_generation
    assert bytes(await volume.read(again.ino, 0, 100)) == b""


async def test_a_snapshot_is_as_of_its_opening(image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each snapshot releases what was removed, with the time.
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_000_000_000)
    volume, _ = await open_volume(image)
    large = await find(volume, b"large")
    await volume.remove(EXT2_ROOT_INO, b"large", False)
    before = await merged(volume)
    snapshot = await volume.open_image()
    await volume.release(large.ino)
    for number in range(50):
        new = await volume.create(EXT2_ROOT_INO, b"n%d" % number, stat.S_IFREG | 0o644, ROOT)
        await volume.write(new.ino, 0, b"x" * 20_000, ROOT)
    assert await snapshot.read(0, snapshot.size) == before
    assert_clean(before, tmp_path / "merged")
    pieces = [await snapshot.read(position, 777) for position in range(0, 100_000, 777)]
    assert b"".join(pieces)[:100_000] == before[:100_000]
    assert await snapshot.read(snapshot.size - 5, 100) == before[-5:] and await snapshot.read(snapshot.size, 1) == b""
    snapshot.close()
    assert await merged(volume) != before
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_free_blocks_read_as_zeros_in_the_merged_image(image: bytes) -> None:
    volume, _ = await open_volume(image)
    superblock = volume.superblock
    data = bytearray(image)
    # The last blocks of the last group are free: garbage there must not show.
    last = (superblock.s_blocks_count - 3) * superblock.block_size
    data[last : last + superblock.block_size] = b"garbage!" * (superblock.block_size // 8)
    volume, _ = await open_volume(bytes(data))
    assert await merged(volume) == image
    # Nor when the block is taken and only half of it is written.
    filler = await volume.create(EXT2_ROOT_INO, b"filler", stat.S_IFREG | 0o644, ROOT)
    position = 0
    while (await volume.statistics()).free_blocks > 4:
        position += await volume.write(filler.ino, position + superblock.block_size - 1, b"x", ROOT)
        position += superblock.block_size - 1
    for start in range(0, position, 1 << 20):
        assert b"garbage" not in bytes(await volume.read(filler.ino, start, 1 << 20))


async def test_a_linear_change_takes_the_index_flag_from_a_directory(image: bytes, tmp_path: Path) -> None:
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    if not many.i_flags & EXT2_INDEX_FL:
        pytest.skip("one block is never indexed")
    for number in range(300):
        await volume.create(many.ino, b"added-%d" % number, stat.S_IFREG | 0o644, ROOT)
    assert not (await volume.inode(many.ino)).i_flags & EXT2_INDEX_FL
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_names_come_and_go_in_a_large_directory_as_in_a_dictionary(image: bytes, tmp_path: Path) -> None:
    """The in-memory index and the room it knows of, through growth, removal and reuse."""
    chance = random.Random(1)
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    small = await find(volume, b"small")
    names: set[bytes] = {b"a-name-of-some-length-%04d" % number for number in range(400)}
    added: list[bytes] = []
    for step in range(6000):
        if added and chance.random() < 0.45:
            name = added.pop(chance.randrange(len(added)))
            await volume.remove(many.ino, name, False)
            names.discard(name)
        else:
            name = b"%0*d" % (chance.choice((4, 30, 200)), step)
            await volume.link(small.ino, many.ino, name, ROOT)
            names.add(name)
            added.append(name)
    for name in chance.sample(sorted(names), 200):
        assert await volume.lookup(many.ino, name)
    assert not await volume.lookup(many.ino, b"never")
    listed: set[bytes] = set()
    offset = 0
    while offset < (await volume.inode(many.ino)).size:
        entries, offset = await volume.entries(many.ino, offset, 100)
        assert not listed & {entry.name for entry, _ in entries}
        listed |= {entry.name for entry, _ in entries}
    assert listed == names
    full = sum(12 + len(name) for name in names)
    assert (await volume.inode(many.ino)).size < 2.5 * full
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_renaming_makes_a_directory_longer_and_leaves_it_usable(image: bytes, tmp_path: Path) -> None:
    """Found once: the new block was entered into the name index twice, before the commit and after it."""
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    size = many.size
    for number in range(400):
        old = b"a-name-of-some-length-%04d" % number
        await volume.rename(many.ino, old, many.ino, b"%0200d" % number, 0, ROOT)
        await volume.create(many.ino, b"%0100d" % number, stat.S_IFREG | 0o644, ROOT)
    assert (await volume.inode(many.ino)).size > 2 * size
    for number in range(400):
        assert await volume.lookup(many.ino, b"%0200d" % number)
        assert not await volume.lookup(many.ino, b"a-name-of-some-length-%04d" % number)
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.parametrize("step", [1, 2, 7])
async def test_a_listing_shows_each_name_once_whatever_is_removed_meanwhile(image: bytes, step: int) -> None:
    volume, _ = await open_volume(image)
    many = await find(volume, b"many")
    chance = random.Random(step)
    names = {b"a-name-of-some-length-%04d" % number for number in range(400)}
    seen: list[bytes] = []
    removed: set[bytes] = set()
    offset = 0
    while offset < many.size:
        entries, offset = await volume.entries(many.ino, offset, step)
        seen += [entry.name for entry, _ in entries]
        # What was just listed, and something else.
        left = sorted(names - removed)
        for name in {*(entry.name for entry, _ in entries), *chance.sample(left, min(len(left), 1))} - removed:
            await volume.remove(many.ino, name, False)
            removed.add(name)
    assert len(seen) == len(set(seen)) and removed == names


async def test_reserved_blocks_are_for_root_alone(image: bytes) -> None:
    volume, _ = await open_volume(image)
    user = Caller(1000, 1000)
    files = {}
    for name, caller in ((b"users", user), (b"roots", ROOT)):
        files[name] = await volume.create(EXT2_ROOT_INO, name, stat.S_IFREG | 0o644, caller)
        position = 0
        with pytest.raises(OSError, match="free block") as caught:
            while True:
                position += await volume.write(files[name].ino, position, bytes(1 << 20), caller)
        assert caught.value.errno == errno.ENOSPC
        left = (await volume.statistics()).free_blocks
        reserved = volume.superblock.s_r_blocks_count
        assert reserved > 100
        assert reserved <= left <= reserved + 2 if caller is user else left <= 2
    assert (await volume.statistics()).available_blocks == 0


async def test_a_write_that_fits_in_part_is_written_in_part(image: bytes) -> None:
    volume, _ = await open_volume(image, 2 << 20)
    inode = await volume.create(EXT2_ROOT_INO, b"new", stat.S_IFREG | 0o644, ROOT)
    data = os.urandom(1 << 20)
    written = [await volume.write(inode.ino, index << 20, data, ROOT) for index in range(2)]
    assert written[0] == 1 << 20 and 0 < written[1] < 1 << 20
    with pytest.raises(OSError, match="overlay is full") as caught:
        while True:
            written.append(await volume.write(inode.ino, sum(written), data, ROOT))
    assert caught.value.errno == errno.ENOSPC
    total = sum(written)
    assert bytes(await volume.read(inode.ino, 0, 3 << 20)) == (data * 3)[:total]
    # What is there can be overwritten, read and removed.
    assert await volume.write(inode.ino, 0, data[::-1], ROOT) == len(data)
    await volume.remove(EXT2_ROOT_INO, b"new", False)
    await volume.release(inode.ino)
    assert volume.overlay is not None and volume.overlay.used < 100_000
