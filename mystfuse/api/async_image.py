"""An open image for coroutines, as it is under trio: everything runs in the caller's own event loop."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, AnyStr

from mystfuse.api.arguments import StrPath
from mystfuse.errors import UsageError
from mystfuse.tree.extract import extract
from mystfuse.tree.image_tree import ImageTree

if TYPE_CHECKING:
    from mystfuse.api.difference import Difference


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """Sizes of a file system, and what has been read of its image since it was opened. ``mystfuse status`` has the
    counts under the same names."""

    block_size: int
    """Bytes."""
    blocks: int
    """As statfs(2) counts them, as the next ones."""
    free_blocks: int
    inodes: int
    free_inodes: int
    bytes_fetched: int
    """Read from the image file."""
    read_failures: int
    blocks_verified: int
    """Data blocks that had the digest that the hash tree gives."""
    hash_blocks_verified: int
    blocks_failed: int
    bytes_decrypted: int


class AsyncImage(ImageTree):
    """An image that is open for reading. Use ``mystfuse.open_image``.

    Everything can be called by several tasks at once.
    """

    runs_elsewhere = False
    """Whether another event loop than the caller's reads it."""

    async def extract(self, path: str | bytes, destination: str | os.PathLike[str]) -> dict[str, int]:
        """Copy a file, or a directory and all below it, out of the image, as ``cp -a`` would.

        Args:
            path: a symbolic link is copied itself.
            destination: must not exist. It appears when it is complete, or not at all.

        Returns:
            Attributes lost for want of permission, and how many times: names of extended attributes, ``owner``,
            ``device``.

        Raises:
            OSError: as ``stat``, or writing ``destination`` failed; EEXIST if it exists.
            CorruptFilesystem: also when names or blocks are used twice, as in no sound file system.
            IntegrityError, ImageReadError
        """
        return await extract(self, path, destination)

    async def listdir(self, path: AnyStr) -> list[AnyStr]:
        """The names in a directory, in its own order; raises as ``scandir``."""
        return [entry.name async for entry in self.scandir(path)]

    async def is_file(self, path: str | bytes) -> bool:
        """Whether ``path`` leads to a regular file, symbolic links followed; raises as ``exists``."""
        return await self._has_type(path, stat.S_IFREG)

    async def is_dir(self, path: str | bytes) -> bool:
        """Whether ``path`` leads to a directory, symbolic links followed; raises as ``exists``."""
        return await self._has_type(path, stat.S_IFDIR)

    async def is_symlink(self, path: str | bytes) -> bool:
        """Whether ``path`` is a symbolic link itself; raises as ``exists``."""
        return await self._has_type(path, stat.S_IFLNK, follow_symlinks=False)

    async def diff(self, other: StrPath | ImageTree, *, ignore: Iterable[str] = ()) -> list[Difference]:
        """What makes ``other`` of this image, sorted by the names in paths.

        Args:
            other: a directory, a mountpoint, or a tar archive, which its name tells; or another image that is open
                under trio. ``mystfuse.diff`` takes the paths of two images.
            ignore: what is not compared, as for ``mystfuse.diff``.

        Raises:
            OSError: reading a directory failed.
            UsageError: ``other`` or ``ignore`` is something else.
            CorruptFilesystem, IntegrityError, ImageReadError, FormatError
        """
        # Only here: they take long to import.
        from mystfuse.api.difference import differences, rules_of
        from mystfuse.tree.diff.image_view import ImageView
        from mystfuse.tree.diff.open_view import is_archive, open_path

        rules = rules_of(ignore)
        old = ImageView.of_tree(self, "the image")
        if isinstance(other, ImageTree):
            if not isinstance(other, AsyncImage) or other.runs_elsewhere:
                raise UsageError("the other image is not open under trio: mystfuse.diff takes the paths of two images")
            return await differences(old, ImageView.of_tree(other, "the other image"), rules)
        path = os.fspath(other)
        _refuse_image(path, is_archive(path))
        async with open_path(path) as view:
            return await differences(old, view, rules)

    async def _has_type(self, path: str | bytes, kind: int, follow_symlinks: bool = True) -> bool:
        try:
            inode = await self.resolve(path, follow_symlinks)
        except OSError:
            return False
        return stat.S_IFMT(inode.i_mode) == kind

    async def statistics(self) -> ImageStatistics:
        """Sizes of the file system, and counts.

        Raises:
            CorruptFilesystem, IntegrityError, ImageReadError
        """
        sizes = await self.volume.statistics()
        assert self.pipeline is not None
        verity, unlocked = self.pipeline.verity, self.pipeline.unlocked
        return ImageStatistics(
            block_size=sizes.block_size,
            blocks=sizes.blocks,
            free_blocks=sizes.free_blocks,
            inodes=sizes.inodes,
            free_inodes=sizes.free_inodes,
            bytes_fetched=self.pipeline.reader.bytes_read,
            read_failures=self.pipeline.reader.failures,
            blocks_verified=verity.blocks_verified if verity else 0,
            hash_blocks_verified=verity.hash_blocks_verified if verity else 0,
            blocks_failed=verity.blocks_failed if verity else 0,
            bytes_decrypted=unlocked.device.bytes_decrypted if unlocked else 0,
        )


def _refuse_image(path: str, is_archive: bool) -> None:
    if os.path.isfile(path) and not is_archive:
        raise UsageError(f"{path}: an image has to be opened; mystfuse.diff takes the paths of two images")
