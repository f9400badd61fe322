"""A model of many hosts that start the same program from one image behind one origin.

Each host replays the requests of one measured start: a request begins when the ones before it that it waited for have
been answered, plus the time that the program computed between. The origin shares its bandwidth equally among all hosts
that are being sent to, none of which gets more than its own link takes; and it begins so many answers a second. Hosts
of a rack may have a cache in common, which asks for each chunk once.

Time is in seconds, bandwidth in bytes a second.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

CHUNK = 16 << 10
"""Bytes that a cache keeps as one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One request of a start."""

    after: int
    """The number of the request whose answer it waits for; -1: none."""
    pause: float
    """From that answer (or the beginning) on."""
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Recording:
    """What one start asks for, by the network on which it was measured."""

    steps: tuple[Step, ...]
    pause: float
    """From the last answer until the program has started."""

    @classmethod
    def of(
        cls, requests: Sequence[tuple[float, int, int]], seconds: float, round_trip: float, bandwidth: float
    ) -> Recording:
        """Find out what waited for what.

        Args:
            requests: when each reached the server, offset, length; in the order of time.
            seconds: from the first of them to the end of the start.
        """
        steps: list[Step] = []
        ends: list[float] = []
        link = 0.0
        for moment, offset, length in requests:
            # What the server gets at one time was asked half a round trip before; the answers follow each other.
            asked = moment - round_trip / 2
            known = [number for number, end in enumerate(ends) if end <= asked]
            after = max(known, key=ends.__getitem__, default=-1)
            steps.append(Step(after, max(0.0, asked - ends[after]) if known else max(0.0, moment), offset, length))
            link = max(link, moment) + length / bandwidth
            ends.append(link + round_trip / 2)
        return cls(tuple(steps), max(0.0, seconds - max(ends)))

    @property
    def length(self) -> int:
        return sum(step.length for step in self.steps)


@dataclass(frozen=True, slots=True)
class Setting:
    hosts: int
    spread: float = 0.0
    """The hosts begin within so many seconds, evenly."""
    origin: float = 10e9 / 8
    link: float = 1e9 / 8
    """A host's."""
    answers: float = 5500.0
    """A second, which the origin begins."""
    round_trip: float = 0.02
    rack: int = 0
    """Hosts that share a cache; 0: none do."""
    rack_link: float = 10e9 / 8
    rack_round_trip: float = 0.0005


@dataclass(slots=True)
class Outcome:
    bytes_served: int = 0
    """By the origin,"""
    requests: int = 0
    started: list[float] = field(default_factory=list)
    """When each host had, from its beginning on; sorted."""
    by_second: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Bytes that the origin sent."""
    asked_by_second: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def quantile(self, part: float) -> float:
        return self.started[min(int(len(self.started) * part), len(self.started) - 1)]

    @property
    def peak(self) -> float:
        """Bytes, in the busiest second."""
        return max(self.by_second.values(), default=0.0)

    @property
    def peak_requests(self) -> int:
        return max(self.asked_by_second.values(), default=0)


class _Loop:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + seconds, self._number, action))

    def run(self) -> None:
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()


class _Pipe:
    """Bandwidth that transfers share equally, each up to a limit of its own."""

    def __init__(self, loop: _Loop, bandwidth: float, limit: float, sent: dict[int, float] | None = None) -> None:
        self._loop, self._bandwidth, self._limit, self._sent = loop, bandwidth, limit, sent
        self._level = 0.0
        """Bytes that every transfer under way since the beginning would have by now."""
        self._since = 0.0
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._turn = 0

    def send(self, length: int, then: Callable[[], None]) -> None:
        self._advance()
        self._number += 1
        heapq.heappush(self._ends, (self._level + length, self._number, then))
        self._plan()

    @property
    def _rate(self) -> float:
        return min(self._bandwidth / len(self._ends), self._limit) if self._ends else 0.0

    def _advance(self) -> None:
        now = self._loop.now
        rate = self._rate
        if self._sent is not None and rate:
            start = self._since
            while start < now:
                end = min(now, math.floor(start) + 1.0)
                self._sent[int(start)] += rate * len(self._ends) * (end - start)
                start = end
        self._level += rate * (now - self._since)
        self._since = now

    def _plan(self) -> None:
        """Wake when the next transfer ends, unless another one comes or ends before."""
        self._turn += 1
        if self._ends:
            turn = self._turn
            left = max(0.0, self._ends[0][0] - self._level) / self._rate
            self._loop.after(left, lambda: self._wake(turn))

    def _wake(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._advance()
        # The clock's precision may leave a part of a byte.
        self._level = max(self._level, self._ends[0][0])
        done = []
        while self._ends and self._ends[0][0] <= self._level:
            done.append(heapq.heappop(self._ends)[2])
        self._plan()
        for then in done:
            then()


class _Client:
    """Whoever asks the origin: a host, or a rack's cache. Its answers come one after the other."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._is_busy = False

    def ask(self, offset: int, length: int, then: Callable[[], None]) -> None:
        model = self._model
        model.outcome.requests += 1
        model.outcome.bytes_served += length
        model.outcome.asked_by_second[int(model.loop.now)] += 1
        half = model.setting.round_trip / 2
        begins = max(model.loop.now + half, model.next_answer)
        model.next_answer = begins + 1 / model.setting.answers
        model.loop.after(begins - model.loop.now, lambda: self._queue(length, then))

    def _queue(self, length: int, then: Callable[[], None]) -> None:
        self._waiting.append((length, then))
        if not self._is_busy:
            self._next()

    def _next(self) -> None:
        self._is_busy = bool(self._waiting)
        if self._waiting:
            length, then = self._waiting.popleft()
            self._model.pipe.send(length, lambda: self._done(then))

    def _done(self, then: Callable[[], None]) -> None:
        self._model.loop.after(self._model.setting.round_trip / 2, then)
        self._next()


