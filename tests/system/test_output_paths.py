"""Paths that root writes to or mounts on, where another user has put links, FIFOs and files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.errors import MountError
from mystfuse.mounting.mount_table import find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.system.output_paths import (
    LinkOfAnother,
    open_directory,
    open_for_appending,
    rename_without_replacing,
)
from tests.mounting.test_races import ATTEMPTS, exchanging
from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, USER, assert_one_line, mystfuse, run
from tests.support.mounts import clear_mount, mounted

# The log file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fifo", "not a regular file"),
        ("fifo with a reader", "not a regular file"),
        ("device", "not a regular file"),
        ("link", "a symbolic link, which is not followed"),
        ("dangling link", "a symbolic link, which is not followed"),
        ("directory", "Is a directory"),
        ("hard link", "it has other names too"),
        ("another's in a shared directory", f"it is user {USER}'s, in a directory that others may write to"),
    ],
)
def test_a_log_file_that_is_none_is_refused_at_once(
    small_image: Path, tmp_path: Path, mountpoint: Path, kind: str, message: str
) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir()
    shared.chmod(0o1777)
    victim.write_text("mine\n")
    log = shared / "log"
    reader = -1
    if kind.startswith("fifo"):
        os.mkfifo(log)
        if kind != "fifo":
            reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    elif kind == "device":
        os.mknod(log, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    elif kind == "link":
        log.symlink_to(victim)
    elif kind == "dangling link":
        log.symlink_to(shared / "made")
    elif kind == "directory":
        log.mkdir()
    elif kind == "hard link":
        os.link(victim, log)
    else:
        log.write_text("")
        os.chown(log, USER, GROUP)
    try:
        words = ("mount", f"--log-file={log}", small_image, mountpoint)
        # In a process of its own, so that a hang does not hang the tests.
        result = mystfuse(*words, timeout=20) if kind.startswith("fifo") else in_process(*words)
        assert_one_line(result, 1, f"--log-file {log}: {message}")
    finally:
        if reader >= 0:
            os.close(reader)
    assert find_mount(str(mountpoint)) is None
    assert victim.read_text() == "mine\n" and os.listdir(shared) == ["log"]


def test_a_log_file_is_made_or_appended_to(small_image: Path, tmp_path: Path, mountpoint: Path) -> None:
    log = tmp_path / "log"
    for expected in 1, 2:
        with mounted(small_image, mountpoint, f"--log-file={log}", umask=0o027):
            pass
        assert log.read_text().count("trusted by nobody but itself") == expected
        assert stat.S_IMODE(log.stat().st_mode) == 0o640
    with mounted(small_image, mountpoint, "--log-file=relative", cwd=tmp_path):
        pass
    assert "trusted by nobody but itself" in (tmp_path / "relative").read_text()


def test_a_race_at_the_log_file_writes_to_no_other_file(tmp_path: Path) -> None:
    victim, log, link = tmp_path / "victim", tmp_path / "log", tmp_path / "link"
    for path in victim, log:
        path.touch()
    link.symlink_to(victim)
    opened = 0
    with exchanging(log, link):
        for _ in range(ATTEMPTS):
            try:
                descriptor = open_for_appending(log)
            except OSError:
                continue
            opened += 1
            os.write(descriptor, b"line\n")
            os.close(descriptor)
    assert opened and victim.read_bytes() == b""


# Links of other users on the way


def command_lines(where: Path, through: Path, image: Path, mount: Path) -> list[tuple[str | Path, ...]]:
    """Every command that writes or mounts, with a target in the directory ``through``."""
    return [
        ("mkext2", where / "source", through / "image"),
        ("mkext2", "--encrypt", where / "key", where / "source", through / "encrypted"),
        ("commit", mount, through / "committed"),
        ("package", "-o", through / "package", where / "private.pem", where / "config"),
        ("extract", image, "/hello.txt", through / "hello"),
        ("extract", image, "/", through / "tree"),
        ("mount", f"--log-file={through}/log", image, where / "on"),
        ("mount", "--overlay-store", through, image, where / "on"),
        ("mount", image, through / "on"),
        ("mount", "-f", image, through / "on"),
        ("umount", through / "on"),
        ("exec", "--overlay-store", through, image, "/bin/true"),
    ]


@pytest.fixture
def where(small_image: Path, make_keys: Callable[..., tuple[Path, Path]], open_tmp_path: Path) -> Path:
    path = open_tmp_path
    (path / "config").write_text(json.dumps({"version": "0.1", "ApplicationPath": "/bin/prog", "Debug": 1}))
    shutil.copy(make_keys("paths")[1], path / "private.pem")
    (path / "key").touch(mode=0o600)
    (path / "key").write_bytes(bytes(range(64)))
    for name in "source", "on", "victim", "victim/on", "others", "others/on":
        (path / name).mkdir()
    return path


def test_root_goes_through_no_link_of_another_user(small_image: Path, where: Path) -> None:
    """Neither at the end of the directory's path nor in its middle, with any target of the link."""
    os.chown(where / "others", USER, GROUP)
    for name, target in ("others/link", where / "victim"), ("others/relative", "../victim"), ("others/up", ".."):
        (where / name).symlink_to(target)
        os.lchown(where / name, USER, GROUP)
    with mounted(small_image, where / "mount") as mount:
        for words in command_lines(where, where / "others/link", small_image, mount):
            call = mystfuse if words[0] in ("mount", "umount", "exec") else in_process
            result = call(*words)
            for path in where / "on", where / "victim/on":
                clear_mount(path)
            status = 7 if words[-1] == where / "others/link/on" else 2 if "--overlay-store" in words else 1
            # Commands that open the image first say why it is trusted.
            last = result.stderr.splitlines(keepends=True)[-1]
            assert result.returncode == status and last.startswith("mystfuse: ") and last.endswith("\n"), words
            assert f"{where}/others/link is a symbolic link of user {USER}, which root does not follow" in last, last
        assert os.listdir(where / "victim") == ["on"] and os.listdir(where / "victim/on") == []
    for name in "relative", "up/victim":
        with pytest.raises(LinkOfAnother):
            open_directory(where / "others" / name)
        with pytest.raises(MountError):
            resolve_mountpoint(str(where / "others" / name / "on"))


