"""An attacker renames directories and makes links at mountpoints and output paths while we work: nothing of ours ends
up elsewhere."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mystfuse.errors import MountError, MystfuseError
from mystfuse.mounting.mount_table import Mount, find_mount
from mystfuse.mounting.mountpoint import open_mountpoint, resolve_mountpoint
from mystfuse.mounting.unmount import GoneError, unmount
from mystfuse.system.atomic_file import AtomicFile
from tests.support.commands import mystfuse, run
from tests.support.mounts import clear_mount, mounted

ATTEMPTS = 100
RACER = r"""
import ctypes, os, sys
libc = ctypes.CDLL(None)
first, second = (os.fsencode(word) for word in sys.argv[1:])
print(flush=True)
while os.getppid() == %d:
    libc.renameat2(-100, first, -100, second, 2)  # RENAME_EXCHANGE
"""


@contextmanager
def exchanging(first: Path, second: Path) -> Iterator[None]:
    """Another process exchanges two names as fast as it can until the block ends."""
    racer = subprocess.Popen([sys.executable, "-c", RACER % os.getpid(), first, second], stdout=subprocess.PIPE)
    try:
        assert racer.stdout is not None
        racer.stdout.readline()
        yield
    finally:
        racer.kill()
        racer.communicate()


# Output paths


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_goes_to_the_directory_that_was_there_at_the_start(
    tmp_path: Path, without_nameless: bool, replace: bool
) -> None:
    directory, moved, elsewhere = tmp_path / "directory", tmp_path / "moved", tmp_path / "elsewhere"
    directory.mkdir()
    elsewhere.mkdir()
    with AtomicFile(directory / "image", replace) as file:
        os.write(file.fd, b"content")
        directory.rename(moved)
        directory.symlink_to(elsewhere)
        file.commit()
    assert os.listdir(elsewhere) == []
    assert os.listdir(moved) == ["image"] and (moved / "image").read_bytes() == b"content"
    with pytest.raises(ZeroDivisionError), AtomicFile(moved / "other", replace):
        moved.rename(directory / "taken")
        moved.symlink_to(elsewhere)
        raise ZeroDivisionError
    assert os.listdir(directory / "taken") == ["image"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_link_under_the_files_name_is_never_followed(tmp_path: Path, without_nameless: bool, replace: bool) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    for has_victim in False, True:
        if has_victim:
            victim.write_text("mine")
        link.symlink_to(victim)
        if replace:
            with AtomicFile(link, replace) as file:
                os.write(file.fd, b"content")
                file.commit()
            assert not link.is_symlink() and link.read_bytes() == b"content"
        else:
            with pytest.raises(MystfuseError, match="already exists"):
                AtomicFile(link, replace)
            link.unlink()
            with AtomicFile(link, replace) as file, pytest.raises(MystfuseError, match="already exists"):
                link.symlink_to(victim)
                file.commit()
            assert os.readlink(link) == str(victim)
        link.unlink()
        assert victim.exists() == has_victim and (not has_victim or victim.read_text() == "mine")
    assert set(os.listdir(tmp_path)) <= {"victim"}


def test_a_race_at_an_output_path_hits_no_other_file(tmp_path: Path, without_nameless: bool) -> None:
    victim, target, link = tmp_path / "victim", tmp_path / "target", tmp_path / "link"
    victim.write_text("mine")
    target.write_text("old")
    link.symlink_to(victim)
    with exchanging(target, link):
        for number in range(ATTEMPTS):
            with AtomicFile(target, True) as file:
                os.write(file.fd, b"%d" % number)
                file.commit()
            assert victim.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"victim", "target", "link"}


def test_a_race_at_an_output_directory_hits_one_of_the_two(tmp_path: Path, without_nameless: bool) -> None:
    """Each file ends up whole in the directory where it was begun; neither directory has an incomplete file."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with exchanging(first, second):
        for number in range(ATTEMPTS):
            with AtomicFile(first / str(number), False) as file:
                os.write(file.fd, b"content")
                file.commit()
    made = [*first.iterdir(), *second.iterdir()]
    assert sorted(int(path.name) for path in made) == list(range(ATTEMPTS))
    assert {path.read_bytes() for path in made} == {b"content"}


