"""The states and changes of real mounts, against walks over both; who may read them, and what goes wrong."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
import trio

from mystfuse.errors import ImageReadError, MountError, MystfuseError
from mystfuse.tree.diff.change import Aspect, Kind
from mystfuse.tree.diff.written_changes import changes_since_mount, open_mount_states
from tests.mounting.test_mount_options import as_user
from tests.support.commands import GROUP, USER, mystfuse, run
from tests.support.encrypted_images import write_secret
from tests.support.mounts import HAS_FAST_PATH, clear_mount, mounted, status_of
from tests.support.scrambler import Scrambler
from tests.support.state_comparisons import assert_states_compare_right

OPTIONS = [(), ("-o", "nofastpath")] if HAS_FAST_PATH else [()]


@pytest.fixture(scope="module")
def image(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_tree`` and room. Tests must not write to it."""
    path = tmp_path_factory.mktemp("states") / "image"
    result = mystfuse("mkext2", "--free=24M", small_tree, path)
    assert result.returncode == 0, result.stderr
    return path


async def compare(mountpoint: Path) -> list[tuple[str, Kind]]:
    async with open_mount_states(str(mountpoint)) as states:
        changes = await assert_states_compare_right(states)
        return [(os.fsdecode(change.path), change.kind) for change in changes]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
