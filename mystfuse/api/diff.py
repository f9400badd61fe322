"""``mystfuse.diff``: what differs between two trees, or has been written since a mount, for ordinary code."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Unpack

from mystfuse.api.arguments import OPEN_DEFAULTS, OpenArguments, StrPath, takes
from mystfuse.api.difference import Difference, differences, rules_of
from mystfuse.api.opening import ImageToOpen
from mystfuse.system.loop_thread import LoopThread
from mystfuse.tree.diff.compare import Rules, in_order
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.open_view import is_archive, open_path
from mystfuse.tree.diff.view import View
from mystfuse.tree.diff.written_changes import open_mount_states


@takes(OPEN_DEFAULTS, OpenArguments)
def diff(
    old: StrPath, new: StrPath | None = None, *, ignore: Iterable[str] = (), **arguments: Unpack[OpenArguments]
) -> list[Difference]:
    """What differs between two trees, sorted by the names in their paths: each is an image, a directory, a mountpoint,
    or a tar archive, which its name tells (``.tar``, ``.tar.gz``, ``.tgz``, ``.tar.xz``, ``.txz``, ``.tar.zst``,
    ``.tzst``).

    It waits in the caller's thread, and ^C ends it. Of an image and its commit, what was renamed is found.

    Args:
        old: a mountpoint if it is alone.
        new: None: what has been written to the mount since it was mounted.
        ignore: what is not compared: ``mtime``, ``owner``, ``group`` and what else ``Difference.differs`` has.
        {arguments}

    The arguments are those of ``mystfuse.open_image``, for all images among the trees.

    Raises:
        NotTrusted, WrongKey, FormatError, IntegrityError, ImageReadError: as ``mystfuse.Image``, of either.
        MountError: ``old`` is alone, and not a mount of ours.
        UsageError: a wrong argument.
        OSError: reading a directory failed.
    """
    rules = rules_of(ignore)
    if new is None:
        io_timeout = arguments.get("io_timeout", OPEN_DEFAULTS["io_timeout"])
        return _run(partial(_since_mount, os.fspath(old), io_timeout, rules), [])
    trees = [_tree(os.fspath(path), arguments) for path in (old, new)]
    return _run(partial(_between, trees, rules), [tree for tree in trees if isinstance(tree, ImageToOpen)])


def _tree(path: str, arguments: OpenArguments) -> str | ImageToOpen:
    """A directory or archive by its path, or an image."""
    return path if is_archive(path) or os.path.isdir(path) else ImageToOpen(path, arguments)


def _run(work: Callable[[], Awaitable[list[Difference]]], images: Iterable[ImageToOpen]) -> list[Difference]:
    """Run asynchronous work in a loop of its own, for a caller that waits."""
    thread: LoopThread[None] = LoopThread("the comparison", nullcontext)
    try:
        for image in images:
            image.start_deriver()
        thread.open().run()
        return thread.call(work).run()
    finally:
        thread.close().run()
        for image in images:
            image.give_up()


async def _since_mount(mountpoint: str, io_timeout: float, rules: Rules) -> list[Difference]:
    async with open_mount_states(mountpoint, io_timeout) as states:
        changes = map(rules.apply, in_order(await states.changes()))
        return [Difference.of(change) for change in changes if change is not None]


async def _between(trees: Sequence[str | ImageToOpen], rules: Rules) -> list[Difference]:
    async with AsyncExitStack() as stack:
        old, new = [await stack.enter_async_context(_view(tree)) for tree in trees]
        return await differences(old, new, rules)


@asynccontextmanager
async def _view(tree: str | ImageToOpen) -> AsyncIterator[View]:
    if isinstance(tree, ImageToOpen):
        async with tree.opened() as image:
            yield ImageView.of_tree(image, tree.path)
    else:
        async with open_path(tree) as view:
            yield view
