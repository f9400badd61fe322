"""What is learned of a network: it follows what happens, and no series of events makes it useless."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mystfuse.remote.estimates import RoundTrips, Throughput


def test_throughput_is_that_of_all_bodies_together() -> None:
    throughput = Throughput()
    throughput.begin(0, 0.0)
    throughput.begin(0, 0.0)
    for number in range(1, 201):
        throughput.add(50_000, number * 0.01)
        throughput.add(50_000, number * 0.01)
    assert throughput.value == pytest.approx(10_000_000, rel=0.1)


def test_bursts_and_pauses_are_one_speed() -> None:
    """As a server sends that limits the rate: 500,000 bytes at once, each second."""
    throughput = Throughput()
    throughput.begin(0, 0.0)
    for second in range(20):
        for piece in range(10):
            throughput.add(50_000, second + piece * 1e-5)
    assert throughput.value == pytest.approx(500_000, rel=0.3)


def test_time_between_fetches_does_not_count() -> None:
    throughput = Throughput()
    for number in range(50):
        throughput.begin(70_000, number * 100.0)
        throughput.add(500_000, number * 100.0 + 0.1)
        throughput.end(number * 100.0 + 0.1)
    assert throughput.value == pytest.approx(5_000_000, rel=0.1)


def test_bodies_that_come_at_once_say_nothing() -> None:
    throughput = Throughput()
    before = throughput.value
    for number in range(100):
        throughput.begin(100_000, number * 1.0)
        throughput.end(number * 1.0)
    assert throughput.value == before


def test_throughput_follows_the_network() -> None:
    throughput, now = Throughput(), 0.0
    throughput.begin(0, now)
    for rate in (100e6, 1e6):
        for _ in range(30):
            now += 500_000 / rate
            throughput.add(500_000, now)
        assert throughput.value == pytest.approx(rate, rel=0.3)


@given(st.lists(st.tuples(st.integers(1, 1 << 24), st.floats(0, 1e4)), max_size=50))
def test_any_throughput_is_a_positive_number(events: list[tuple[int, float]]) -> None:
    throughput, now = Throughput(), 0.0
    throughput.begin(0, now)
    for length, seconds in events:
        now += seconds
        throughput.add(length, now)
    throughput.end(now)
    assert 0 < throughput.value < math.inf


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=100))
def test_round_trips_stay_among_those_that_were(times: list[float]) -> None:
    usual = RoundTrips()
    for seconds in times:
        usual.add(seconds)
    assert min(times) <= usual.mean * (1 + 1e-9) and usual.mean <= max(times) * (1 + 1e-9)
    assert 0 <= usual.deviation <= max(times)
