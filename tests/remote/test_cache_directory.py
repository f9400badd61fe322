"""The cache's directory: what is in it is shared, bounded, and never believed."""

from __future__ import annotations

import os
import stat
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mystfuse.formats.fssig import FSSIG_SIZE, Fssig
from mystfuse.remote.cache_directory import CacheDirectory, CacheUnusable
from mystfuse.remote.cache_key import cache_key
from mystfuse.remote.chunk_map import CHUNK
from mystfuse.remote.chunk_store import ChunkStore
from mystfuse.remote.eviction import Chunks, clear, evict, evict_chunks, punch
from mystfuse.remote.origin import Opened
from tests.support.commands import GROUP, USER

KEY = "0f" * 32
SIZE = 64 * CHUNK


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CacheDirectory]:
    directory = CacheDirectory(str(tmp_path / "cache"))
    yield directory
    directory.close()


def _store(cache: CacheDirectory, key: str, stack: ExitStack, size: int = SIZE) -> ChunkStore:
    files = cache.open_image(key)
    stack.callback(os.close, files.about)
    store = ChunkStore(size, files.data, files.map, files.for_reader, files.locks, "cache", lambda line: None)
    stack.callback(store.close)
    store.prepare()
    return store


def _fill(store: ChunkStore, chunks: range) -> None:
    assert store.write(chunks.start * CHUNK, os.urandom(len(chunks) * CHUNK)) and store.mark(chunks)


def test_content_has_one_entry_wherever_it_comes_from() -> None:
    fssig = Fssig(4096, bytes(32)).pack()
    first = cache_key("https://a/x", Opened(1 << 20, '"1"', bytes(100) + fssig))
    assert first == cache_key("s3://b/y", Opened(1 << 20, '"2"', fssig))
    assert first != cache_key("https://a/x", Opened((1 << 20) + 1, '"1"', fssig))
    other = Opened(1 << 20, '"1"', bytes(FSSIG_SIZE))
    assert cache_key("https://a/x", other) != cache_key("https://b/x", other)
    assert cache_key("https://user:secret@a/x", other) == cache_key("https://a/x", other)
    assert cache_key("https://a/x", Opened(1 << 20, "", bytes(FSSIG_SIZE))) is None


def test_what_one_stores_another_finds(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        first, second = _store(cache, KEY, stack), _store(cache, KEY, stack)
        _fill(first, range(3, 6))
        assert second.missing(range(8)) == [range(3), range(6, 8)]
        assert os.pread(second.for_reader[0], CHUNK, 3 * CHUNK) == os.pread(first.data, CHUNK, 3 * CHUNK)


def test_a_chunk_is_claimed_once_until_its_holder_ends(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        first, second = _store(cache, KEY, stack), _store(cache, KEY, stack)
        assert first.locks is not None and second.locks is not None
        assert first.locks.claim(range(10, 20)) == [range(10, 20)]
        assert second.locks.claim(range(5, 25)) == [range(5, 10), range(20, 25)]
        first.locks.release(range(10, 15))
        assert second.locks.claim(range(5, 25)) == [range(5, 15), range(20, 25)]


@pytest.mark.parametrize("name", ["data", "map", "about"])
@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "socket", "hard link", "removed"])
def test_what_is_no_file_of_ours_is_replaced_and_not_touched(cache: CacheDirectory, name: str, kind: str) -> None:
    precious = Path(cache.path).parent / "precious"
    precious.write_bytes(b"precious")
    with ExitStack() as stack:
        _fill(_store(cache, KEY, stack), range(1))
    path = Path(cache.path) / KEY / name
    path.unlink()
    if kind == "symlink":
        path.symlink_to(precious)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "hard link":
        os.link(precious, path)
    cache.images()
    with ExitStack() as stack:
        _fill(_store(cache, KEY, stack), range(64))
    assert stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_nlink == 1
    assert precious.read_bytes() == b"precious" and precious.stat().st_size == 8


def test_files_of_another_size_are_emptied(cache: CacheDirectory) -> None:
    for name, size in (("data", 5), ("data", SIZE * 2), ("map", 3), ("map", 4096)):
        with ExitStack() as stack:
            _fill(_store(cache, KEY, stack), range(64))
        os.truncate(Path(cache.path) / KEY / name, size)
        with ExitStack() as stack:
            store = _store(cache, KEY, stack)
            assert store.missing(store.chunks) == [store.chunks]
            assert os.fstat(store.data).st_size == SIZE


