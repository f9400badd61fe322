"""``DirectoryView`` reads a directory on disk, and nothing outside."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from mystfuse.errors import MystfuseError, StorageTimeout
from mystfuse.tree.diff.directory_view import DirectoryView
from tests.support.commands import run
from tests.support.mounts import daemon_pid, mounted


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("secret")
    return tmp_path


@pytest.fixture
def view(place: Path) -> Iterator[DirectoryView]:
    with closing(DirectoryView(place / "tree")) as view:
        yield view


async def test_a_fifo_is_not_opened(place: Path, view: DirectoryView) -> None:
    os.mkfifo(place / "tree/fifo")
    with trio.fail_after(20):
        root = await view.root()
        fifo = (await view.children(root))[b"fifo"]
        assert await view.xattrs(fifo) == {}
        with pytest.raises(OSError, match="another file has taken its place") as caught:
            await view.read(fifo, 0, 1)
    assert caught.value.errno == errno.ESTALE
    assert caught.value.filename == str(place / "tree/fifo")


async def test_a_directory_that_becomes_a_link_leads_nowhere(place: Path, view: DirectoryView) -> None:
    sub = (await view.children(await view.root()))[b"sub"]
    file = (await view.children(sub))[b"file"]
    (place / "tree/sub").rename(place / "tree/moved")
    (place / "tree/sub").symlink_to(place / "outside")
    for answer in (view.children(sub), view.read(file, 0, 100)):
        with pytest.raises(OSError, match=r"Too many levels|Not a directory") as caught:
            await answer
        assert str(place / "tree/sub") in str(caught.value.filename)


async def test_another_file_in_its_place_is_refused(place: Path, view: DirectoryView) -> None:
    sub = (await view.children(await view.root()))[b"sub"]
    file = (await view.children(sub))[b"file"]
    (place / "outside/file").rename(place / "tree/sub/file")
    with pytest.raises(OSError, match="another file has taken its place"):
        await view.read(file, 0, 100)


async def test_links_are_not_followed(place: Path, view: DirectoryView) -> None:
    (place / "tree/link").symlink_to(place / "outside")
    link = (await view.children(await view.root()))[b"link"]
    assert link.is_symlink
    assert await view.target(link) == os.fsencode(place / "outside")


async def test_paths_longer_than_a_path_may_be(place: Path, view: DirectoryView) -> None:
    name = "d" * 200
    here = os.open(place / "tree", os.O_RDONLY)
    for _ in range(30):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("deep", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, b"found")
    os.close(file)
    os.close(here)
    node = await view.root()
    for _ in range(30):
        node = (await view.children(node))[name.encode()]
    deep = (await view.children(node))[b"deep"]
    assert await view.read(deep, 0, 100) == b"found"
    # pytest could not remove it.
    run("rm", "-rf", place / "tree" / name)


async def test_more_attributes_than_a_listing_keeps(
    place: Path, view: DirectoryView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mystfuse.tree.diff.directory_view._MAX_LISTED", 1)
    for name in ("a", "b"):
        (place / "tree" / name).write_text("")
        os.setxattr(place / "tree" / name, b"user.long", b"x" * 1000)
    (place / "tree/c").symlink_to("target")
    children = await view.children(await view.root())
    assert children[b"b"].listed_xattrs is None
    assert await view.xattrs(children[b"b"]) == await view.xattrs(children[b"a"]) == {b"user.long": b"x" * 1000}
    assert await view.target(children[b"c"]) == b"target"


def test_what_is_no_directory(place: Path) -> None:
    with pytest.raises(MystfuseError, match="tree/sub/file: Not a directory"):
        DirectoryView(place / "tree/sub/file")


async def test_a_mount_that_hangs_is_not_waited_for(small_image: Path, tmp_path: Path) -> None:
    with mounted(small_image, tmp_path / "mount") as mount, closing(DirectoryView(mount, 1)) as view:
        root = await view.root()
        pid = daemon_pid(mount)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StorageTimeout, match=f"{mount}: no answer from storage within 1 s"):
                await view.children(root)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await view.children(root)
