"""``mystfuse.open_image``: an image for coroutines, under trio and asyncio."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Unpack

import sniffio

from mystfuse.api.arguments import OPEN_DEFAULTS, OpenArguments, StrPath, takes
from mystfuse.api.async_image import AsyncImage
from mystfuse.api.opening import ImageToOpen
from mystfuse.errors import UsageError


@takes(OPEN_DEFAULTS, OpenArguments)
def open_image(image: StrPath, **arguments: Unpack[OpenArguments]) -> AbstractAsyncContextManager[AsyncImage]:
    """Open an image for reading, without a mount and without FUSE, for the time of the block, under trio or asyncio.

    Every block is verified before it is returned, as on a mount. Under trio everything runs in the caller's event loop;
    under asyncio, a trio loop in a thread of its own reads the image. A cancelled call ends at once, also while storage
    hangs, but for ``extract``, which removes what it has made first. The end of the block waits until nothing of it
    runs any more.

    Args:
        image: path of the image, or its address (https, s3, oci; needs the extra ``remote``).
        {arguments}

    Raises, when the block begins:
        NotTrusted: the image is not trusted by any root hash or key.
        UsageError: a wrong argument.
        WrongKey: the image is encrypted and the key does not open it, or a key is given and it is not.
        FormatError, IntegrityError, ImageReadError: not an image, or reading it failed.
    """
    return _Block(image, arguments)


class _Block(AbstractAsyncContextManager[AsyncImage]):
    """A block of either library."""

    # No generators here: one that is collected with a closed event loop does not come to its end.

    def __init__(self, image: StrPath, arguments: OpenArguments) -> None:
        self._image = image
        self._arguments = arguments
        self._manager: AbstractAsyncContextManager[AsyncImage]

    async def __aenter__(self) -> AsyncImage:
        library = sniffio.current_async_library()
        if library not in ("trio", "asyncio"):
            raise UsageError(f"open_image runs under trio and asyncio, not under {library}")
        to_open = ImageToOpen(self._image, self._arguments)
        if library == "trio":
            self._manager = to_open.opened()
        else:
            # Only here: a program under trio may not have imported asyncio, which takes long.
            from mystfuse.api.asyncio_image import AsyncioBlock

            self._manager = AsyncioBlock(to_open)
        return await self._manager.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)
