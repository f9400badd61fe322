"""Listings of a directory that the kernel keeps while it changes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.mounts import mounted

NAMES = 2000
"""More than the kernel takes at a time."""


def test_a_listing_is_not_continued_by_an_older_one(
    roomy_image: Path, tmp_path: Path, path_options: tuple[str, ...]
) -> None:
    """One that began before a name was made ends after it, and so between the parts of one that began after it: the
    kernel then has the older one's names for the next part."""
    with mounted(roomy_image, tmp_path / "mount", "--insecure", *path_options) as mountpoint:
        directory = mountpoint / "directory"
        directory.mkdir()
        for number in range(NAMES):
            (directory / f"name{number}").touch()
        with os.scandir(directory) as older:
            seen = {next(older).name for _ in range(NAMES)}
            (directory / "new").touch()
            with os.scandir(directory) as newer:
                first = next(newer).name
                # It asks once more, and learns that this was the end.
                assert [entry.name for entry in older] in ([], ["new"])
                assert {first, *(entry.name for entry in newer)} == seen | {"new"}
