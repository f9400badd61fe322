"""``.mystfuse/base`` and ``.mystfuse/written``: the image that was mounted, and what differs from it."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from tests.mounting.test_mount_options import as_user
from tests.support.commands import mystfuse, run, wait_until
from tests.support.encrypted_images import write_secret
from tests.support.ext2_editor import assert_clean
from tests.support.mounts import HAS_FAST_PATH, mounted, status_of
from tests.support.written_state import apply, parse_written, read_all, state_of, written_of

OPTIONS = [(), ("-o", "nofastpath")] if HAS_FAST_PATH else [()]


def bare(image: Path) -> bytes:
    """The file system of an image that is not encrypted."""
    with (image).open("rb") as file:
        data = file.read()
    return data[: int.from_bytes(data[-4080:-4072], "little")]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_base_and_written_make_the_merged_image(image: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    with mounted(image, tmp_path / "mount", *options) as mountpoint:
        assert (mountpoint / ".mystfuse/base").read_bytes() == bare(image)
        assert written_of(mountpoint) == {}
        (mountpoint / "new").write_bytes(b"written" * 10_000)
        (mountpoint / "hello.txt").unlink()
        (mountpoint / "sub/deep/data.bin").write_bytes(b"shorter")
        assert (mountpoint / ".mystfuse/base").read_bytes() == bare(image)
        state = state_of(mountpoint)
        assert_clean(state, tmp_path / "state")
        # But for free blocks, which ``image`` has as zeros.
        merged = (mountpoint / ".mystfuse/image").read_bytes()
        assert len(merged) == len(state)
        for start in range(0, len(state), 1024):
            assert merged[start : start + 1024] in (state[start : start + 1024], bytes(1024))
        assert b"written" * 500 in state


def test_a_read_only_mount_has_written_nothing(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount", "--read-only") as mountpoint:
        assert state_of(mountpoint) == bare(image)
        assert len((mountpoint / ".mystfuse/written").read_bytes()) == 4096


def test_written_stays_as_it_was_when_it_was_opened(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount") as mountpoint:
        (mountpoint / "first").write_bytes(b"first" * 1000)
        descriptor = os.open(mountpoint / ".mystfuse/written", os.O_RDONLY)
        (mountpoint / "first").write_bytes(b"FIRST" * 100_000)
        (mountpoint / "second").write_bytes(b"second" * 1000)
        written = parse_written(read_all(descriptor))
        os.close(descriptor)
        state = apply(bare(image), written)
        assert b"first" * 100 in state and b"FIRST" not in state and b"second" * 100 not in state
        assert_clean(state, tmp_path / "state")


def test_files_without_a_name_are_not_in_it(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount") as mountpoint, (mountpoint / "open").open("wb") as file:
        file.write(b"nameless" * 10_000)
        file.flush()
        (mountpoint / "open").unlink()
        state = state_of(mountpoint)
        assert b"nameless" not in state
        assert_clean(state, tmp_path / "state")


def test_blocks_in_the_overlays_store(image: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    content = random.Random(1).randbytes(16 << 20)
    options = ("--overlay-limit=4M", f"--overlay-store={tmp_path / 'store'}")
    with mounted(image, tmp_path / "mount", *options) as mountpoint:
        (mountpoint / "large").write_bytes(content)
        assert status_of(mountpoint)["overlay_store_used"] > 8 << 20
        state = state_of(mountpoint)
        assert content[8 << 20 : (8 << 20) + 4096] in state
        assert_clean(state, tmp_path / "state")
        with (mountpoint / ".mystfuse/written").open("rb") as file:
            with (mountpoint / "large").open("r+b") as large:
                large.write(bytes(4 << 20))
            assert apply(bare(image), parse_written(read_all(file.fileno()))) == state


def test_an_encrypted_image(small_tree: Path, tmp_path: Path) -> None:
    key = write_secret(tmp_path / "key", random.Random(2).randbytes(64))
    made = mystfuse("mkext2", "--free=8M", f"--encrypt={key}", small_tree, tmp_path / "image")
    assert made.returncode == 0, made.stderr
    with mounted(tmp_path / "image", tmp_path / "mount", f"--key-file={key}") as mountpoint:
        (mountpoint / "hello.txt").write_text("changed\n")
        base = (mountpoint / ".mystfuse/base").read_bytes()
        assert b"hello\n" in base and b"hello\n" not in (tmp_path / "image").read_bytes()
        assert_clean(base, tmp_path / "base")
        state = state_of(mountpoint)
        assert b"changed\n" in state
        assert_clean(state, tmp_path / "state")


def test_they_are_for_the_mounting_user_and_root_alone(image: Path, open_tmp_path: Path) -> None:
    with mounted(image, open_tmp_path / "mount", "--allow-other") as mountpoint:
        for name in ("base", "written"):
            path = mountpoint / ".mystfuse" / name
            assert path.stat().st_mode == 0o100400
            assert as_user(lambda path=path: os.open(path, os.O_RDONLY)) == errno.EACCES


def test_states_are_consistent_beside_writers(image: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def write(mountpoint: Path, number: int) -> None:
        chance = random.Random(number)
        directory = mountpoint / f"writer{number}"
        directory.mkdir()
        while not stop.is_set():
            path = directory / str(chance.randrange(20))
            match chance.randrange(4):
                case 0:
                    path.unlink(missing_ok=True)
                case 1 if path.exists():
                    path.rename(directory / str(chance.randrange(20)))
                case _:
                    path.write_bytes(chance.randbytes(chance.randrange(100_000)))

    with mounted(image, tmp_path / "mount") as mountpoint:
        base = (mountpoint / ".mystfuse/base").read_bytes()
        writers = [threading.Thread(target=write, args=(mountpoint, number)) for number in range(3)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(8):
                assert_clean(apply(base, written_of(mountpoint)), tmp_path / "state")
        finally:
            stop.set()
            for writer in writers:
                writer.join()


def test_so_many_may_be_open_and_no_more(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount") as mountpoint:
        path = mountpoint / ".mystfuse/written"
        descriptors = [os.open(path, os.O_RDONLY) for _ in range(4)]
        with pytest.raises(OSError) as caught:
            os.open(path, os.O_RDONLY)
        assert caught.value.errno == errno.EBUSY
        # The base holds nothing.
        bases = [os.open(mountpoint / ".mystfuse/base", os.O_RDONLY) for _ in range(10)]
        for descriptor in descriptors + bases:
            os.close(descriptor)
        wait_until(lambda: os.close(os.open(path, os.O_RDONLY)) is None)


def test_reads_at_any_offset(image: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    with mounted(image, tmp_path / "mount") as mountpoint:
        (mountpoint / "new").write_bytes(chance.randbytes(300_000))
        for name in ("base", "written"):
            with (mountpoint / ".mystfuse" / name).open("rb", buffering=0) as file:
                whole = read_all(file.fileno())
                assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
                for _ in range(200):
                    start, length = chance.randrange(len(whole) + 10), chance.choice([1, 31, 33, 5000, 70_000])
                    assert os.pread(file.fileno(), length, start) == whole[start : start + length]


def test_damage_in_the_base_is_an_error_there_alone(image: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    run("cp", "--sparse=always", image, damaged)
    position = damaged.read_bytes().index(bytes(range(256)) * 16)
    with damaged.open("r+b") as file:
        file.seek(position)
        file.write(b"!")
    with mounted(damaged, tmp_path / "mount") as mountpoint:
        with (mountpoint / ".mystfuse/base").open("rb") as file:
            with pytest.raises(OSError) as caught:
                os.pread(file.fileno(), 4096, position // 4096 * 4096)
            assert caught.value.errno == errno.EIO
            assert len(os.pread(file.fileno(), 4096, 0)) == 4096
        assert status_of(mountpoint)["blocks_failed"] == 1
