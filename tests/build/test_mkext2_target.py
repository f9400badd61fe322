"""The target of ``mystfuse mkext2``: a whole image or none, in every failure."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mystfuse.errors import MystfuseError
from mystfuse.system.atomic_file import AtomicFile
from tests.support.commands import GROUP, SBIN, USER, mystfuse, run
from tests.support.made_images import MIB, assert_clean, assert_refused, make


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 2 MiB."""
    mountpoint = tmp_path_factory.mktemp("full")
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)


def test_an_existing_target_is_kept_unless_forced(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_text("precious")
    assert_refused(mystfuse("mkext2", small_tree, image), 1, "already exists", "--force")
    assert image.read_text() == "precious"
    for failing in (("--salt=x", small_tree), ("--force", tmp_path / "missing"), ("--force", "--size=1", small_tree)):
        assert mystfuse("mkext2", "--force", *failing, image).returncode == 2
        assert image.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
    with image.open() as still_open:
        make(small_tree, image, "--force")
        assert still_open.read() == "precious", "it has to be replaced, not written over"
    assert_clean(image)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_dangling_link_or_a_directory_is_no_target(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "link"), 1, "already exists")
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "directory"), 1)
    assert_refused(mystfuse("mkext2", "--force", small_tree, tmp_path / "directory"), 1, "is a directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "link"]


def test_the_new_image_gets_ordinary_permissions(small_tree: Path, tmp_path: Path) -> None:
    result = run("sh", "-c", 'umask 027; exec "$@"', "sh", sys.executable, "-m", "mystfuse", "mkext2", small_tree,
                 tmp_path / "image")  # fmt: skip
    assert result.returncode == 0
    assert stat.S_IMODE((tmp_path / "image").stat().st_mode) == 0o640


def test_unwritable_targets_are_reported_and_nothing_is_left(small_tree: Path, tmp_path: Path) -> None:
    readonly = tmp_path / "read-only"
    readonly.mkdir()
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", readonly)
    try:
        assert_refused(mystfuse("mkext2", small_tree, readonly / "image"), 1, "Read-only file system")
        assert not list(readonly.iterdir())
    finally:
        run("umount", readonly)
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "missing/image"), 1, "there is no directory")
    (tmp_path / "file").touch()
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / "file/image"), 1, "Not a directory")
    assert_refused(mystfuse("mkext2", small_tree, tmp_path / ("x" * 256)), 1, "name too long")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "read-only"]


def test_sources_that_are_none_are_refused(small_tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    assert_refused(mystfuse("mkext2", tmp_path / "missing", image), 2, "no such directory")
    assert_refused(mystfuse("mkext2", small_tree / "hello.txt", image), 2, "not a directory")
    assert_refused(mystfuse("mkext2", small_tree), 2)
    assert not list(tmp_path.iterdir())


def test_an_unreadable_source_fails_and_leaves_nothing(open_tmp_path: Path, ordinary_user: list[str]) -> None:
    source, target = open_tmp_path / "source", open_tmp_path / "target"
    source.mkdir()
    target.mkdir()
    os.chown(target, USER, GROUP)
    (source / "secret").write_text("root's")
    (source / "secret").chmod(0o600)
    result = run(*ordinary_user, "mkext2", source, target / "image", check=False, cwd=open_tmp_path)
    assert_refused(result, 1, "Permission denied")
    assert not list(target.iterdir())
    (source / "secret").chmod(0o644)
    run(*ordinary_user, "mkext2", source, target / "image", cwd=open_tmp_path)
    assert_clean(target / "image")


@pytest.mark.parametrize("options", [(), ("--size=400M", "--block-size=4096")])
def test_a_full_disk_is_reported_and_nothing_is_left(
    options: tuple[str, ...], full_disk: Path, rich_tree: Path, tmp_path: Path
) -> None:
    """The disk fills up while mke2fs copies, and while we write the hash tree."""
    source = tmp_path / "source"
    source.mkdir()
    if not options:
        (source / "large").write_bytes(os.urandom(3 * MIB))
    assert_refused(mystfuse("mkext2", *options, source, full_disk / "image"), 1)
    assert not list(full_disk.iterdir())
    assert os.statvfs(full_disk).f_bfree * os.statvfs(full_disk).f_frsize == 2 * MIB


def is_mke2fs(pid: int) -> bool:
    """Whether this process, once a grandchild of ours, still exists."""
    try:
        return b"mke2fs" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def is_copying(pid: int) -> bool:
    """Whether this process is mke2fs filling a file system, neither the dry run before nor a process that is about to
    become mke2fs."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return arguments[0].endswith(b"/mke2fs") and b"-d" in arguments


@pytest.mark.parametrize("phase", ["copying", "hashing"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing_behind(number: int, phase: str, tiny_files: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    options = ["--size=16G"] if phase == "hashing" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mkext2", *options, tiny_files, target / "image"],
        env={**os.environ, "PATH": SBIN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child = 0
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            child = next(filter(is_copying, map(int, children)), child)
            if child and (phase == "copying" or not children):
                break
            time.sleep(0.002)
        assert child
        if phase == "copying":
            # It takes half a second, and the machine may delay us for longer: it must not finish meanwhile.
            os.kill(child, signal.SIGSTOP)
            assert is_copying(child)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(number)
        if phase == "copying":
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
        _, error = process.communicate(timeout=20)
        assert time.monotonic() - started < 5
        if number == signal.SIGINT:
            assert process.returncode == 1
            assert error == "mystfuse: interrupted\n"
        elif number == signal.SIGTERM:
            assert process.returncode in (1, -signal.SIGTERM)
            assert "Traceback" not in error
        assert not list(target.iterdir())
        # The helper process ends too; otherwise it would fill the disk unnoticed.
        deadline = time.monotonic() + 0.25
        while is_mke2fs(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_mke2fs(child)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if child and is_mke2fs(child):
            os.kill(child, signal.SIGKILL)


def test_without_nameless_files_a_hidden_name_is_used_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file system here has O_TMPFILE, so the test fakes its refusal."""
    real_open = os.open

    def open_without_tmpfile(path: Any, flags: int, *arguments: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, *arguments, **kwargs)

    monkeypatch.setattr(os, "open", open_without_tmpfile)
    target = tmp_path / "target"
    with AtomicFile(target, False) as file:
        os.write(file.fd, b"one")
        assert [path.name.startswith(".target.") for path in tmp_path.iterdir()] == [True]
        file.commit()
    assert target.read_bytes() == b"one"
    with pytest.raises(ZeroDivisionError), AtomicFile(target, True) as file:
        os.write(file.fd, b"two")
        raise ZeroDivisionError
    with pytest.raises(MystfuseError), AtomicFile(tmp_path / "raced", False) as file:
        (tmp_path / "raced").write_text("was first")
        file.commit()
    assert (tmp_path / "raced").read_text() == "was first"
    (tmp_path / "raced").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_bytes() == b"one"
    with AtomicFile(target, True) as file:
        os.write(file.fd, b"three")
        file.commit()
    assert target.read_bytes() == b"three"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
