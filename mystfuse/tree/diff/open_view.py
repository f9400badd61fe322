"""Opening what can be compared by its path alone: directories and archives."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial

import trio

from mystfuse.devices.patient_threads import call_patiently
from mystfuse.system.threads import call_in_thread
from mystfuse.tree.diff.directory_view import DirectoryView
from mystfuse.tree.diff.tar_view import TarView
from mystfuse.tree.diff.view import View

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""What ends so is an archive. By its name alone: nobody can pass off an archive, which nobody vouches for, as an image.
"""


def is_archive(path: str) -> bool:
    """Whether a path is that of an archive."""
    return path.lower().endswith(ARCHIVE_SUFFIXES)


def open_path(path: str, io_timeout: float = math.inf) -> AbstractAsyncContextManager[View]:
    """The view of a directory or, by its name, an archive, until the block ends; raises as ``DirectoryView`` and
    ``open_tar``.

    Args:
        io_timeout: seconds that each answer of a directory's file system, perhaps a mount, may take.
    """
    if is_archive(path) and not os.path.isdir(path):
        return _open_archive(path)
    return _open_directory(path, io_timeout)


@asynccontextmanager
async def _open_directory(path: str, io_timeout: float) -> AsyncIterator[View]:
    view = await call_patiently(partial(DirectoryView, path, io_timeout), path, io_timeout)
    try:
        yield view
    finally:
        view.close()


@asynccontextmanager
async def _open_archive(path: str) -> AsyncIterator[View]:
    # Only here: it takes long to import.
    from mystfuse.archives.tar_tree import open_tar

    stack = ExitStack()
    is_wanted = True

    def go_on(count: int) -> None:
        if not is_wanted:
            raise InterruptedError

    def end() -> None:
        if not is_wanted:
            stack.close()

    try:
        tree = await call_in_thread(lambda: stack.enter_context(open_tar([path], go_on)), end)
    except trio.Cancelled:
        is_wanted = False
        raise
    with stack:
        view = TarView(tree.root, tree.contents, path)
        stack.callback(view.close)
        yield view
