"""Two that mount at one place at once: one is refused, and who has come to lie under another says so at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import clear_mount, mounted, mystfuse

import mystfuse as api
from mystfuse.errors import MountError
from mystfuse.fuse.keeper import Keeper
from mystfuse.fuse.mount_table import find_mount
from mystfuse.fuse.options import MountOptions


def test_the_later_of_two_mounters_is_refused(small_image: Path, mountpoint: Path) -> None:
    """Both have looked at the mountpoint before either has mounted."""
    keeper = Keeper(MountOptions(mountpoint=str(mountpoint), fsname="none"))
    try:
        with mounted(small_image, mountpoint):
            first = find_mount(str(mountpoint))
            try:
                with pytest.raises(MountError, match=f"{mountpoint}: {small_image} is mounted there already"):
                    keeper.mount()
                assert find_mount(str(mountpoint)) == first
            finally:
                if find_mount(str(mountpoint)) != first:
                    clear_mount(mountpoint)
    finally:
        keeper.close()


def test_a_mount_that_lies_under_another_is_not_left_in_silence(small_image: Path, mountpoint: Path) -> None:
    own = None
    try:
        with (
            pytest.raises(MountError, match="still mounted there, under another mount"),
            api.mount(small_image, mountpoint, trust="self"),
        ):
            own = find_mount(str(mountpoint))
            assert own is not None
            assert mystfuse("mount", "-o", "nonempty", small_image, mountpoint).returncode == 0
        # The other is somebody else's, and stays.
        assert find_mount(str(mountpoint)) not in (None, own)
        assert mystfuse("umount", mountpoint).returncode == 0
        assert find_mount(str(mountpoint)) == own
    finally:
        clear_mount(mountpoint)
        clear_mount(mountpoint)