def test_files_that_are_cut_under_use_are_noticed(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        store = _store(cache, KEY, stack)
        for name in ("data", "map"):
            _fill(store, range(64))
            os.truncate(Path(cache.path) / KEY / name, 0)
            assert store.missing(store.chunks) == [store.chunks]
            assert os.fstat(store.data).st_size == SIZE


def test_the_longest_unused_image_goes_first_then_the_oldest_chunks(cache: CacheDirectory) -> None:
    keys = ["a" * 64, "b" * 64, "c" * 64]
    for age, key in enumerate(keys):
        with ExitStack() as stack:
            _fill(_store(cache, key, stack), range(64))
        os.utime(Path(cache.path) / key / "about", (1000 + age, 1000 + age))
    used = {image.key: image.used for image in cache.images()}
    total = sum(used.values())
    assert evict(cache, total) == 0
    evict(cache, total - 1)
    assert {image.key for image in cache.images()} == set(keys)
    assert cache_used(cache) <= (total - 1) * 7 / 8
    assert [image.used < used[image.key] for image in sorted(cache.images(), key=lambda image: image.key)] == [
        True, False, False,
    ]  # fmt: skip
    evict(cache, used["c" * 64])
    assert [image.key for image in cache.images()] == ["c" * 64]


def test_old_chunks_and_those_of_the_future_go_before_new_ones(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        store = _store(cache, KEY, stack)
        _fill(store, range(64))
        os.pwrite(store.map, (1000).to_bytes(4, "little") * 10, 5 * 4)
        os.pwrite(store.map, b"\xff" * 4 * 6, 40 * 4)
        evict_chunks([Chunks(store.data, store.map, None)], 16 * CHUNK)
        assert store.missing(store.chunks) == [range(5, 15), range(40, 46)]
        assert os.pread(store.data, CHUNK, 5 * CHUNK) == bytes(CHUNK) != os.pread(store.data, CHUNK, 15 * CHUNK)
        assert os.fstat(store.data).st_size == SIZE


def test_bytes_that_no_map_has_are_found(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        store = _store(cache, KEY, stack)
        _fill(store, range(64))
        os.pwrite(store.map, bytes(64 * 4), 0)
        assert evict_chunks([Chunks(store.data, store.map, store.locks)], 10 * CHUNK) >= 10 * CHUNK


def test_what_others_write_into_their_maps_keeps_nobody_from_evicting(
    cache: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        ours, theirs = _store(cache, KEY, stack), _store(cache, "a" * 64, stack, 1 << 42)
        _fill(ours, range(64))
        # Of chunks that take no space, and should be the first to go; at the end, bytes that no map has.
        os.pwrite(theirs.map, b"\xff" * 4000, 0)
        os.pwrite(theirs.data, os.urandom(4 * CHUNK), (1 << 42) - 4 * CHUNK)
        os.ftruncate(theirs.map, 1 << 43)
        reads: list[int] = []

        def pread(descriptor: int, length: int, offset: int) -> bytes:
            reads.append(offset)
            assert len(reads) < 1000
            return read(descriptor, length, offset)

        read = os.pread
        monkeypatch.setattr(os, "pread", pread)
        stores = [Chunks(store.data, store.map, store.locks) for store in (theirs, ours)]
        assert evict_chunks(stores, 20 * CHUNK) >= 20 * CHUNK
        assert evict_chunks(stores, 100 * CHUNK) >= 0
        assert not os.fstat(ours.data).st_blocks and not os.fstat(theirs.data).st_blocks


def test_the_maps_of_others_take_little_memory(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        store = _store(cache, KEY, stack, CHUNK << 17)
        os.pwrite(store.map, b"".join(minute.to_bytes(4, "little") for minute in range(1 << 17)), 0)
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        evict_chunks([Chunks(store.data, store.map, None)], CHUNK)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20


def test_an_error_of_one_image_is_none_of_the_others(cache: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        first, second = _store(cache, KEY, stack), _store(cache, "a" * 64, stack)
        _fill(first, range(64))
        _fill(second, range(64))

        def refuse(descriptor: int, offset: int, length: int) -> None:
            if descriptor == first.data:
                raise OSError(5, "broken")
            punch(descriptor, offset, length)

        monkeypatch.setattr("mystfuse.remote.eviction.punch", refuse)
        stores = [Chunks(store.data, store.map, None) for store in (first, second)]
        assert evict_chunks(stores, 20 * CHUNK) >= 20 * CHUNK
        assert os.fstat(first.data).st_blocks * 512 == 64 * CHUNK


def test_what_is_being_fetched_is_evicted_last(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        first, second = _store(cache, KEY, stack), _store(cache, KEY, stack)
        _fill(first, range(64))
        assert second.locks is not None and second.locks.claim(range(32))
        evict_chunks([Chunks(first.data, first.map, first.locks)], 20 * CHUNK)
        assert first.missing(range(32)) == []
        # But the lock of somebody else is no way to keep a cache full.
        evict_chunks([Chunks(first.data, first.map, first.locks)], 40 * CHUNK)
        assert first.missing(range(32)) != []


def test_without_hole_punching_images_go_whole(cache: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr("mystfuse.remote.eviction.punch", refuse)
    with ExitStack() as stack:
        store = _store(cache, KEY, stack)
        _fill(store, range(64))
        assert evict_chunks([Chunks(store.data, store.map, store.locks)], CHUNK) >= 64 * CHUNK
        assert store.missing(store.chunks) == [store.chunks] and os.fstat(store.data).st_size == SIZE


def test_an_image_in_use_is_emptied_and_another_removed(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        store = _store(cache, KEY, stack)
        _fill(store, range(64))
        (image,) = cache.images()
        assert not clear(cache, image)
        assert store.missing(store.chunks) == [store.chunks]
        assert not os.fstat(store.data).st_blocks
    assert clear(cache, image) and not cache.images()
    assert clear(cache, image)


def test_other_users_may_use_what_is_in_a_directory_of_all(open_tmp_path: Path) -> None:
    path = open_tmp_path / "cache"
    path.mkdir()
    path.chmod(0o1777)
    before = os.umask(0o077)
    try:
        cache = CacheDirectory(str(path))
        with ExitStack() as stack:
            stack.callback(cache.close)
            _store(cache, KEY, stack)
    finally:
        os.umask(before)
    assert stat.S_IMODE((path / KEY).stat().st_mode) == 0o777
    assert {stat.S_IMODE(file.stat().st_mode) for file in (path / KEY).iterdir()} == {0o666}


def test_a_directory_of_its_owner_has_ordinary_permissions(cache: CacheDirectory) -> None:
    with ExitStack() as stack:
        _store(cache, KEY, stack)
    mask = os.umask(0)
    os.umask(mask)
    entry = Path(cache.path) / KEY
    assert stat.S_IMODE(entry.stat().st_mode) == 0o777 & ~mask
    assert {stat.S_IMODE(file.stat().st_mode) for file in entry.iterdir()} == {0o666 & ~mask}


def test_root_follows_no_link_of_another_user_to_a_cache(open_tmp_path: Path) -> None:
    (open_tmp_path / "place").mkdir()
    link = open_tmp_path / "link"
    link.symlink_to("place")
    os.chown(link, USER, GROUP, follow_symlinks=False)
    for path in (link, link / "cache"):
        with pytest.raises(CacheUnusable, match=f"symbolic link of user {USER}"):
            CacheDirectory(str(path))
    assert not list((open_tmp_path / "place").iterdir())
    CacheDirectory(str(open_tmp_path / "place")).close()
    with pytest.raises(CacheUnusable, match=f"symbolic link of user {USER}"):
        CacheDirectory(str(link), create=False)


def test_other_layouts_and_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/layout").write_text("mystfuse-cache 2\n")
    with pytest.raises(CacheUnusable, match="another version"):
        CacheDirectory(str(tmp_path / "new"))
    (tmp_path / "file").touch()
    with pytest.raises(CacheUnusable, match=r"Not a directory|File exists"):
        CacheDirectory(str(tmp_path / "file"))
    with pytest.raises(CacheUnusable, match="No such file"):
        CacheDirectory(str(tmp_path / "missing"), create=False)
    with pytest.raises(CacheUnusable, match="not a cache"):
        CacheDirectory(str(tmp_path), create=False)


def cache_used(cache: CacheDirectory) -> int:
    return sum(image.used for image in cache.images())
