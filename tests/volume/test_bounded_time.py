"""Huge directories and files never block other tasks."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.setattr import AttributeChanges
from mystfuse.volume.volume import Volume
from tests.support.ext2_editor import ROOT, FileDevice, make_image
from tests.support.huge_images import FIRST_INO, name_of
from tests.support.limits import NAMES

LONGEST_STEP = 0.5
"""Seconds of processor time for which a task may keep the event loop; a tenth of it is usual."""
CALLER = Caller(0, 0)


class Steps(trio.abc.Instrument):
    """Measures how long tasks keep the event loop, in seconds of processor time."""

    longest = 0.0
    _began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)


def in_steps(work: Callable[[], Awaitable[None]]) -> float:
    """Run a coroutine; returns the seconds of its longest step."""
    steps = Steps()

    async def main() -> None:
        await work()

    # What other tests have left is not looked through by the collector meanwhile.
    gc.collect()
    gc.freeze()
    try:
        trio.run(main, instruments=[steps])
    finally:
        gc.unfreeze()
    return steps.longest


def test_a_huge_directory_blocks_no_other_task(crowded: Path) -> None:
    """A regression: it sorted the names in one step, a second for a million of them."""

    async def work() -> None:
        volume = await Volume.open(FileDevice(crowded), 64 << 20)
        for number in (NAMES - 1, 0, NAMES // 2):
            inode = await volume.lookup(FIRST_INO, name_of(number))
            await trio.lowlevel.checkpoint()
            assert inode is not None and inode.ino == FIRST_INO + 1 + number
        assert await volume.lookup(FIRST_INO, b"none") is None
        for number in range(200):
            await volume.create(FIRST_INO, b"new%d" % number, 0o100644, CALLER)
            assert await volume.lookup(FIRST_INO, b"new%d" % number)
            await trio.lowlevel.checkpoint()
        index = volume._filesystem.name_indexes._indexes[FIRST_INO]
        size = sum(keys.itemsize * len(keys) for keys in index._keys) + len(index._room)
        assert size < 9 * len(index) and len(index) == NAMES + 200
        names, offset, end = 0, 0, (await volume.inode(FIRST_INO)).size
        while offset < end:
            entries, offset = await volume.entries(FIRST_INO, offset, 512)
            names += len(entries)
            await trio.lowlevel.checkpoint()
        assert names == NAMES + 200

    longest = in_steps(work)
    print(f"\nlongest step {longest * 1000:.0f} ms")
    assert longest < LONGEST_STEP


def test_a_huge_sparse_file_blocks_no_other_task(tmp_path: Path) -> None:
    """Blocks at the ends of all levels of indirection are looked up, truncated and released."""
    path = make_image(tmp_path / "image", "-b", "4096", size="32M")

    async def work() -> None:
        volume = await Volume.open(FileDevice(path), 64 << 20)
        inode = await volume.create(ROOT, b"sparse", 0o100644, CALLER)
        end = 2_196_000_000_000
        for offset in (0, 48 << 10, 4 << 20, 5 << 30, 1 << 40, end - 1):
            assert await volume.write(inode.ino, offset, b"x", CALLER) == 1
        assert bytes(await volume.read(inode.ino, end - 1, 10)) == b"x"
        assert not any(await volume.read(inode.ino, (1 << 40) + 4096, 1 << 20))
        data = position = 0
        while position < end:
            stretch = await volume.stretch(inode.ino, position)
            data += stretch.is_data
            position += stretch.length
        assert data == 6
        await volume.set_attributes(inode.ino, AttributeChanges(size=1), CALLER)
        await volume.set_attributes(inode.ino, AttributeChanges(size=end), CALLER)
        await volume.remove(ROOT, b"sparse", False)
        await volume.release(inode.ino)
        assert not volume.orphans

    longest = in_steps(work)
    print(f"\nlongest step {longest * 1000:.0f} ms")
    assert longest < LONGEST_STEP


async def test_a_rename_far_below_lets_others_have_their_turns(tmp_path: Path) -> None:
    volume = await Volume.open(
        FileDevice(make_image(tmp_path / "image", "-b", "1024", "-O", "^dir_index", size="8M")), 64 << 20
    )
    parent = ROOT
    for _ in range(1000):
        parent = (await volume.create(parent, b"d", 0o40755, CALLER)).ino
    await volume.create(parent, b"file", 0o100644, CALLER)
    turns = 0

    async def count(done: trio.Event) -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        done = trio.Event()
        nursery.start_soon(count, done)
        await volume.rename(parent, b"file", ROOT, b"file", 0, CALLER)
        done.set()
    # One step for every hundred directories; the order of tasks decides whether one comes first or last.
    assert turns >= 9
    assert await volume.lookup(ROOT, b"file")


async def test_a_directory_that_grows_large_gets_the_index_of_a_large_one(tmp_path: Path) -> None:
    """A regression: one array for ever, sorted as a whole again and again."""
    volume = await Volume.open(
        FileDevice(make_image(tmp_path / "image", "-b", "1024", "-O", "^dir_index", size="8M")), 64 << 20
    )
    directory = (await volume.create(ROOT, b"d", 0o40755, CALLER)).ino
    for number in range(300):
        await volume.create(directory, b"%0250d" % number, 0o100644, CALLER)
    assert (await volume.inode(directory)).size > 80 << 10
    for number in range(300):
        assert await volume.lookup(directory, b"%0250d" % number)
    assert volume._filesystem.name_indexes._indexes[directory].bits > 0
