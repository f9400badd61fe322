"""Files that commands make and replace: owner, permissions, and that they survive a crash."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mystfuse.errors import MystfuseError
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.system.output_paths import rename_without_replacing
from tests.support.cli_in_process import in_process
from tests.support.commands import GROUP, USER, mystfuse, run
from tests.support.mounts import mounted

ACL = "system.posix_acl_access"
MASKS = (0, 0o022, 0o077, 0o777)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """os.umask, restored at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def replace(target: Path) -> os.stat_result:
    with AtomicFile(target, True) as file:
        file.write(b"new")
        file.commit()
    assert target.read_bytes() == b"new"
    return target.stat()


# Permissions and owners


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666, 0o755, 0o400, 0o604])
def test_a_replaced_file_keeps_its_mode_under_any_umask(
    tmp_path: Path, umask: Callable[[int], int], without_nameless: bool, mask: int, mode: int
) -> None:
    target = tmp_path / "image"
    target.write_text("old")
    target.chmod(mode)
    umask(mask)
    assert stat.S_IMODE(replace(target).st_mode) == mode


def test_no_set_id_bits_are_kept(tmp_path: Path, without_nameless: bool) -> None:
    target = tmp_path / "package"
    target.write_text("old")
    target.chmod(0o6755)
    assert stat.S_IMODE(replace(target).st_mode) == 0o755


def test_root_keeps_the_owner(tmp_path: Path, without_nameless: bool) -> None:
    target = tmp_path / "image"
    target.write_text("old")
    os.chown(target, 1234, 4321)
    target.chmod(0o640)
    found = replace(target)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640)


def test_an_acl_is_kept_and_none_is_handed_down(tmp_path: Path, without_nameless: bool) -> None:
    """The group's bits are the mask of an ACL: without it the group would get the permissions of the named users."""
    target = tmp_path / "image"
    target.write_text("old")
    target.chmod(0o600)
    run("setfacl", "-m", "u:1234:rw", target)
    before = os.getxattr(target, ACL)
    assert stat.S_IMODE(replace(target).st_mode) == 0o660
    assert os.getxattr(target, ACL) == before
    run("setfacl", "-b", target)
    run("setfacl", "-d", "-m", "u:1234:rw", tmp_path)
    assert stat.S_IMODE(replace(target).st_mode) == 0o600
    with pytest.raises(OSError) as caught:
        os.getxattr(target, ACL)
    assert caught.value.errno == errno.ENODATA


@pytest.mark.parametrize("what", ["owner", "acl"])
@pytest.mark.parametrize("mode", [0o660, 0o664, 0o604, 0o646])
def test_lost_attributes_cost_permissions_and_give_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, mode: int
) -> None:
    target = tmp_path / "image"
    target.write_text("old")
    os.chown(target, -1, 4321)
    target.chmod(mode)
    if what == "acl":
        run("setfacl", "-m", "u:1234:-", target)

    def refuse(*words: object) -> None:
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr(os, "fchown" if what == "owner" else "setxattr", refuse)
    both = (mode >> 3) & mode & 7 if what == "owner" else 0
    assert stat.S_IMODE(replace(target).st_mode) == (mode & 0o700 | both << 3 | both)


