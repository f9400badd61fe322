"""The fetcher as a process: what a daemon gets from it, and how it ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mystfuse.remote import protocol
from mystfuse.remote.cache_directory import CacheDirectory
from mystfuse.remote.chunk_map import CHUNK
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Failure
from tests.support.fetcher_daemon import FetcherDaemon, has_chunks, worker_of
from tests.support.remote_files import fetcher_of_file

SIZE = (3 << 20) + 12345


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "image"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def _config(image: Path, cache: Path | None = None, **options: object) -> FetcherConfig:
    return FetcherConfig((f"http://file{image}",), None if cache is None else str(cache), **options)  # type: ignore[arg-type]


@pytest.fixture
def daemon(image: Path) -> Iterator[FetcherDaemon]:
    with fetcher_of_file(_config(image)) as (connection, _):
        daemon = FetcherDaemon(connection, image.read_bytes())
        yield daemon
        daemon.close()


def test_ranges_are_the_images(daemon: FetcherDaemon) -> None:
    assert daemon.opened.size == SIZE
    chance = random.Random(2)
    for _ in range(200):
        length = chance.choice((1, 4096, 100_000, protocol.MAX_READ))
        offset = chance.randrange(SIZE - length)
        is_again = chance.random() < 0.1
        assert daemon.read(offset, length, is_again) == daemon.content[offset : offset + length]
        assert is_again or has_chunks(daemon.map, offset, length)
    assert daemon.read(SIZE - 1, 1) == daemon.content[-1:]


def test_a_range_behind_the_end_is_an_error(daemon: FetcherDaemon) -> None:
    daemon.connection.send(protocol.Read(1, SIZE - 10, 11).pack())
    answer = daemon.receive()
    assert isinstance(answer, protocol.Failed) and (answer.request, answer.failure) == (1, Failure.UNUSABLE)


def test_counters_say_what_was_fetched_once(daemon: FetcherDaemon) -> None:
    daemon.read(0, 32768)
    before = daemon.status()
    for _ in range(2):
        daemon.read(1 << 20, 65536)
    after = daemon.status()
    assert {name: after[name] - before[name] for name in ("requests", "bytes_fetched")} == {
        "requests": 1, "bytes_fetched": 65536,
    }  # fmt: skip


def test_what_is_no_question_ends_it(image: Path) -> None:
    with fetcher_of_file(_config(image)) as (connection, process):
        daemon = FetcherDaemon(connection)
        connection.send(b"nonsense, and more")
        with pytest.raises(EOFError):
            daemon.receive()
        assert process.wait(30) == 0
        daemon.close()


def test_an_image_that_is_not_there_is_told_and_the_fetcher_ends(tmp_path: Path) -> None:
    with fetcher_of_file(_config(tmp_path / "missing")) as (connection, process):
        answer = protocol.parse_answer(connection.recv(protocol.MAX_MESSAGE))
        assert isinstance(answer, protocol.Failed) and answer.failure is Failure.ABSENT
        assert connection.recv(1) == b""
        assert process.wait(30) == 0


def test_it_ends_with_the_socket(image: Path) -> None:
    with fetcher_of_file(_config(image)) as (connection, process):
        FetcherDaemon(connection).close()
        connection.close()
        assert process.wait(30) == 0


def test_a_worker_that_is_killed_is_replaced_and_keeps_what_is_fetched(image: Path) -> None:
    with fetcher_of_file(_config(image)) as (connection, process):
        daemon = FetcherDaemon(connection, image.read_bytes())
        daemon.verified(0, 4096)
        opened, worker = daemon.opened, worker_of(process.pid)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        assert daemon.receive() == opened and "SIGKILL" in daemon.notes[0]
        assert has_chunks(daemon.map, 0, 4096)
        daemon.verified(1 << 20, 4096)
        daemon.close()


def test_what_keeps_the_next_worker_from_starting_passes(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad"
    monkeypatch.setenv("FILE_TRANSFERS_FAIL", str(bad))
    with fetcher_of_file(_config(image)) as (connection, process):
        daemon = FetcherDaemon(connection, image.read_bytes())
        worker = worker_of(process.pid)
        assert worker is not None
        bad.touch()
        os.kill(worker, signal.SIGKILL)
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            daemon.receive()
        assert any("a certificate that is none" in note for note in daemon.notes)
        bad.unlink()
        connection.settimeout(60)
        daemon.verified(1 << 20, 4096)
        daemon.close()


def test_the_supervisors_end_is_the_workers(image: Path) -> None:
    with fetcher_of_file(_config(image)) as (connection, process):
        daemon = FetcherDaemon(connection)
        worker = worker_of(process.pid)
        process.kill()
        with pytest.raises(EOFError):
            daemon.receive()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{worker}").exists()
        daemon.close()


def test_an_image_of_another_size_is_none_to_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(100_000))
    with fetcher_of_file(_config(path)) as (connection, process):
        daemon = FetcherDaemon(connection)
        os.truncate(path, 200_000)
        worker = worker_of(process.pid)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        answer = daemon.receive()
        assert isinstance(answer, protocol.Failed) and answer.failure is Failure.REPLACED
        daemon.close()


def test_a_second_fetcher_finds_what_the_first_has_stored(image: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for expected in (4, 0):
        with fetcher_of_file(_config(image, cache)) as (connection, _):
            daemon = FetcherDaemon(connection, image.read_bytes())
            daemon.verified(0, 100)
            for index in range(3):
                daemon.verified((index << 20) + 65536, 100_000)
            assert daemon.status()["requests"] == expected
            assert daemon.again == 0 and not daemon.notes
            daemon.close()


def test_readers_get_descriptors_that_cannot_write(image: Path, tmp_path: Path) -> None:
    with fetcher_of_file(_config(image, tmp_path / "cache")) as (connection, _):
        daemon = FetcherDaemon(connection, image.read_bytes())
        for descriptor in (daemon.data, daemon.map):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(descriptor, b"x", 0)
        daemon.close()


@pytest.mark.parametrize("what", ["removed", "entry removed", "another layout", "a file", "read-only"])
def test_without_its_directory_the_mount_goes_on(image: Path, tmp_path: Path, what: str) -> None:
    cache = tmp_path / "cache"
    if what == "another layout":
        cache.mkdir()
        (cache / "layout").write_text("another")
    elif what == "a file":
        cache.touch()
    elif what == "read-only":
        cache = Path("/proc/1")
    with fetcher_of_file(_config(image, cache)) as (connection, _):
        daemon = FetcherDaemon(connection, image.read_bytes())
        daemon.verified(0, 4096)
        if what == "removed":
            shutil.rmtree(cache)
        elif what == "entry removed":
            next(cache.glob("?" * 64)).joinpath("data").unlink()
        if "removed" in what:
            while daemon.times_opened < 2:
                answer = daemon.receive()
                assert isinstance(answer, protocol.Opened)
        for index in range(20):
            daemon.verified(index * 100_000, 4096)
        daemon.status()
        assert len(daemon.notes) == 1 and "goes on" in daemon.notes[0]
        assert has_chunks(daemon.map, 0, 4096)
        daemon.close()


def test_both_kinds_of_cache_stay_below_their_size(image: Path, tmp_path: Path) -> None:
    limit = 1 << 20
    for cache in (None, tmp_path / "cache"):
        with fetcher_of_file(_config(image, cache, cache_size=limit)) as (connection, _):
            daemon = FetcherDaemon(connection, image.read_bytes())
            for _ in range(3):
                for offset in range(0, SIZE - 50_000, 50_000):
                    daemon.verified(offset, 50_000)
            deadline = time.monotonic() + 30
            while os.fstat(daemon.data).st_blocks * 512 > limit + CHUNK and time.monotonic() < deadline:
                time.sleep(0.1)
            assert os.fstat(daemon.data).st_blocks * 512 <= limit + CHUNK
            daemon.close()
    directory = CacheDirectory(str(tmp_path / "cache"))
    assert [cached.name for cached in directory.images()] == [f"http://file{image}"]
    directory.close()


def test_everything_is_prefetched(image: Path, tmp_path: Path) -> None:
    with fetcher_of_file(_config(image, tmp_path / "cache", prefetch=((0, -1),))) as (connection, _):
        daemon = FetcherDaemon(connection, image.read_bytes())
        deadline = time.monotonic() + 30
        while not (status := daemon.status())["prefetch_is_over"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert status["prefetch_done"] == status["prefetch_total"] >= SIZE and not status["prefetch_missing"]
        assert has_chunks(daemon.map, 0, SIZE)
        assert status["bytes_fetched"] <= SIZE
        daemon.close()