class _Rack:
    """A cache that hosts share: each chunk is asked for once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._client = _Client(model)
        self._chunks: dict[int, list[Callable[[], None]] | None] = {}
        """None: it has the chunk; else who waits for it."""
        self._pipe = _Pipe(model.loop, model.setting.rack_link, model.setting.link)

    def ask(self, offset: int, length: int, then: Callable[[], None]) -> None:
        wanted = range(offset // CHUNK, -(-(offset + length) // CHUNK))
        missing = [chunk for chunk in wanted if chunk not in self._chunks]
        waiting = [chunk for chunk in wanted if self._chunks.get(chunk) is not None]
        left = len(waiting) + bool(missing)

        def one_less() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self._model.loop.after(self._model.setting.rack_round_trip, lambda: self._pipe.send(length, then))

        for chunk in waiting:
            waiters = self._chunks[chunk]
            assert waiters is not None
            waiters.append(one_less)
        if missing:
            for chunk in missing:
                self._chunks[chunk] = []
            self._client.ask(missing[0] * CHUNK, len(missing) * CHUNK, lambda: self._came(missing, one_less))
        elif not waiting:
            one_less()

    def _came(self, chunks: list[int], then: Callable[[], None]) -> None:
        for chunk in chunks:
            waiters, self._chunks[chunk] = self._chunks[chunk], None
            for waiter in waiters or ():
                waiter()
        then()


class _Host:
    def __init__(self, model: Model, begin: float, ask: Callable[[int, int, Callable[[], None]], None]) -> None:
        self._model, self._begin, self._ask = model, begin, ask
        self._left = len(model.recording.steps)
        for number in model.followers[-1]:
            model.loop.after(begin + model.recording.steps[number].pause, partial(self._do, number))

    def _do(self, number: int) -> None:
        step = self._model.recording.steps[number]
        self._ask(step.offset, step.length, lambda: self._answered(number))

    def _answered(self, number: int) -> None:
        model = self._model
        for follower in model.followers[number]:
            model.loop.after(model.recording.steps[follower].pause, partial(self._do, follower))
        self._left -= 1
        if not self._left:
            model.outcome.started.append(model.loop.now + model.recording.pause - self._begin)


class Model:
    """One simulation."""

    def __init__(self, recording: Recording, setting: Setting) -> None:
        self.recording, self.setting = recording, setting
        self.loop, self.outcome = _Loop(), Outcome()
        self.next_answer = 0.0
        self.followers: dict[int, list[int]] = defaultdict(list)
        for number, step in enumerate(recording.steps):
            self.followers[step.after].append(number)
        limit = setting.rack_link if setting.rack else setting.link
        self.pipe = _Pipe(self.loop, setting.origin, limit, self.outcome.by_second)

    def run(self) -> Outcome:
        """Run it to the end."""
        setting = self.setting
        rack: _Rack | None = None
        for number in range(setting.hosts):
            begin = setting.spread * number / setting.hosts
            if setting.rack:
                if rack is None or not number % setting.rack:
                    rack = _Rack(self)
                _Host(self, begin, rack.ask)
            else:
                client = _Client(self)
                _Host(self, begin, client.ask)
        self.loop.run()
        self.outcome.started.sort()
        return self.outcome
