"""Seeded schedules of network faults: what goes wrong when, for how long, and whether whoever retries within the I/O
time-out can succeed in spite of it. Every schedule's faults end, unless it says that they stay."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.support.faulty_proxy import AT_ACCEPT, BEFORE_BODY, IN_BODY, WRONG_ANSWER, Fault
from tests.support.http_objects import Request

IO_TIMEOUT = 30.0
"""Seconds of the clock that the schedule's user has."""
ENOUGH = 0.6
"""The part of the time-out that is enough for any client: to notice a dead connection, to wait, to ask again."""

OUTAGES = ("refused", "no such host")
"""What happens to the whole server."""
_TLS_ONLY = ("TLS breaks off", "other certificate")
_STATUSES = (403, 404, 408, 429, 500, 502, 503, 504)
_AFTER = (None, None, "0", "1", "3", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-5", "3600", "9" * 400)

CHANGES_BYTES = ("flip", "HTML with range")
"""What only the hash tree can notice."""
FINAL_AT_OPEN = {
    *WRONG_ANSWER,
    *("flip", "not HTTP", "redirected in circles", "endless header", "endless", "other certificate"),
    *("status 401", "status 403", "status 404", "status 410"),
}
"""While nothing has ever come from an address, these are what it is: mistyped, a web page, a server without ranges."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What one server does in a span of time."""

    kinds: tuple[str, ...]
    rate: float
    """Of requests that it happens to."""
    begin: float
    end: float
    """Seconds of the clock."""
    statuses: tuple[int, ...] = ()
    retry_after: tuple[str | None, ...] = (None,)

    @property
    def names(self) -> set[str]:
        plain = {kind for kind in self.kinds if kind != "status"}
        return plain | ({f"status {status}" for status in self.statuses} if "status" in self.kinds else set())

    @property
    def asks_for_patience(self) -> bool:
        """Whether it asks for more time than there is."""
        return "status" in self.kinds and any(text and len(text) > 3 and text.isdigit() for text in self.retry_after)


@dataclass
class ServerSchedule:
    """The faults of one server; its ``choose`` and ``accept`` are those of ``FaultyServer``."""

    trouble: Trouble
    dice: random.Random
    now: float = field(default=0.0)
    """Set by whoever has the clock."""

    @property
    def is_in_trouble(self) -> bool:
        return self.trouble.begin <= self.now < self.trouble.end

    def choose(self, request: Request) -> Fault | None:
        return self._roll((*BEFORE_BODY, *WRONG_ANSWER, *IN_BODY), request)

    def accept(self) -> Fault | None:
        return self._roll(AT_ACCEPT, None)

    def is_out(self, kind: str) -> bool:
        return self.is_in_trouble and kind in self.trouble.kinds

    def _roll(self, possible: tuple[str, ...], request: Request | None) -> Fault | None:
        if not self.is_in_trouble:
            return None
        kinds = [kind for kind in self.trouble.kinds if kind in possible]
        if not kinds or self.dice.random() >= self.trouble.rate:
            return None
        kind = self.dice.choice(kinds)
        if kind in CHANGES_BYTES and request is not None and request.is_direct:
            # As by a cache on the way: whoever asks past it gets the right bytes.
            return None
        if kind == "status":
            return Fault(kind, self.dice.choice(self.trouble.statuses), self.dice.choice(self.trouble.retry_after))
        if kind == "delay":
            return Fault(kind, self.dice.choice((0.05, 0.5, 3.0, 8.0)))
        return Fault(kind, self.dice.random())


class NetworkSchedule:
    """One seed's schedule: one or two servers (mirrors), the troubles of each, and what a client can expect."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = dice = random.Random(seed)
        self.is_tls = dice.random() < 0.3
        self.begins_at_open = dice.random() < 0.3
        self.stays = dice.random() < 0.1
        self.is_replaced = dice.random() < 0.08
        self.comes_back = dice.random() < 0.5
        self.tasks = dice.choice((1, 1, 2, 4))
        self.servers = [self._server() for _ in range(dice.choice((1, 1, 1, 2)))]
        self.is_registry = dice.random() < 0.2
        """Behind tokens, which expire all the time."""
        if self.is_registry:
            # Blobs are never replaced; and a registry on loopback is asked without TLS.
            self.is_replaced = self.is_tls = False
        if self.is_replaced:
            self.servers = self.servers[:1]

    def _server(self) -> ServerSchedule:
        dice = self.dice
        pool = [*AT_ACCEPT, *BEFORE_BODY, *WRONG_ANSWER, *IN_BODY, *OUTAGES]
        pool += ["status"] * 4 + ["delay", "reset inside", "truncated", "silent inside"]
        kinds = {dice.choice(pool) for _ in range(dice.choice((1, 1, 2, 4)))}
        if not self.is_tls:
            kinds -= {*_TLS_ONLY}
        begin = 0.0 if self.begins_at_open else 0.5
        end = 1e9 if self.stays else begin + dice.choice((0.2, 2.0, 5.0, 10.0))
        trouble = Trouble(
            tuple(sorted(kinds)),
            dice.choice((0.2, 0.5, 0.8, 1.0)),
            begin,
            end,
            tuple(dice.choices(_STATUSES, k=2)),
            tuple(dice.choices(_AFTER, k=2)),
        )
        return ServerSchedule(trouble, random.Random(dice.random()))

    def must_succeed(self, began: float, is_open: bool = False) -> bool:
        """Whether what is asked for at this time can be had within the time-out, by whoever retries."""
        if self.is_replaced:
            return False
        return any(self._helps(server.trouble, began, is_open) for server in self.servers)

    def _helps(self, trouble: Trouble, began: float, is_open: bool) -> bool:
        if trouble.end <= began or not trouble.kinds:
            return True
        if trouble.asks_for_patience or (is_open and trouble.names & FINAL_AT_OPEN):
            return False
        return trouble.end <= began + IO_TIMEOUT * (1 - ENOUGH)

    def __repr__(self) -> str:
        how = "registry, " if self.is_registry else "https, " if self.is_tls else ""
        return f"seed {self.seed}: {how}{[server.trouble for server in self.servers]}"
