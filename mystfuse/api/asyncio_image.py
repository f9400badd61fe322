"""An open image under asyncio: the same as under trio, in a trio loop in a thread of its own."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from mystfuse.api.async_image import AsyncImage
from mystfuse.api.opening import ImageToOpen
from mystfuse.ext2.inode import Inode
from mystfuse.system.loop_thread import LoopThread, Steps
from mystfuse.tree.image_file import ImageFile
from mystfuse.volume.volume import Volume

P = ParamSpec("P")
T = TypeVar("T")


def _forwarded(
    method: Callable[Concatenate[Any, P], Awaitable[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """A method that calls ``method`` of the object in the loop's thread."""

    @wraps(method)
    async def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await self.thread.call(partial(method, self.inner, *args, **kwargs)).run_async()
        return result

    return call


def _forwarded_iterator(
    method: Callable[Concatenate[Any, P], AsyncIterator[T]], at_once: int = 256
) -> Callable[Concatenate[Any, P], AsyncGenerator[T, None]]:
    """The same for an asynchronous generator, of which ``at_once`` items are fetched together."""

    @wraps(method)
    async def iterate(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        steps: Steps[T] = Steps(method(self.inner, *args, **kwargs), at_once)
        try:
            while batch := await self.thread.call(steps.next).run_async():
                for item in batch:
                    yield item
        finally:
            steps.end(self.thread)

    return iterate


class AsyncioFile(ImageFile):
    """A file of an image for asyncio."""

    def __init__(self, volume: Volume, inode: Inode, name: str | bytes, thread: LoopThread[AsyncImage]) -> None:
        super().__init__(volume, inode, name)
        self.inner = ImageFile(volume, inode, name)
        self.thread = thread

    pread = _forwarded(ImageFile.pread)
    data_ranges = _forwarded_iterator(ImageFile.data_ranges)

    async def aclose(self) -> None:
        """Close it; reading raises ValueError from then on."""
        await super().aclose()
        await self.inner.aclose()


class AsyncioImage(AsyncImage):
    """The same image for asyncio.

    Args:
        inner: the image in the loop of ``thread``.
    """

    runs_elsewhere = True

    def __init__(self, inner: AsyncImage, thread: LoopThread[AsyncImage]) -> None:
        super().__init__(inner.volume, inner.trust, inner.pipeline)
        self.inner = inner
        self.thread = thread

    stat = _forwarded(AsyncImage.stat)
    lstat = _forwarded(AsyncImage.lstat)
    exists = _forwarded(AsyncImage.exists)
    is_file = _forwarded(AsyncImage.is_file)
    is_dir = _forwarded(AsyncImage.is_dir)
    is_symlink = _forwarded(AsyncImage.is_symlink)
    read_file = _forwarded(AsyncImage.read_file)
    readlink = _forwarded(AsyncImage.readlink)
    listxattr = _forwarded(AsyncImage.listxattr)
    getxattr = _forwarded(AsyncImage.getxattr)
    resolve = _forwarded(AsyncImage.resolve)
    listdir = _forwarded(AsyncImage.listdir)
    scandir = _forwarded_iterator(AsyncImage.scandir)
    children = _forwarded_iterator(AsyncImage.children)
    # One at a time: the caller may change what comes next.
    walk = _forwarded_iterator(AsyncImage.walk, at_once=1)
    extract = _forwarded(AsyncImage.extract)
    diff = _forwarded(AsyncImage.diff)
    statistics = _forwarded(AsyncImage.statistics)

    def open_inode(self, inode: Inode, name: str | bytes) -> ImageFile:
        """Open a regular file by its inode."""
        return AsyncioFile(self.volume, inode, name, self.thread)


class AsyncioBlock(AbstractAsyncContextManager[AsyncImage]):
    """A block in an asyncio task, which is cancelled if the loop that reads the image dies, as it is under trio.

    Source: asyncio.timeout, which cancels its task in the same way.
    """

    def __init__(self, to_open: ImageToOpen) -> None:
        self._to_open = to_open
        self._thread = LoopThread(to_open.path, to_open.opened)
        self._task: Callable[[], asyncio.Task[object] | None] = lambda: None
        """The task, while the block runs. Weakly: one that nothing else refers to is to be collected, which closes the
        image."""
        self._cancelling = 0
        """How often others had cancelled the task when the block began."""
        self._is_cancelled = False

    async def __aenter__(self) -> AsyncImage:
        try:
            self._to_open.start_deriver()
            inner = await self._thread.open().run_async()
        except GeneratorExit:
            # The event loop was closed with this task in it: nothing can be awaited any more.
            self._thread.stop()
            raise
        except BaseException:
            await self._thread.close().run_async(shield=True)
            self._to_open.give_up()
            raise
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = weakref.ref(task)
        self._cancelling = task.cancelling()

        def tell() -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._cancel)

        self._thread.when_ended(tell)
        return AsyncioImage(inner, self._thread)

    def _cancel(self) -> None:
        task = self._task()
        if task is not None and self._thread.failure is not None:
            self._is_cancelled = True
            task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the image; raises what its loop died of, if the block has not raised another error."""
        if isinstance(error, GeneratorExit):
            self._thread.stop()
            return
        task, self._task = self._task(), lambda: None
        follows = error is None
        if self._is_cancelled and task is not None:
            is_alone = task.uncancel() <= self._cancelling
            follows = follows or (is_alone and isinstance(error, asyncio.CancelledError))
        await self._thread.close().run_async(shield=True)
        failure = self._thread.failure
        if failure is not None and (follows or (error is not None and error.__cause__ is failure)):
            raise failure from None
