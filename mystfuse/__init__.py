"""mystfuse: mount verified, optionally signed EXT2 images, trusting nothing but the hash tree's root.

``mount`` mounts an image for the time of a block, ``Image`` and, for coroutines, ``open_image`` read one without a
mount, ``make_image`` makes one, ``diff`` compares images, mounts, directories and archives.
The names are imported when they are used, so that the command line
starts without trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mystfuse.api.async_image import AsyncImage
    from mystfuse.api.diff import diff
    from mystfuse.api.difference import Difference
    from mystfuse.api.image import Image, ImagePath
    from mystfuse.api.mount import make_image, mount
    from mystfuse.api.open_image import open_image
    from mystfuse.errors import (
        CorruptFilesystem,
        FormatError,
        ImageReadError,
        IntegrityError,
        MountError,
        MystfuseError,
        NotTrusted,
        StorageTimeout,
        UnsupportedFeature,
        UsageError,
        WrongKey,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncImage",
    "CorruptFilesystem",
    "Difference",
    "FormatError",
    "Image",
    "ImagePath",
    "ImageReadError",
    "IntegrityError",
    "MountError",
    "MystfuseError",
    "NotTrusted",
    "StorageTimeout",
    "UnsupportedFeature",
    "UsageError",
    "WrongKey",
    "diff",
    "make_image",
    "mount",
    "open_image",
]

_MODULES = dict.fromkeys(__all__, "mystfuse.errors") | {
    "AsyncImage": "mystfuse.api.async_image",
    "Difference": "mystfuse.api.difference",
    "Image": "mystfuse.api.image",
    "ImagePath": "mystfuse.api.image",
    "diff": "mystfuse.api.diff",
    "make_image": "mystfuse.api.mount",
    "mount": "mystfuse.api.mount",
    "open_image": "mystfuse.api.open_image",
}
"""Where each name is defined."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
