"""Requests that change the file system are answered at once, or later, and never both."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from mystfuse.fuse import protocol
from mystfuse.fuse.protocol import FATTR_MODE, FATTR_SIZE
from mystfuse.volume.volume import Volume
from tests.support import fuse_requests as fuse
from tests.support.commands import run
from tests.support.ext2_editor import assert_clean, make_image, merged
from tests.support.fuse_requests import CachedDevice, Direct, created, entry_ino

LIMIT = 16 << 20
SECOND_DIRECTORY = b"second"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("direct")
    source = directory / "source"
    (source / "directory").mkdir(parents=True)
    (source / "second").mkdir()
    (source / "old").write_bytes(b"old")
    (source / "other").write_bytes(b"o" * 30_000)
    (source / "empty").mkdir()
    return make_image(directory / "image", size="8M", tree=source).read_bytes()


async def open_direct(image: bytes, limit: int = LIMIT) -> tuple[Direct, CachedDevice]:
    device = CachedDevice(image)
    return Direct(await Volume.open(device, limit)), device


async def ino_of(direct: Direct, name: bytes) -> int:
    inode = await direct.requests.volume.lookup(2, name)
    assert inode is not None
    return inode.ino


async def contents(direct: Direct, ino: int) -> bytes:
    return bytes(await direct.requests.volume.read(ino, 0, 1 << 20))


async def test_what_is_in_memory_is_answered_at_once(image: bytes, tmp_path: Path) -> None:
    direct, _ = await open_direct(image)
    volume = direct.requests.volume

    def now(request: bytes) -> bytes:
        answer = direct.now(request)
        assert answer is not None
        error, payload = answer
        assert not error, os.strerror(error)
        return payload

    file, handle = created(now(fuse.create(b"file")))
    assert now(fuse.write(file, handle, 3, b"data" * 2000)) == protocol.WRITE_OUT.pack(8000)
    assert await contents(direct, file) == b"\0\0\0" + b"data" * 2000
    now(fuse.setattr_of(file, FATTR_SIZE | FATTR_MODE, size=5, mode=0o600))
    inode = await volume.inode(file)
    assert (inode.size, stat.S_IMODE(inode.i_mode)) == (5, 0o600)
    again = fuse.opened(now(fuse.open_file(file, os.O_WRONLY | os.O_TRUNC)))
    assert (await volume.inode(file)).size == 0
    made = entry_ino(now(fuse.mkdir(b"made")))
    now(fuse.mknod(b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    now(fuse.symlink(b"link", b"to"))
    now(fuse.link(file, b"hard", made))
    now(fuse.rename(fuse.ROOT_ID, b"null", fuse.ROOT_ID, b"zero"))
    now(fuse.rename2(made, b"hard", fuse.ROOT_ID, b"link", 2))
    assert await volume.target((await volume.lookup(made, b"hard")).ino) == b"to"  # type: ignore[union-attr]
    now(fuse.unlink(b"hard", made))
    now(fuse.rmdir(b"made"))
    now(fuse.release(file, handle))
    now(fuse.release(file, again))
    assert not direct.requests.files
    assert_clean(await merged(volume), tmp_path / "merged")


@pytest.mark.parametrize(
    ("request_of", "expected"),
    [
        (lambda file: fuse.create(b"old"), errno.EEXIST),
        (lambda file: fuse.create(b"n" * 256), errno.ENAMETOOLONG),
        (lambda file: fuse.create(b".mystfuse"), errno.EPERM),
        (lambda file: fuse.unlink(b"absent"), errno.ENOENT),
        (lambda file: fuse.unlink(b"empty"), errno.EISDIR),
        (lambda file: fuse.rmdir(b"old"), errno.ENOTDIR),
        (lambda file: fuse.rename(1, b"directory", 1, b"old"), errno.ENOTDIR),
        (lambda file: fuse.setattr_of(1 << 32, FATTR_MODE), errno.EPERM),
        (lambda file: fuse.setattr_of(file, FATTR_SIZE, size=1 << 62), errno.EFBIG),
        (lambda file: fuse.open_file(1 << 32, os.O_WRONLY), errno.EPERM),
        (lambda file: fuse.open_file((1 << 32) + 1, os.O_RDONLY, uid=5), errno.EACCES),
        (lambda file: fuse.symlink(b"long", b"t" * 5000), errno.ENAMETOOLONG),
        (lambda file: fuse.request(99, file, b""), errno.ENOSYS),
    ],
)
async def test_errors(image: bytes, request_of: Callable[[int], bytes], expected: int) -> None:
    direct, _ = await open_direct(image)
    assert direct.now(request_of(await ino_of(direct, b"old"))) == (expected, b"")
    assert direct.requests.volume.changes == 0


@pytest.mark.logs(r"^mystfuse\.fuse\.errnos")
@pytest.mark.parametrize(
    "request_",
    [fuse.release(5, 99), fuse.write(5, 99, 0, b"x"), fuse.request(35, 1, b"short")],
    ids=str.split("release write short"),
)
async def test_impossible_requests_are_answered(image: bytes, request_: bytes) -> None:
    direct, _ = await open_direct(image)
    assert direct.now(request_) == (errno.EIO, b"")


CHANGES: dict[str, Callable[[int, int], bytes]] = {
    "create": lambda file, handle: fuse.create(b"new"),
    "mkdir": lambda file, handle: fuse.mkdir(b"new"),
    "mknod": lambda file, handle: fuse.mknod(b"new", stat.S_IFIFO | 0o600),
    "symlink": lambda file, handle: fuse.symlink(b"new", b"t" * 100),
    "link": lambda file, handle: fuse.link(file, b"new"),
    "unlink": lambda file, handle: fuse.unlink(b"old"),
    "rmdir": lambda file, handle: fuse.rmdir(b"empty"),
    "rename": lambda file, handle: fuse.rename(1, b"old", 1, b"other"),
    "rename of a directory": lambda file, handle: fuse.rename(1, b"directory", file, b"new"),
    "write": lambda file, handle: fuse.write(file, handle, 1, b"new"),
    "setattr": lambda file, handle: fuse.setattr_of(file, FATTR_SIZE, size=1),
    "open": lambda file, handle: fuse.open_file(file, os.O_WRONLY | os.O_TRUNC),
}


@pytest.mark.parametrize("kind", CHANGES)
async def test_what_has_to_wait_for_storage_happens_once_and_later(image: bytes, kind: str, tmp_path: Path) -> None:
    """In every order of waiting: each block that the request misses, alone, is the first that storage must bring."""
    answered_at_once = waits = 0
    for in_memory in range(40):
        direct, device = await open_direct(image)
        volume = direct.requests.volume
        name = SECOND_DIRECTORY if kind == "rename of a directory" else b"old"
        file = await ino_of(direct, name)
        handle = 0
        if kind == "write":
            answer = direct.now(fuse.open_file(file))
            assert answer is not None
            handle = fuse.opened(answer[1])
        volume.cache._blocks.clear()
        device.cached_reads = in_memory
        request = CHANGES[kind](file, handle)
        rest = direct.later(request)
        if rest is None:
            answered_at_once += 1
        else:
            waits += 1
            assert volume.changes == 0
            assert not direct.replies
            await rest()
        [(_, error, _)] = direct.replies
        assert not error
        assert direct.changes == 1
        if answered_at_once:
            break
    assert answered_at_once
    assert waits
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_a_held_inode_is_waited_for(image: bytes) -> None:
    direct, _ = await open_direct(image)
    volume = direct.requests.volume
    file = await ino_of(direct, b"old")
    with volume._runner.hold(file):
        rest = direct.later(fuse.setattr_of(file, FATTR_SIZE, size=1))
        assert rest is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rest)
            await trio.testing.wait_all_tasks_blocked()
            assert not direct.replies
            # Others are answered meanwhile.
            assert direct.later(fuse.create(b"new")) is None
            assert len(direct.replies) == 1
            nursery.cancel_scope.cancel()
    assert (await volume.inode(file)).size == 3


async def test_a_long_truncation_lets_others_run(image: bytes, tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "-b", "1024", size="16M")
    direct, _ = await open_direct(path.read_bytes(), 64 << 20)
    answer = direct.now(fuse.create(b"long", 0o104755))
    assert answer is not None
    file, handle = created(answer[1])
    for offset in range(0, 8 << 20, 1 << 20):
        assert await direct.ask(fuse.write(file, handle, offset, b"l" * (1 << 20))) == (
            0,
            protocol.WRITE_OUT.pack(1 << 20),
        )
    # Without FATTR_KILL_SUIDGID: a user with CAP_FSETID.
    rest = direct.later(fuse.setattr_of(file, FATTR_SIZE, size=3, uid=1000))
    assert rest is not None
    assert not direct.replies
    await rest()
    [(_, error, payload)] = direct.replies
    assert not error
    assert protocol.ATTR.unpack_from(payload, protocol.ATTR_OUT.size)[1] == 3
    assert oct((await direct.requests.volume.inode(file)).i_mode) == oct(0o104755)
    assert await contents(direct, file) == b"lll"
    assert_clean(await merged(direct.requests.volume), tmp_path / "merged")


async def test_without_space_the_release_of_removed_files_is_waited_for(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "-b", "1024", "-m", "0", size="1M")
    direct, _ = await open_direct(path.read_bytes())
    file, handle = created((await direct.ask(fuse.create(b"large")))[1])
    error, payload = await direct.ask(fuse.write(file, handle, 0, b"l" * (1 << 20)))
    assert not error
    assert int.from_bytes(payload[:4], "little") < 1 << 20
    other, other_handle = created((await direct.ask(fuse.create(b"other")))[1])
    assert await direct.ask(fuse.write(other, other_handle, 0, b"x" * 5000)) == (errno.ENOSPC, b"")
    assert await direct.ask(fuse.unlink(b"large")) == (0, b"")
    assert await direct.ask(fuse.release(file, handle)) == (0, b"")
    rest = direct.later(fuse.write(other, other_handle, 0, b"x" * 5000))
    assert rest is not None
    direct.requests.lookup_counts.forgotten(file, 1)
    direct.requests.left(file)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rest)
        nursery.start_soon(direct.requests.release_unused)
    assert direct.replies == [(fuse.UNIQUE, 0, protocol.WRITE_OUT.pack(5000))]


async def test_a_removed_file_lives_until_it_is_closed_and_forgotten(image: bytes, tmp_path: Path) -> None:
    direct, _ = await open_direct(image)
    volume = direct.requests.volume
    file, handle = created((await direct.ask(fuse.create(b"file")))[1])
    assert await direct.ask(fuse.unlink(b"file")) == (0, b"")
    assert await direct.ask(fuse.write(file, handle, 0, b"still")) == (0, protocol.WRITE_OUT.pack(5))
    await direct.requests.release_unused()
    assert volume.orphans == {file}
    assert await direct.ask(fuse.release(file, handle)) == (0, b"")
    assert volume.orphans == {file}
    assert direct.requests.lookup_counts.forgotten(file, 1)
    direct.requests.left(file)
    assert volume.orphans == {file} and direct.requests.has_unused
    await direct.requests.release_unused()
    assert not volume.orphans and not direct.requests.has_unused
    assert_clean(await merged(volume), tmp_path / "merged")


async def test_a_removal_that_waited_frees_the_inode_by_itself(image: bytes) -> None:
    direct, device = await open_direct(image)
    volume = direct.requests.volume
    device.cached_reads = 0
    rest = direct.later(fuse.unlink(b"old"))
    assert rest is not None
    await rest()
    assert len(direct.replies) == 1
    assert direct.changes == 1
    assert not volume.orphans
    assert not direct.requests.has_unused


@pytest.mark.parametrize(("group", "expected"), [(0, []), (77, [os.getpid()])])
async def test_groups_are_looked_up_only_where_they_matter(tmp_path: Path, group: int, expected: list[int]) -> None:
    """Blocks that are reserved for a group go to who opened the file, when pages of a mapping are written."""
    path = make_image(tmp_path / "image", "-b", "1024", "-m", "50", size="1M")
    run("tune2fs", "-g", str(group), path)
    direct = Direct(await Volume.open(CachedDevice(path.read_bytes()), LIMIT), frozenset({77}))
    volume = direct.requests.volume
    file, handle = created((await direct.ask(fuse.create(b"file", uid=1000)))[1])
    assert direct.asked == expected
    await direct.ask(fuse.write(file, handle, 0, b"x" * (1 << 20), protocol.WRITE_CACHE))
    statistics = await volume.statistics()
    assert (statistics.free_blocks < statistics.blocks // 4) == bool(group)
    assert direct.asked == expected


@pytest.mark.logs(r"^mystfuse\.fuse\.errnos")
async def test_noise_is_answered_once(image: bytes) -> None:
    direct, _ = await open_direct(image)
    noise = random.Random(3)
    for _ in range(300):
        opcode = noise.choice([4, 8, 9, 12, 13, 14, 16, 18, 35, 45, 1000])
        body = noise.randbytes(noise.randrange(60))
        await direct.ask(fuse.request(opcode, noise.choice([0, 1, 2, 11, 12, 13, 1 << 40]), body))