def test_root_goes_through_links_of_its_own(small_image: Path, where: Path) -> None:
    (where / "others/link").symlink_to(where / "victim")
    with mounted(small_image, where / "mount") as mount:
        for words in command_lines(where, where / "others/link", small_image, mount):
            if words[:2] == ("mount", "-f") or words[0] == "exec":
                continue
            if words[0] == "umount":
                assert find_mount(str(where / "victim/on")) is not None
            result = mystfuse(*words, timeout=60)
            assert result.returncode == 0, result.stderr
            clear_mount(where / "on")
    assert sorted(os.listdir(where / "victim")) == sorted(
        ["on", "image", "encrypted", "committed", "package", "hello", "tree", "log"]
    )


def test_no_directory_is_made_through_a_link_of_another_user(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``package`` makes myst/bin in the current directory."""
    monkeypatch.chdir(where / "others")
    Path("myst").symlink_to(where / "victim")
    os.lchown("myst", USER, GROUP)
    result = in_process("package", where / "private.pem", where / "config")
    assert_one_line(result, 1, f"myst is a symbolic link of user {USER}")
    assert os.listdir(where / "victim") == ["on"]


def test_an_ordinary_user_goes_through_links_of_all_users(where: Path, ordinary_user: list[str]) -> None:
    (where / "victim").chmod(0o777)
    (where / "others/link").symlink_to(where / "victim")
    os.lchown(where / "others/link", 1234, 1234)
    result = run(*ordinary_user, "mkext2", where / "source", where / "others/link/image", check=False)
    assert result.returncode == 0, result.stderr


def test_links_of_the_hosts_root_are_followed_in_a_user_namespace(where: Path, ordinary_user: list[str]) -> None:
    """In the namespace, root's number is that of all users without a mapping."""
    (where / "victim").chmod(0o777)
    (where / "others/link").symlink_to(where / "victim")
    command = [*ordinary_user[:4], "unshare", "--user", "--map-root-user", *ordinary_user[4:]]
    result = run(*command, "mkext2", where / "source", where / "others/link/image", check=False)
    if "unshare failed" in result.stderr:
        pytest.skip("no user namespaces here")
    assert result.returncode == 0, result.stderr


def test_a_race_at_a_directory_never_opens_what_anothers_link_leads_to(tmp_path: Path) -> None:
    real, link, victim = tmp_path / "real", tmp_path / "link", tmp_path / "victim"
    for path in real, victim:
        path.mkdir()
    link.symlink_to(victim)
    os.lchown(link, USER, GROUP)
    outcomes = {"refused": 0, "opened": 0}
    with exchanging(real, link):
        for _ in range(20 * ATTEMPTS):
            try:
                descriptor = open_directory(tmp_path / "real")
            except OSError as error:
                outcomes["refused"] += isinstance(error, LinkOfAnother)
                continue
            outcomes["opened"] += 1
            assert not os.path.samestat(os.fstat(descriptor), victim.stat())
            os.close(descriptor)
    assert all(outcomes.values()), outcomes


@pytest.mark.parametrize("path", ["a/b/../c", "link/../c", "./a//b/.", "up/a", "nothing/x", "link/b/../.."])
def test_paths_mean_what_they_mean_to_the_kernel(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/c").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "a/b/b").mkdir()
    (tmp_path / "up").symlink_to(f"../{tmp_path.name}")
    monkeypatch.chdir(tmp_path)
    for given in path, str(tmp_path / path):
        assert resolve_mountpoint(given) == os.path.realpath(given)
        try:
            expected = os.stat(given).st_ino
        except OSError as error:
            with pytest.raises(type(error)):
                open_directory(given)
            continue
        descriptor = open_directory(given)
        assert os.fstat(descriptor).st_ino == expected
        os.close(descriptor)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for action in resolve_mountpoint, open_directory:
        with pytest.raises((OSError, MountError), match="Too many levels"):
            action(str(tmp_path / "a"))


# Renaming


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("link", [0, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("rename", [0, errno.EINVAL, errno.ENOSYS])
def test_a_rename_replaces_nothing_whatever_the_file_system_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, link: int, rename: int
) -> None:
    """Without renameat2(2)'s flag (nfs) and hard links (vfat, some FUSE file systems): by what they answer instead."""

    def fail(code: int) -> Callable[..., None]:
        def call(*arguments: object, **others: object) -> None:
            raise OSError(code, os.strerror(code))

        return call

    if rename:
        monkeypatch.setattr("mystfuse.system.libc.call", fail(rename))
    if link:
        monkeypatch.setattr("os.link", fail(link))
    old, new, taken = (tmp_path / name for name in ("old", "new", "taken"))
    old.mkdir() if kind == "directory" else old.touch()
    taken.write_text("theirs")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(FileExistsError):
            rename_without_replacing(directory, "old", "taken")
        assert old.exists() and taken.read_text() == "theirs"
        rename_without_replacing(directory, "old", "new")
        assert new.exists() and not old.exists()
    finally:
        os.close(directory)