def test_no_command_writes_through_a_link(
    small_tree: Path, small_image: Path, make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    private = make_keys("races")[1]
    (tmp_path / "config").write_text(json.dumps({"version": "0.1", "ApplicationPath": "/bin/sh", "Debug": 1}))
    victim, link = tmp_path / "victim", tmp_path / "link"
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        commands: tuple[tuple[str | Path, ...], ...] = (
            ("mkext2", small_tree, link),
            ("commit", mountpoint, link),
            ("package", "-o", link, private, tmp_path / "config"),
            ("extract", small_image, "/hello.txt", link),
        )
        for name, *rest in commands:
            link.symlink_to(victim)
            result = mystfuse(name, *rest)
            assert result.returncode == 1 and f"mystfuse: {link}: already exists" in result.stderr, result.stderr
            assert not victim.exists()
            if name != "extract":
                result = mystfuse(name, "--force", *rest)
                assert result.returncode == 0, result.stderr
                assert not victim.exists() and not link.is_symlink() and link.stat().st_size > 0
            link.unlink()


# Mountpoints

MOUNT_LATER = r"""
import os, sys
from functools import partial
from mystfuse.cli.mount_jobs import prepare
from mystfuse.mounting.daemon import serve_mount
from mystfuse.mounting.daemonize import run_in_background
image, mountpoint, moved, victim = sys.argv[1:]
job = prepare({}, frozenset(), image, mountpoint)
os.rename(mountpoint, moved)
if victim != "nothing":
    os.symlink(victim, mountpoint)
started = run_in_background(partial(serve_mount, job), job.descriptors)
print(int(started.status), started.message)
"""


@pytest.mark.parametrize("replacement", ["link", "nothing"])
def test_a_mountpoint_that_is_replaced_is_not_mounted_on(small_image: Path, tmp_path: Path, replacement: str) -> None:
    mountpoint, moved, victim = tmp_path / "mount", tmp_path / "moved", tmp_path / "victim"
    mountpoint.mkdir()
    victim.mkdir()
    try:
        result = run(
            sys.executable, "-c", MOUNT_LATER, small_image, mountpoint, moved,
            victim if replacement == "link" else "nothing",
        )  # fmt: skip
        assert result.stdout.startswith("7 ") and "has taken its place" in result.stdout, result.stdout
        for path in mountpoint, moved, victim:
            assert find_mount(str(path)) is None
        assert os.fsencode(tmp_path) not in Path("/proc/self/mountinfo").read_bytes()
    finally:
        for path in moved, victim:
            clear_mount(path)


@pytest.mark.parametrize("has_openat2", [True, False])
def test_a_race_at_a_mountpoint_never_opens_what_a_link_leads_to(
    tmp_path: Path, has_openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory and a link to another one change places: we open the directory whose name the mount gets."""

    def unknown(*words: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if not has_openat2:
        monkeypatch.setattr("mystfuse.mounting.mountpoint.openat2", unknown)
    real, link, victim = tmp_path / "real", tmp_path / "link", tmp_path / "victim"
    (real / "mount").mkdir(parents=True)
    (victim / "mount").mkdir(parents=True)
    link.symlink_to(victim)
    inodes = {path: path.stat().st_ino for path in (real / "mount", victim / "mount")}
    outcomes = {"refused": 0, "opened": 0}
    with exchanging(real, link):
        for _ in range(ATTEMPTS):
            try:
                path = resolve_mountpoint(str(tmp_path / "real/mount"))
                descriptor = open_mountpoint(path, path, False)
            except (MountError, OSError):
                outcomes["refused"] += 1
                continue
            try:
                # Under victim's own name, victim was meant; under the other name it must be the other directory.
                wanted = victim / "mount" if path.startswith(str(victim)) else real / "mount"
                assert os.fstat(descriptor).st_ino == inodes[wanted], path
                outcomes["opened"] += 1
            finally:
                os.close(descriptor)
    assert outcomes["opened"], outcomes


def test_a_link_that_is_given_as_mountpoint_is_followed_once(small_image: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with suppress(FileNotFoundError), mounted(small_image, tmp_path / "link"):
        mount = find_mount(str(tmp_path / "real"))
        assert mount is not None
        assert (tmp_path / "real/hello.txt").read_text() == "hello\n"
    assert find_mount(str(tmp_path / "real")) is None


def test_a_race_while_unmounting_takes_no_other_mount(
    small_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a directory above the mountpoint puts a link in its place between our check and umount2(2)."""
    real, moved, victim = tmp_path / "real", tmp_path / "moved", tmp_path / "victim"
    (real / "mount").mkdir(parents=True)
    (victim / "mount").mkdir(parents=True)
    mountpoint = str(real / "mount")
    for lazy in False, True:
        with mounted(small_image, victim / "mount"), mounted(small_image, real / "mount"):
            own = find_mount(mountpoint)
            assert own is not None

            def find_and_move(path: str) -> Mount | None:
                found = find_mount(path)
                real.rename(moved)
                real.symlink_to(victim)
                return found

            with monkeypatch.context() as patch:
                patch.setattr("mystfuse.mounting.unmount.find_mount", find_and_move)
                unmount(mountpoint, lazy, own)
            assert find_mount(str(victim / "mount")) is not None
            assert find_mount(str(moved / "mount")) is None
            # The other mount now has its name.
            with pytest.raises(GoneError):
                unmount(mountpoint, lazy, own)
            assert find_mount(str(victim / "mount")) is not None
            real.unlink()
            moved.rename(real)
            with pytest.raises(GoneError):
                unmount(mountpoint, lazy, own)