async def test_random_changes(image: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    for seed in range(4):
        with mounted(image, tmp_path / "mount", *options) as mountpoint:
            assert await compare(mountpoint) == []
            scrambler = Scrambler(mountpoint, random.Random(seed))
            for count in (1, 2, 5, 20, 60):
                await trio.to_thread.run_sync(scrambler.change, count)
                await compare(mountpoint)


async def test_beside_writers(image: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def scramble(root: Path, seed: int) -> None:
        scrambler = Scrambler(root, random.Random(seed))
        while not stop.is_set():
            scrambler.change(1)

    with mounted(image, tmp_path / "mount") as mountpoint:
        for number in range(2):
            (mountpoint / str(number)).mkdir()
        writers = [threading.Thread(target=scramble, args=(mountpoint / str(number), number)) for number in range(2)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(6):
                assert await compare(mountpoint)
        finally:
            stop.set()
            for writer in writers:
                writer.join()


async def test_what_a_person_would_say(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount") as mountpoint:
        data = (mountpoint / "sub/deep/data.bin").read_bytes()
        with (mountpoint / "sub/deep/data.bin").open("r+b") as file:
            file.write(data[:5000])
        (mountpoint / "sub").rename(mountpoint / "moved")
        (mountpoint / "new/below").mkdir(parents=True)
        (mountpoint / "empty").unlink()
        (mountpoint / "hello.txt").chmod(0o600)
        changes = {os.fsdecode(change.path): change for change in await changes_since_mount(str(mountpoint))}
    assert {path: change.kind for path, change in changes.items() if path} == {
        "moved": Kind.RENAMED,
        "moved/deep/data.bin": Kind.CHANGED,
        "moved/hard": Kind.CHANGED,
        "hello.txt": Kind.CHANGED,
        "empty": Kind.REMOVED,
        "new": Kind.ADDED,
        "new/below": Kind.ADDED,
    }
    assert changes["moved"].old_path == b"sub"
    # Written with the same bytes, and found in a directory that has not changed.
    assert changes["moved/deep/data.bin"].aspects == {Aspect.MTIME}
    assert changes["moved/hard"].aspects == changes["hello.txt"].aspects == {Aspect.MODE}


async def test_a_read_only_mount_has_no_changes(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount", "--read-only") as mountpoint:
        assert await compare(mountpoint) == []


async def test_blocks_in_the_store_and_an_encrypted_image(small_tree: Path, tmp_path: Path) -> None:
    key = write_secret(tmp_path / "key", random.Random(2).randbytes(64))
    made = mystfuse("mkext2", "--free=24M", f"--encrypt={key}", small_tree, tmp_path / "image")
    assert made.returncode == 0, made.stderr
    (tmp_path / "store").mkdir()
    options = (f"--key-file={key}", "--overlay-limit=2M", f"--overlay-store={tmp_path / 'store'}")
    with mounted(tmp_path / "image", tmp_path / "mount", *options) as mountpoint:
        (mountpoint / "large").write_bytes(random.Random(3).randbytes(8 << 20))
        assert status_of(mountpoint)["overlay_store_used"] > 4 << 20
        Scrambler(mountpoint, random.Random(4)).change(40)
        assert ("large", Kind.ADDED) in await compare(mountpoint) or not (mountpoint / "large").exists()


async def test_only_the_mounting_user_and_root_may_ask(image: Path, open_tmp_path: Path) -> None:
    def ask() -> str:
        try:
            trio.run(changes_since_mount, str(mountpoint))
        except MystfuseError as error:
            return str(error)
        return "no error"

    with mounted(image, open_tmp_path / "mount", "--allow-other") as mountpoint:
        (mountpoint / "new").touch()
        said = await trio.to_thread.run_sync(as_user, ask)
        assert "Permission denied" in said and "\n" not in said


def test_an_ordinary_user_asks_an_own_mount(image: Path, open_tmp_path: Path, ordinary_user: list[str]) -> None:
    copy, mountpoint = open_tmp_path / "image", open_tmp_path / "mount"
    run("cp", "--sparse=always", image, copy)
    copy.chmod(0o644)
    mountpoint.mkdir()
    os.chown(mountpoint, USER, GROUP)
    code = f"""import trio
from mystfuse.tree.diff.written_changes import changes_since_mount
mountpoint = {str(mountpoint)!r}
open(mountpoint + "/hello.txt", "w").close()
print([change.path for change in trio.run(changes_since_mount, mountpoint)])"""
    try:
        # Owners are compared as the image has them.
        run(*ordinary_user, "--map-root", copy, mountpoint, cwd=open_tmp_path)
        said = run(*ordinary_user[:-2], "-c", code, cwd=open_tmp_path).stdout
        assert said == "[b'hello.txt', b'sub/hard']\n"
    finally:
        clear_mount(mountpoint)


async def test_no_mount_of_ours(image: Path, tmp_path: Path) -> None:
    with pytest.raises(MountError, match="nocontrol"):
        await changes_since_mount(str(tmp_path))
    options = ("-o", "nocontrol")
    with mounted(image, tmp_path / "mount", *options) as mountpoint, pytest.raises(MountError, match="nocontrol"):
        await changes_since_mount(str(mountpoint))


async def test_too_many_states_are_open(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount") as mountpoint:
        descriptors = [os.open(mountpoint / ".mystfuse/image", os.O_RDONLY) for _ in range(4)]
        with pytest.raises(ImageReadError, match="try again later"):
            await changes_since_mount(str(mountpoint))
        for descriptor in descriptors:
            os.close(descriptor)


async def test_damage_is_an_error_only_where_it_is_needed(image: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    run("cp", "--sparse=always", image, damaged)
    # Far from other files in the same block of the hash tree.
    position = damaged.read_bytes().index(bytes(range(256)) * 16) + 150_000
    with damaged.open("r+b") as file:
        file.seek(position)
        file.write(b"!")
    with mounted(damaged, tmp_path / "mount") as mountpoint:
        (mountpoint / "hello.txt").write_text("changed\n")
        found = [change.path for change in await changes_since_mount(str(mountpoint))]
        assert b"hello.txt" in found
        with (mountpoint / "sub/deep/data.bin").open("r+b") as file:
            file.seek(140_000)
            file.write(b"x" * 20_000)
        with pytest.raises(ImageReadError, match="damaged"):
            await changes_since_mount(str(mountpoint))


async def test_a_mount_that_does_not_answer(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mount") as mountpoint:
        pid = status_of(mountpoint)["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ImageReadError, match="no answer"):
                await changes_since_mount(str(mountpoint), io_timeout=0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await changes_since_mount(str(mountpoint)) == []
