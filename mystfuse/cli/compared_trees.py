"""The trees that ``mystfuse diff`` compares, as its command line names them: images, directories, archives."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mystfuse.cli.given_image import GivenImage
from mystfuse.cli.progress import progress
from mystfuse.cli.remote_options import REMOTE_PARAMETERS
from mystfuse.cli.text import warn
from mystfuse.devices.open_source import local_path
from mystfuse.devices.patience import wait_for_storage
from mystfuse.errors import ImageReadError, MystfuseError, UsageError
from mystfuse.image.keys import Keys
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.open_view import is_archive, open_path
from mystfuse.tree.diff.view import View
from mystfuse.tree.open import open_tree
from mystfuse.trust.sources import TrustOptions


@dataclass(slots=True)
class _Image:
    given: GivenImage
    trust: TrustOptions
    keys: Keys


class ComparedTrees:
    """Trees that a command line names.

    Images are opened here, and their keys read, before an event loop runs: somebody may be asked for a passphrase.

    Args:
        paths: of them.
        given: ``image_options`` and ``io_timeout`` by the names of their parameters, for all images among them.

    Raises:
        UsageError: options for images, and none among them.
        MystfuseError: one cannot be opened.
    """

    def __init__(self, paths: Sequence[str], given: Mapping[str, Any]) -> None:
        self._paths = paths
        self._io_timeout: float = given["io_timeout"]
        self._images: dict[int, _Image] = {}
        self._kinds = [_kind_of(path, given["io_timeout"]) for path in paths]
        if "image" not in self._kinds:
            refuse_image_options(paths, given)
        if self._kinds.count("image") > 1:
            for name in ("mirrors", "prefetch"):
                if given.get(name):
                    option = name.removesuffix("s")
                    raise UsageError(f"--{option}: of one image, and two are named: {' and '.join(paths)}")
        try:
            for number, path in enumerate(paths):
                if self._kinds[number] == "image":
                    self._images[number] = _open_image(path, given)
        except BaseException:
            self.close()
            raise

    @property
    def sees_all_xattrs(self) -> bool:
        """Whether none of them is read with an ordinary user's eyes."""
        return os.geteuid() == 0 or "directory" not in self._kinds

    @property
    def first_image(self) -> int | None:
        """Which one is the first image."""
        return min(self._images, default=None)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[list[View]]:
        """The views of all, in their order; raises as ``open_tree`` and ``DirectoryView``."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self._view(number)) for number in range(len(self._paths))]

    def close(self) -> None:
        """Close the images' files."""
        for image in self._images.values():
            image.keys.wipe()
            image.keys.kill_deriver()
            image.given.source.close()

    @asynccontextmanager
    async def _view(self, number: int) -> AsyncIterator[View]:
        path = self._paths[number]
        if self._kinds[number] == "image":
            async with _image_view(self._images[number]) as image:
                yield image
        else:
            async with open_path(path, self._io_timeout) as view:
                yield view


def _kind_of(path: str, io_timeout: float) -> str:
    if local_path(path) != path:
        # An address, or a URL of a file.
        return "image"
    try:
        mode = wait_for_storage(partial(os.stat, path), path, io_timeout).st_mode
    except OSError as error:
        raise ImageReadError(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return "directory"
    return "archive" if is_archive(path) else "image"


def refuse_image_options(paths: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raise UsageError if an option wants something of an image."""
    for name, option in (
        ("roothashes", "--roothash"),
        ("pubkeys", "--pubkey"),
        ("trust_self", "--trust-self, --no-trust-self"),
        ("insecure", "--insecure"),
        ("hash_offset", "--hash-offset"),
        ("hash_device", "--hash-device"),
        ("key_file", "--key-file"),
        ("key_command", "--key-command"),
        ("passphrase_file", "--passphrase-file"),
        ("passphrase_command", "--passphrase-command"),
        *((name, f"--{name.replace('_', '-')}") for name in REMOTE_PARAMETERS),
        ("mirrors", "--mirror"),
    ):
        value = given.get(name)
        if value or (name == "trust_self" and value is not None):
            raise UsageError(f"{option}: for images, and none is named: {' and '.join(paths)}")


def _open_image(path: str, given: Mapping[str, Any]) -> _Image:
    image = GivenImage(path, given)
    try:
        trust = image.load_trust()
        keys = image.load_keys(trust)
        if keys:
            keys.start_deriver()
    except BaseException:
        image.source.close()
        raise
    return _Image(image, trust, keys)


@asynccontextmanager
async def _image_view(image: _Image) -> AsyncIterator[View]:
    source = image.given.source
    opening = True
    try:
        async with open_tree(source, image.trust, image.keys, image.given.io_timeout, progress) as tree:
            opening = False
            if not tree.trust.is_vouched_for:
                warn(f"{source.name} is {tree.trust_explanation}")
            yield ImageView.of_tree(tree, source.name)
    except MystfuseError as error:
        raise (error.about(source.name) if opening else error) from error
