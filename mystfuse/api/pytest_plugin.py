"""A pytest plugin: the fixture ``mystfuse_mount``, a throw-away file system for a test.

    def test_it(mystfuse_mount):
        with_my_files = mystfuse_mount("some/directory")   # an image of it is made, and mounted
        prepared = mystfuse_mount("prepared.img")          # or an image that is there
        empty = mystfuse_mount()

Each call returns the path of a writable mountpoint, which is gone after the test, with what was written to it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mystfuse.api.arguments import StrPath
from mystfuse.api.mount import make_image, mount


@pytest.fixture
def mystfuse_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """A function that mounts an image, or one made of a directory (None: an empty one), and returns its mountpoint.

    Its further arguments are those of ``mystfuse.mount``; without any about trust, the image is trusted by itself.
    ``free`` says how much room there is to be for writes.
    """
    with ExitStack() as stack:

        def mount_one(source: StrPath | None = None, *, free: str = "64M", **arguments: Any) -> Path:
            directory = tmp_path_factory.mktemp("mystfuse")
            mountpoint = directory / "mount"
            mountpoint.mkdir()
            image = None if source is None else Path(source)
            if image is None or image.is_dir():
                target = directory / "image"
                if image is None:
                    image = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                make_image(image, target, options=[f"--free={free}"])
                image = target
            if not {"roothashes", "pubkeys", "insecure"} & arguments.keys():
                arguments.setdefault("trust", "self")
            return Path(os.fspath(stack.enter_context(mount(image, mountpoint, **arguments))))

        yield mount_one
