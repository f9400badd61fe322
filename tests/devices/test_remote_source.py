"""An image elsewhere as a source: right bytes or an error, whatever becomes of the files that the fetcher fills."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from mystfuse.devices.remote_source import RemoteSource
from mystfuse.errors import ImageReadError, StorageTimeout
from mystfuse.remote.chunk_map import CHUNK, ENTRY
from mystfuse.remote.protocol import MAX_READ, Question, Read, Stored
from tests.support.stand_in_fetcher import NAME, StandInFetcher, stand_in_fetcher

CONTENT = random.Random(2).randbytes((3 << 20) + 12345)
FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE = 2, 1


@pytest.fixture(params=["memory", "disk"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[RemoteSource, StandInFetcher]]:
    data = map_file = None
    if request.param == "disk":
        data, map_file = on_disk(), on_disk()
    with stand_in_fetcher(CONTENT, data=data, map_file=map_file) as (client, fetcher):
        yield RemoteSource(client, 20, has_shared_cache=True), fetcher


def cached(source: RemoteSource, offset: int, length: int) -> bytes | None:
    buffer = bytearray(length)
    return bytes(buffer) if source.read_cached(offset, memoryview(buffer)) else None


def punch(descriptor: int, offset: int, length: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    assert libc.fallocate(descriptor, flags, ctypes.c_long(offset), ctypes.c_long(length)) == 0


def test_what_was_fetched_needs_no_waiting(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, fetcher = pair
    assert source.size == len(CONTENT) and source.name == source.resolved_name() == NAME
    assert cached(source, 5, 100) is None
    assert source.read(5, 100) == CONTENT[5:105]
    assert cached(source, 0, CHUNK) == CONTENT[:CHUNK]
    assert cached(source, CHUNK - 1, 2) is None
    assert source.read(5, 100) == CONTENT[5:105]
    assert len(fetcher.asked) == 1
    assert cached(source, len(CONTENT) - 1, 1) is None
    assert source.read(len(CONTENT) - 1, 1) == CONTENT[-1:] == cached(source, len(CONTENT) - 1, 1)


def test_long_ranges_are_asked_for_in_pieces(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, fetcher = pair
    assert source.read(7, 3 << 20) == CONTENT[7 : 7 + (3 << 20)]
    assert source.read_again(9, 2 << 20) == CONTENT[9 : 9 + (2 << 20)]
    assert all(isinstance(question, Read) and question.length <= MAX_READ for question in fetcher.asked)


def test_behind_the_end_there_is_nothing(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, _ = pair
    with pytest.raises(ImageReadError, match="truncated: it ends at byte"):
        source.read(len(CONTENT) - 1, 2)
    assert cached(source, len(CONTENT) - 1, 2) is None
    assert cached(source, len(CONTENT) + CHUNK, 2) is None


def test_what_was_thrown_away_is_fetched_again(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, fetcher = pair
    source.read(0, 4 * CHUNK)
    os.pwrite(fetcher.map, bytes(ENTRY), ENTRY)
    punch(fetcher.data, CHUNK, CHUNK)
    assert cached(source, 0, CHUNK) == CONTENT[:CHUNK]
    assert cached(source, CHUNK, CHUNK) is None
    assert source.read(0, 3 * CHUNK) == CONTENT[: 3 * CHUNK]


def test_a_data_file_that_was_truncated_is_asked_past(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, fetcher = pair
    source.read(0, 4 * CHUNK)
    os.ftruncate(fetcher.data, CHUNK + 5)
    fetcher.answers = lambda question: (
        not (isinstance(question, Read) and question.again) and fetcher.send(Stored(question.request).pack()) is None
    )
    assert cached(source, CHUNK, CHUNK) is None
    assert source.read(CHUNK, CHUNK) == CONTENT[CHUNK : 2 * CHUNK]
    os.ftruncate(fetcher.map, 1)
    assert cached(source, 0, 5) is None
    assert source.read(0, 5) == CONTENT[:5]


def test_a_fetcher_that_says_stored_and_has_not_is_asked_past(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, fetcher = pair
    fetcher.answers = lambda question: (
        not (isinstance(question, Read) and question.again) and fetcher.send(Stored(question.request).pack()) is None
    )
    assert source.read(100, 1000) == CONTENT[100:1100]


def test_without_a_hash_tree_no_byte_comes_from_a_cache(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, fetcher = pair
    source.read(0, CHUNK)
    (part,) = source.parts
    assert part[2:5] == (0, len(CONTENT), 0) and os.path.sameopenfile(part.descriptor, fetcher.data)
    assert os.path.sameopenfile(part.map_descriptor, fetcher.map)
    source.bypass_cache()
    # The map says that it is there, and a machine that lost its power may have lost the data.
    punch(fetcher.data, 0, CHUNK)
    assert cached(source, 0, 10) is None
    assert source.read(0, 10) == CONTENT[:10]
    assert source.parts == []
    last = fetcher.asked[-1]
    assert isinstance(last, Read) and last.again


def test_without_a_hash_tree_another_version_is_not_gone_on_with(pair: tuple[RemoteSource, StandInFetcher]) -> None:
    source, fetcher = pair
    source.read(0, 10)
    fetcher.validator = "2"
    fetcher.open()
    assert source.read(CHUNK, 10) == CONTENT[CHUNK : CHUNK + 10], "the hash tree tells"
    source.bypass_cache()
    fetcher.open()
    assert source.read(2 * CHUNK, 10) == CONTENT[2 * CHUNK : 2 * CHUNK + 10]
    fetcher.validator = "3"
    fetcher.open()
    with pytest.raises(ImageReadError, match="it has been replaced"):
        source.read(3 * CHUNK, 10)


def test_a_silent_fetcher_costs_io_timeout() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        source = RemoteSource(client, 0.3, has_shared_cache=False)
        assert source.size
        fetcher.answers = lambda question: True
        started = time.monotonic()
        for work in (lambda: source.read(0, 10), lambda: source.read_again(0, 10), source.counters):
            with pytest.raises(StorageTimeout):
                work()
        assert 0.85 < time.monotonic() - started < 10


def test_counters_are_those_that_can_be_shown() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        source = RemoteSource(client, 20, has_shared_cache=False)

        def boast(question: Question) -> bool:
            said = b'{"requests": 3, "\\u001b[31m": 1, "negative": -1, "large": 1' + b"0" * 30 + b', "text": "x"}'
            fetcher.send(b"\x08\0\0\0" + question.request.to_bytes(4, "little") + said)
            return True

        assert source.counters() == {"requests": 1}
        fetcher.answers = boast
        assert source.counters() == {"requests": 3}


def on_disk() -> int:
    """A file that has no name and is not in memory."""
    return os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)


def test_files_that_are_read_without_waiting_are_in_memory_for_ever() -> None:
    with stand_in_fetcher(CONTENT) as (client, fetcher):
        source = RemoteSource(client, 20, has_shared_cache=False)
        assert source.read(0, 10) == CONTENT[:10]
        (part,) = source.parts
        assert part.is_in_memory
        before = os.fstat(part.descriptor)
        files = [on_disk(), on_disk()]
        fetcher.open(files=files)
        assert source.read(CHUNK, 10) == CONTENT[CHUNK : CHUNK + 10]
        assert os.path.samestat(os.fstat(part.descriptor), before)
        for file in files:
            os.close(file)


def test_a_map_that_is_not_in_memory_may_have_to_be_waited_for() -> None:
    with stand_in_fetcher(CONTENT, map_file=on_disk()) as (client, _):
        source = RemoteSource(client, 20, has_shared_cache=False)
        assert source.read(0, 10) == CONTENT[:10]
        assert not source.parts[0].is_in_memory
