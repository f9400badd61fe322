"""Images that are damaged while they are mounted, and --on-corruption=unmount."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import SBIN, mystfuse, run
from tests.support.damaged_images import (
    BLOCK,
    PER_BLOCK,
    WALK,
    Subject,
    assert_never_wrong,
    assert_sound,
    flip,
    read_at,
    walk,
    write_at,
)
from tests.support.mounts import caches_kept, clear_mount, drop_caches


@contextlib.contextmanager
def mounted_copy(copy: Path, subject: Subject, tmp_path: Path, *options: str) -> Iterator[Path]:
    """A mount with a log; it has to end cleanly."""
    mountpoint, log = tmp_path / "mount", tmp_path / "log"
    mountpoint.mkdir()
    try:
        result = mystfuse("mount", f"--log-file={log}", subject.trust, *options, copy, mountpoint)
        assert result.returncode == 0, result.stderr
        yield mountpoint
        assert mystfuse("status", mountpoint).returncode == 0
        assert mystfuse("umount", mountpoint).returncode == 0
    finally:
        clear_mount(mountpoint)
    assert_sound(log.read_text())


def test_changed_in_place_while_mounted(subject: Subject, copy: Path, tmp_path: Path) -> None:
    with caches_kept(), mounted_copy(copy, subject, tmp_path) as mountpoint:
        seen_before = (mountpoint / "a/19").read_bytes()
        damaged = {block for path in ("big", "a/7", "a/19") for block in subject.data[path]}
        before = {block: read_at(copy, block * BLOCK, BLOCK) for block in damaged}
        for block in damaged:
            write_at(copy, block * BLOCK, os.urandom(BLOCK))
        found = walk(mountpoint, subject)
        assert_never_wrong(found)
        assert found["big"] == found["a/7"] == "EIO"
        assert (mountpoint / "a/19").read_bytes() == seen_before, "the kernel had it already"
        safe = subject.safe(damaged)
        assert {path for path in safe if found[path] != "right"} == set()
        status = json.loads(mystfuse("status", "--json", mountpoint).stdout)
        assert status["blocks_failed"] > 0
        # Repaired blocks read right again.
        for block, data in before.items():
            write_at(copy, block * BLOCK, data)
        assert set(walk(mountpoint, subject).values()) == {"right"}


def test_hash_tree_overwritten_while_mounted(subject: Subject, copy: Path, tmp_path: Path) -> None:
    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        (mountpoint / "empty").read_bytes()
        write_at(copy, subject.level_offset(2), bytes(163 * BLOCK))
        found = walk(mountpoint, subject)
        assert_never_wrong(found)
        assert found["big"] == "EIO"
        # Verified hash blocks stay cached: the first one of level 0 verifies all data in its span.
        early = subject.safe(set(range(PER_BLOCK, 20480)))
        assert {path for path in early if found[path] != "right"} == set()


@pytest.mark.parametrize("how", ["truncated", "truncated and grown", "zeroed"])
def test_cut_short_while_mounted(how: str, subject: Subject, copy: Path, tmp_path: Path) -> None:
    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        (mountpoint / "a/5").read_bytes()
        size = copy.stat().st_size
        os.truncate(copy, 0 if how == "zeroed" else 5000)
        if how != "truncated":
            os.truncate(copy, size)
        drop_caches()
        found = walk(mountpoint, subject)
        assert_never_wrong(found)
        assert found["big"] == "EIO"


def test_deleted_or_replaced_while_mounted(subject: Subject, copy: Path, small_image: Path, tmp_path: Path) -> None:
    """The daemon has the file open, so its data stays readable."""
    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        other = tmp_path / "other"
        run("cp", small_image, other)
        os.replace(other, copy)
        (mountpoint / "a/1").read_bytes()
        copy.unlink()
        assert set(walk(mountpoint, subject).values()) == {"right"}


def test_never_a_wrong_byte_while_another_process_keeps_writing(subject: Subject, copy: Path, tmp_path: Path) -> None:
    """The image alternates between right and wrong bytes under four readers."""
    stop = threading.Event()
    used = sorted(
        {block for path, blocks in subject.data.items() if path.startswith(("big", "a/")) for block in blocks}
    )
    original = {block: read_at(copy, block * BLOCK, BLOCK) for block in used}

    def spoil() -> None:
        dice = random.Random(5)
        with copy.open("r+b", buffering=0) as file:
            while not stop.is_set():
                block = dice.choice(used)
                os.pwrite(file.fileno(), dice.randbytes(BLOCK), block * BLOCK)
                os.pwrite(file.fileno(), original[block], block * BLOCK)

    with mounted_copy(copy, subject, tmp_path) as mountpoint:
        writer = threading.Thread(target=spoil)
        writer.start()
        results = 0
        try:
            for _ in range(3):
                walkers = [
                    subprocess.Popen(
                        [sys.executable, "-c", WALK, mountpoint, subject.source, subject.expected],
                        stdout=subprocess.PIPE,
                    )
                    for _ in range(3)
                ]
                for walker in walkers:
                    try:
                        output, _ = walker.communicate(timeout=40)
                    finally:
                        walker.kill()
                    assert_never_wrong(json.loads(output))
                    results += 1
                drop_caches()
        finally:
            stop.set()
            writer.join()
        assert results == 9
        assert set(walk(mountpoint, subject).values()) == {"right"}


def test_on_corruption_unmount_ends_the_mount_and_the_daemon(subject: Subject, copy: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    flip(copy, subject.data["big"][300] * BLOCK)
    read_end, write_end = os.pipe()
    options = ("-f", f"--ready-fd={write_end}", subject.trust, "--on-corruption=unmount")
    process = subprocess.Popen(
        [sys.executable, "-m", "mystfuse", "mount", *options, copy, mountpoint],
        env={**os.environ, "PATH": SBIN},
        pass_fds=[write_end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        os.close(write_end)
        assert select.select([read_end], [], [], 20)[0]
        assert os.read(read_end, 100) == b"ready\n"
        assert (mountpoint / "a/3").read_bytes() == (subject.source / "a/3").read_bytes()
        with pytest.raises(OSError, match=r"Input/output error|not connected|connection abort"):
            (mountpoint / "big").read_bytes()
        _, error = process.communicate(timeout=20)
        assert process.returncode == 4
        assert "unmounting because of damage" in error
        assert_sound(error)
        assert not os.path.ismount(mountpoint)
        assert not list(mountpoint.iterdir())
    finally:
        os.close(read_end)
        if process.poll() is None:
            process.kill()
            process.communicate()
        clear_mount(mountpoint)


def test_on_corruption_unmount_as_a_daemon(subject: Subject, copy: Path, tmp_path: Path) -> None:
    mountpoint, log = tmp_path / "mount", tmp_path / "log"
    mountpoint.mkdir()
    flip(copy, subject.data["c/d/e/deep"][20] * BLOCK)
    try:
        result = mystfuse("mount", "-o", "on_corruption=unmount", f"--log-file={log}", subject.trust, copy, mountpoint)
        assert result.returncode == 0
        pid = json.loads(mystfuse("status", "--json", mountpoint).stdout)["pid"]
        run("cat", mountpoint / "c/d/e/deep", check=False, timeout=20)
        deadline = time.monotonic() + 15
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()
        assert not os.path.ismount(mountpoint)
        assert "unmounting because of damage" in log.read_text()
        assert_sound(log.read_text())
    finally:
        clear_mount(mountpoint)
