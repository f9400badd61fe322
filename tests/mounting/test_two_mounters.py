"""Two processes mount at one place at once: we refuse one of them, and a daemon whose mount lies under another says so
at its end."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import mystfuse as api
from mystfuse.errors import MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.keeper_client import Keeper
from mystfuse.mounting.keeper_server import KeeperServer
from mystfuse.mounting.mount import mount
from mystfuse.mounting.mount_table import find_mount, find_mount_of, find_mounts
from mystfuse.mounting.unmount import unmount
from tests.support.commands import mystfuse
from tests.support.mounts import clear_mount, mounted


def test_the_later_of_two_mounters_is_refused(small_image: Path, mountpoint: Path) -> None:
    """Both check the mountpoint before either mounts."""
    keeper = Keeper(MountOptions(mountpoint=str(mountpoint), fsname="none"))
    try:
        with mounted(small_image, mountpoint):
            first = find_mount(str(mountpoint))
            try:
                with pytest.raises(MountError, match=f"{mountpoint}: {small_image} is already mounted there"):
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
        # The other mount is another program's, and stays.
        assert find_mount(str(mountpoint)) not in (None, own)
        assert mystfuse("umount", mountpoint).returncode == 0
        assert find_mount(str(mountpoint)) == own
    finally:
        clear_mount(mountpoint)
        clear_mount(mountpoint)


def test_of_two_that_have_mounted_the_lower_one_stays(mountpoint: Path) -> None:
    """Each checks just before the other mounts, and then looks for its own mount."""
    # By a descriptor: a lookup in the first mount would get no answer.
    directory = os.open(mountpoint, os.O_PATH)
    options = MountOptions(mountpoint=str(mountpoint), fsname="none", directory=directory)
    server = KeeperServer(options)
    descriptors: list[int] = []
    try:
        for _ in range(2):
            descriptors.append(mount(replace(options, nonempty=True), may_run_programs=False))
        lower, upper = descriptors
        if find_mount_of(lower) is None:
            pytest.skip("the kernel does not say which mount a descriptor serves")
        first = find_mounts(str(mountpoint))[0]
        assert server._find_own(lower) == first
        with pytest.raises(MountError, match="none is already mounted there"):
            server._find_own(upper)
        assert find_mounts(str(mountpoint)) == [first]
    finally:
        for descriptor in [directory, *descriptors]:
            os.close(descriptor)
        for _ in find_mounts(str(mountpoint)):
            unmount(str(mountpoint), lazy=True)