def test_no_user_gains_access_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_nameless: bool
) -> None:
    """After each call that changes the new file, every user who can open it could open the old one."""
    target = tmp_path / "image"
    target.write_text("old")
    os.chown(target, 1234, 4321)
    target.chmod(0o440)
    run("setfacl", "-m", "u:5678:r", target)
    seen: set[int] = set()
    made: list[int] = []
    open_file = os.open

    def watched_open(path: Any, flags: int, *words: Any, **options: Any) -> int:
        descriptor = open_file(path, flags, *words, **options)
        if flags & (os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY):
            made.append(descriptor)
            seen.add(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    def watch(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*words: Any, **options: Any) -> Any:
            result = real(*words, **options)
            seen.update(stat.S_IMODE(os.fstat(descriptor).st_mode) for descriptor in made)
            return result

        monkeypatch.setattr(os, name, call)

    monkeypatch.setattr(os, "open", watched_open)
    for name in ("fchmod", "fchown", "setxattr", "removexattr", "link", "replace", "fsync", "write"):
        watch(name)
    with AtomicFile(target, True) as file:
        file.write(b"new")
        file.commit()
    assert made
    assert seen and all(mode & 0o037 == 0 for mode in seen), [oct(mode) for mode in seen]
    assert stat.S_IMODE(target.stat().st_mode) == 0o440


def test_a_change_while_the_file_is_made_counts(tmp_path: Path, without_nameless: bool) -> None:
    target = tmp_path / "image"
    target.write_text("old")
    target.chmod(0o644)
    with AtomicFile(target, True) as file:
        target.chmod(0o600)
        file.commit()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.unlink()
    with AtomicFile(target, True) as file:
        target.write_text("made meanwhile")
        target.chmod(0o600)
        file.commit()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.chmod(0o600)
    with AtomicFile(target, True) as file:
        target.unlink()
        file.commit()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_file_system_that_gives_all_files_the_same_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vfat does, which refuses another. What would be wider than before is not made."""
    target = tmp_path / "image"
    for mode in 0o600, 0o755, 0o400:
        target.unlink(missing_ok=True)
        target.write_text("old")
        target.chmod(mode)
        with monkeypatch.context() as patch:

            def refuse(descriptor: int, mode: int) -> None:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

            patch.setattr(os, "fchmod", refuse)
            if mode == 0o400:
                with pytest.raises(MystfuseError, match="cannot be written: Operation not permitted"):
                    replace(target)
                assert target.read_text() == "old"
            else:
                assert stat.S_IMODE(replace(target).st_mode) & ~mode == 0


def test_a_link_that_is_replaced_gives_no_more_than_its_target_has(tmp_path: Path, without_nameless: bool) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o600)
    for name in "real", "nothing":
        (tmp_path / "link").symlink_to(name)
        assert stat.S_IMODE(replace(tmp_path / "link").st_mode) == (0o600 if name == "real" else 0o644)
        (tmp_path / "link").unlink()
    assert (tmp_path / "real").read_text() == "old"


def test_another_users_file_in_a_shared_directory_is_not_replaced(tmp_path: Path) -> None:
    """Root's image would be that user's to read and to change."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    target = shared / "image"
    target.write_text("bait")
    os.chown(target, USER, GROUP)
    with pytest.raises(MystfuseError, match=f"user {USER}'s, in a directory that others may write to"):
        AtomicFile(target, True)
    assert os.listdir(shared) == ["image"]
    shared.chmod(0o755)
    assert replace(target).st_uid == USER


@pytest.mark.parametrize("who", ["root", "user"])
@pytest.mark.parametrize("mask", [0, 0o077])
def test_every_command_that_replaces_keeps_the_mode(
    small_tree: Path,
    make_keys: Callable[..., tuple[Path, Path]],
    open_tmp_path: Path,
    ordinary_user: list[str],
    who: str,
    mask: int,
) -> None:
    where = open_tmp_path
    (where / "config").write_text(json.dumps({"version": "0.1", "ApplicationPath": "/bin/sh", "Debug": 1}))
    (where / "private.pem").write_bytes(make_keys("output")[1].read_bytes())
    (where / "source").mkdir()
    (where / "source/file").write_text("content")
    (where / "key").write_bytes(bytes(range(64)))
    (where / "key").chmod(0o600)
    (where / "out").mkdir()
    if who == "user":
        for path in where.rglob("*"):
            os.chown(path, USER, GROUP)

    def command(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        if who == "root":
            return mystfuse(*words, umask=mask, **options)
        return run(*ordinary_user, *words, check=False, umask=mask, **options)

    encrypted = where / "out/encrypted"
    assert command("mkext2", "--encrypt", where / "key", where / "source", encrypted).returncode == 0
    assert stat.S_IMODE(encrypted.stat().st_mode) == 0o600
    (where / "mount").mkdir()
    if who == "user":
        os.chown(where / "mount", USER, GROUP)
    result = command("mount", "--key-file", where / "key", encrypted, where / "mount")
    assert result.returncode == 0, result.stderr
    try:
        for words, new_mode in (
            (("mkext2", where / "source"), 0o666 & ~mask),
            (("mkext2", "--encrypt", where / "key", where / "source"), 0o600),
            (("commit", "--encrypt", where / "key", where / "mount"), 0o600),
            (("commit", "--decrypt", where / "mount"), 0o600),
            (("package", where / "private.pem", where / "config", "-o"), 0o777 & ~mask),
        ):
            target = where / "out/target"
            result = command(*words, target)
            assert result.returncode == 0, result.stderr
            assert stat.S_IMODE(target.stat().st_mode) == new_mode, words
            for mode in 0o600, 0o640:
                target.chmod(mode)
                if who == "root":
                    os.chown(target, 1234, 4321)
                owner = (target.stat().st_uid, target.stat().st_gid)
                result = command(words[0], "--force", *words[1:], target)
                assert result.returncode == 0, result.stderr
                found = target.stat()
                assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, *owner), words
            target.unlink()
    finally:
        command("umount", where / "mount")
    assert sorted(os.listdir(where / "out")) == ["encrypted"]


# On disk before it is reported


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was written to disk, and what was given a name, in this order, of ``out``."""
    made: list[str] = []

    def watch(name: str, describe: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*words: Any, **options: Any) -> Any:
            result = real(*words, **options)
            made.append(describe(*words))
            return result

        monkeypatch.setattr(os, name, call)

    def of(descriptor: int) -> str:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return f"directory {os.path.basename(path)}" if os.path.isdir(path) else "file"

    watch("fsync", lambda descriptor: f"sync {of(descriptor)}")
    watch("link", lambda old, new: f"name {os.fsdecode(new)}" if not os.fsdecode(new).startswith(".") else "hidden")
    watch("replace", lambda old, new: f"name {new}")

    def rename(directory: int, old: bytes | str, new: bytes | str) -> None:
        rename_without_replacing(directory, old, new)
        made.append(f"name {os.fsdecode(new)}")

    for module in "system.atomic_file", "tree.extract":
        monkeypatch.setattr(f"mystfuse.{module}.rename_without_replacing", rename)

    def sync_all(descriptor: int) -> None:
        made.append("sync all")

    monkeypatch.setattr("mystfuse.system.output_paths._syncfs", sync_all)
    return made


@pytest.mark.parametrize("force", [False, True])
def test_content_comes_before_the_name_and_the_directory_last(
    tmp_path: Path, calls: list[str], without_nameless: bool, force: bool
) -> None:
    (tmp_path / "out").mkdir()
    with AtomicFile(tmp_path / "out/image", force) as file:
        file.write(b"content")
        file.commit()
    assert [call for call in calls if call != "hidden"] == ["sync file", "name image", "sync directory out"]


def test_every_command_has_the_name_on_disk(
    small_tree: Path,
    small_image: Path,
    make_keys: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "config").write_text(json.dumps({"version": "0.1", "ApplicationPath": "/bin/prog", "Debug": 1}))
    private = make_keys("output")[1]
    out = tmp_path / "out"
    out.mkdir()
    with mounted(small_image, tmp_path / "mount") as mountpoint:
        for words in (
            ("mkext2", small_tree, out / "image"),
            ("mkext2", "--force", small_tree, out / "image"),
            ("commit", mountpoint, out / "committed"),
            ("package", "-o", out / "package", private, tmp_path / "config"),
        ):
            calls.clear()
            result = in_process(*words)
            assert result.returncode == 0, result.stderr
            name = next(word.name for word in words if isinstance(word, Path) and word.parent == out)
            assert [call for call in calls if call != "hidden"][-3:] == [
                "sync file",
                f"name {name}",
                "sync directory out",
            ]
    monkeypatch.chdir(out)
    calls.clear()
    assert in_process("package", private, tmp_path / "config").returncode == 0
    assert calls == [
        "sync directory out", "sync directory myst", "sync file", "name prog", "sync directory bin"
    ]  # fmt: skip


def test_extract_has_all_on_disk_before_the_name(small_image: Path, tmp_path: Path, calls: list[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    result = in_process("extract", small_image, "/", out / "tree")
    assert result.returncode == 0, result.stderr
    assert calls[-3:] == ["sync all", "name tree", "sync directory out"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_a_failing_sync_is_reported_and_a_missing_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync

    def fail_for_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_directories)
    with AtomicFile(tmp_path / "image", False) as file:
        if code == errno.EIO:
            with pytest.raises(MystfuseError, match="made, but may be gone after a crash: Input/output error"):
                file.commit()
        else:
            file.commit()
    assert os.listdir(tmp_path) == ["image"]


def test_an_unlistable_directory(open_tmp_path: Path, ordinary_user: list[str]) -> None:
    (open_tmp_path / "source").mkdir()
    (open_tmp_path / "drop").mkdir()
    os.chown(open_tmp_path / "drop", USER, GROUP)
    (open_tmp_path / "drop").chmod(0o300)
    result = run(*ordinary_user, "mkext2", open_tmp_path / "source", open_tmp_path / "drop/image", check=False)
    assert result.returncode == 0, result.stderr
    assert os.listdir(open_tmp_path / "drop") == ["image"]


def test_syncfs_is_called_for_what_it_is(tmp_path: Path) -> None:
    from mystfuse.system.output_paths import sync_file_system

    directory = os.open(tmp_path, os.O_PATH)
    sync_file_system(directory)
    os.close(directory)
    with pytest.raises(OSError):
        sync_file_system(directory)
