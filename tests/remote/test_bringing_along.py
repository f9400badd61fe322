"""What comes along with first reads of a place: some neighbours, and in the long run no more than was read."""

from __future__ import annotations

import random

from mystfuse.remote.read_ahead import CREDIT, ReadAhead

SIZE = 4 << 30
NEAR = 192 << 10
LIMIT = 4 << 20


def test_a_first_read_brings_its_neighbours_along() -> None:
    start, length = ReadAhead(SIZE).after(1 << 20, 16384, LIMIT, NEAR)
    assert start == (1 << 20) - NEAR // 4 and start + length == (1 << 20) + 16384 + NEAR


def test_neighbours_are_inside_the_image() -> None:
    assert ReadAhead(SIZE).after(0, 16384, LIMIT, NEAR) == (0, 16384 + NEAR)
    start, length = ReadAhead(SIZE).after(SIZE - 16384, 16384, LIMIT, NEAR)
    assert start + length <= SIZE


def test_without_a_round_trip_nothing_comes_along() -> None:
    assert not ReadAhead(SIZE).after(1 << 20, 16384, LIMIT, 0)[1]


def test_reads_at_random_fetch_at_most_twice_as_much_in_the_long_run() -> None:
    ahead, dice = ReadAhead(SIZE), random.Random(1)
    read = fetched = 0
    for _ in range(5000):
        offset = dice.randrange(SIZE // 16384) * 16384
        start, length = ahead.after(offset, 16384, LIMIT, NEAR)
        read += 16384
        fetched += 16384 + max(0, length - 16384 if start <= offset else length)
    assert fetched <= 2 * read + CREDIT + NEAR
