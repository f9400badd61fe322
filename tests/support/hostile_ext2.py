"""Finding inodes of an image, and asserting FilesystemCorrupt."""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import Any

import pytest

from mystfuse.errors import CorruptFilesystem
from tests.support.ext2_editor import ROOT, Editor

MANY = 150


def number_of(image: Editor, *names: bytes) -> int:
    """The inode number at a path, found without the code under test."""
    ino = ROOT
    for name in names:
        _, ino = image.find(ino, name)
    return ino


async def assert_corrupt(operation: Awaitable[Any], match: str | None = None) -> None:
    with pytest.raises(CorruptFilesystem, match=match) as caught:
        await operation
    assert caught.value.errno == errno.EUCLEAN
