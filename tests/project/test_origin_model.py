"""The model of many hosts behind one origin keeps to what can be said without it."""

from __future__ import annotations

import random

import pytest
from benchmarks.origin_model import CHUNK, Model, Recording, Setting, Step

BANDWIDTH = 100e6 / 8
ROUND_TRIP = 0.02


def recorded(count: int = 40) -> tuple[Recording, float]:
    """A start whose requests follow each other, and the seconds that it takes alone."""
    dice, now, requests = random.Random(1), 0.0, []
    for number in range(count):
        length = dice.choice((1, 4, 8)) * CHUNK
        requests.append((now, number * 20 * CHUNK, length))
        now += length / BANDWIDTH + ROUND_TRIP + dice.choice((0.0, 0.005))
    return Recording.of(requests, now + 0.1, ROUND_TRIP, BANDWIDTH), now + 0.1


def test_one_host_on_the_network_of_the_measurement_takes_as_long_as_measured() -> None:
    recording, seconds = recorded()
    outcome = Model(recording, Setting(1, 0, BANDWIDTH, BANDWIDTH, 1e9, ROUND_TRIP)).run()
    assert outcome.started == [pytest.approx(seconds, rel=0.02)]
    assert outcome.bytes_served == recording.length and outcome.requests == 40
    assert sum(outcome.by_second.values()) == pytest.approx(recording.length)


def test_the_origin_sends_no_faster_than_it_can() -> None:
    recording, seconds = recorded()
    origin = 1e9 / 8
    outcome = Model(recording, Setting(300, 0, origin, 1e9, 1e9, ROUND_TRIP)).run()
    assert outcome.bytes_served == 300 * recording.length
    assert outcome.started[-1] >= 300 * recording.length / origin
    assert outcome.peak <= origin * 1.001
    assert len(outcome.started) == 300 and outcome.started[0] >= seconds / 2


def test_the_origin_begins_no_more_answers_than_it_can() -> None:
    recording = Recording((Step(-1, 0.0, 0, 1),), 0.0)
    outcome = Model(recording, Setting(1000, answers=100, round_trip=0.0)).run()
    assert outcome.started[-1] == pytest.approx(10.0, rel=0.01)


def test_hosts_of_a_rack_ask_for_each_chunk_once() -> None:
    recording, _ = recorded()
    outcome = Model(recording, Setting(200, 1.0, rack=20)).run()
    assert outcome.bytes_served == 10 * recording.length
    assert len(outcome.started) == 200


def test_requests_side_by_side_do_not_wait_for_each_other() -> None:
    recording = Recording.of([(0.0, 0, 10), (0.001, CHUNK, 10), (0.002, 2 * CHUNK, 10)], 0.05, 0.02, BANDWIDTH)
    assert [step.after for step in recording.steps] == [-1, -1, -1]
