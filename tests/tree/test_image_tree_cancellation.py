"""``ImageTree`` is imported without trio, can be cancelled, and lets others run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from mystfuse.tree.extract import extract
from mystfuse.tree.image_tree import ImageTree
from mystfuse.tree.tar import write_tar
from mystfuse.trust.policy import trust_without_tree
from mystfuse.volume.volume import Volume
from tests.support.commands import run
from tests.support.ext2_editor import Editor, MemoryDevice, make_image


def test_the_package_is_imported_without_trio() -> None:
    code = (
        "import sys, mystfuse, mystfuse.cli.main; mystfuse.NotTrusted; assert 'trio' not in sys.modules;"
        "assert {'open_image', 'IntegrityError'} <= set(dir(mystfuse)); from mystfuse import open_image;"
        "assert 'trio' in sys.modules and 'pyfuse3' not in sys.modules;"
        "exec('try:\\n mystfuse.nonsense\\nexcept AttributeError: pass\\nelse: raise SystemExit(1)')"
    )
    run(sys.executable, "-c", code)


async def drain(iterator: AsyncIterator[object]) -> None:
    async for _ in iterator:
        pass


@pytest.fixture
def in_memory(tmp_path: Path) -> Editor:
    """A tree in memory, which never waits."""
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "file").write_bytes(bytes(range(256)) * 20)
    (source / "nothing").touch()
    (source / "link").symlink_to("sub/../file")
    for number in range(50):
        (source / "sub" / str(number)).touch()
    return Editor(make_image(tmp_path / "image", size="8M", tree=source).read_bytes())


OPERATIONS: dict[str, Callable[[ImageTree], Awaitable[object]]] = {
    "stat": lambda tree: tree.stat("link"),
    "lstat": lambda tree: tree.lstat("/"),
    "exists": lambda tree: tree.exists("sub/no"),
    "readlink": lambda tree: tree.readlink("link"),
    "listxattr": lambda tree: tree.listxattr("file"),
    "open": lambda tree: tree.open("file"),
    "read_file": lambda tree: tree.read_file("nothing"),
    "read inode": lambda tree: tree.open_inode(tree_inodes[tree], "file").read(),
    "read at the end": lambda tree: tree.open_inode(tree_inodes[tree], "file").pread(1 << 40, 1),
    "read nothing": lambda tree: tree.open_inode(tree_inodes[tree], "file").pread(0, 0),
    "data_ranges": lambda tree: drain(tree.open_inode(tree_inodes[tree], "file").data_ranges()),
    "scandir": lambda tree: drain(tree.scandir("sub")),
    "walk": lambda tree: drain(tree.walk("/")),
    "children": lambda tree: drain(tree.children(2)),
}
tree_inodes: dict[ImageTree, Any] = {}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_what_is_in_memory_can_be_cancelled_and_lets_others_run(name: str, in_memory: Editor) -> None:
    """No operation loops without a checkpoint, although it never waits for anything."""
    tree = ImageTree(await Volume.open(MemoryDevice(in_memory.data)), trust_without_tree())
    tree_inodes[tree] = await tree.resolve("file")
    operation, turns = OPERATIONS[name], 0
    await operation(tree)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    started = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        with trio.move_on_after(0.1) as scope:
            # A bound, should the test fail.
            while time.monotonic() < started + 5:
                await operation(tree)
        nursery.cancel_scope.cancel()
    assert scope.cancelled_caught
    assert time.monotonic() - started < 4
    assert turns > 10
    with trio.CancelScope() as scope:
        scope.cancel()
        await operation(tree)
    assert scope.cancelled_caught


@pytest.mark.parametrize("kind", ["tar", "extract"])
async def test_long_jobs_on_what_is_in_memory_let_others_run(kind: str, tmp_path: Path) -> None:
    """Many members that write nothing for a long time."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / str(number)).write_text("x")
    image = Editor(make_image(tmp_path / "image", size="8M", tree=source).read_bytes())
    tree = ImageTree(await Volume.open(MemoryDevice(image.data)), trust_without_tree())
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def write(data: bytes | bytearray) -> None:
        """A writer that takes everything at once."""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        if kind == "tar":
            await write_tar(tree, "/", write)
        else:
            await extract(tree, "/", tmp_path / "copy")
        nursery.cancel_scope.cancel()
    assert turns > 300


@pytest.mark.parametrize("end", ["refused", "cancelled"])
async def test_no_descriptor_is_left_of_an_extraction_whose_thread_never_begins(
    end: str, in_memory: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = ImageTree(await Volume.open(MemoryDevice(in_memory.data)), trust_without_tree())
    scope = trio.CancelScope()

    def start(work: Callable[[], None], arguments: tuple[()]) -> None:
        if end == "refused":
            raise RuntimeError("can't start new thread")
        scope.cancel()

    monkeypatch.setattr("_thread.start_new_thread", start)
    before = os.listdir("/proc/self/fd")
    with scope, suppress(RuntimeError):
        await extract(tree, "/file", tmp_path / "copy")
        pytest.fail("extracted")
    assert os.listdir("/proc/self/fd") == before
    assert not list(tmp_path.glob("*copy*"))
