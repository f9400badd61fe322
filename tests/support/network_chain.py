"""The whole way from a web server with faults to the files of an image, in one process: server and fetcher in a thread
with a virtual clock, the image's readers in others.

Faults are counted, not timed: each operation meets so many, whenever its requests come.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import trio
import trio.testing

import mystfuse
from mystfuse.devices import open_remote
from mystfuse.errors import IntegrityError, MystfuseError
from mystfuse.remote.address import Address
from mystfuse.remote.client import FetcherClient
from mystfuse.remote.fetcher import open_transfers
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.memory_files import Memory
from mystfuse.remote.worker import Worker
from tests.support.commands import mystfuse as command
from tests.support.fault_schedules import make_source
from tests.support.faulty_proxy import AT_ACCEPT, BEFORE_BODY, IN_BODY, WRONG_ANSWER, Fault, FaultyServer
from tests.support.http_objects import Request, StoredObject
from tests.support.network_faults import CHANGES_BYTES, FINAL_AT_OPEN
from tests.support.network_runs import HOST, Resolver, Tally

IO_TIMEOUT = 60.0
"""Seconds, of the virtual clock for the fetcher, of the real one for who waits for it."""
POOL = (*BEFORE_BODY, *WRONG_ANSWER, *IN_BODY, "reset at accept", "silent at accept", "status", "flip", "flip")
"""Kinds of faults, some of them more often."""
_STATUSES = (403, 404, 429, 500, 503)


@dataclass
class Trouble:
    """What the next requests meet."""

    kinds: tuple[str, ...]
    left: int
    """Requests and connections that meet it; the others are answered as they should be."""
    rate: float
    flips_all: bool
    """Also what is asked for past caches: then the bytes cannot be had."""

    @property
    def can_be_survived(self) -> bool:
        return not self.flips_all or not {*CHANGES_BYTES} & {*self.kinds}


class FarAway:
    """A thread with a web server and the fetchers of this process; ``with far_away(...)``.

    Args:
        is_virtual: time is, for both; otherwise the server is for other processes.
    """

    def __init__(self, content: bytes, is_virtual: bool = True) -> None:
        self._is_virtual = is_virtual
        self.trouble = Trouble((), 0, 0.0, False)
        self.server = FaultyServer(StoredObject(content), self._choose, self._accept)
        self._dice = random.Random(1)
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://{HOST if self._is_virtual else '127.0.0.1'}:{self.server.port}/image"

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()

    def start_fetcher(self, address: Address, config: FetcherConfig) -> FetcherClient:
        """In place of that of ``open_remote``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self._token.run_sync_soon(self._nursery.start_soon, self._serve, theirs, config)
        return FetcherClient(ours, address.name)

    def _run(self) -> None:
        trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0.003) if self._is_virtual else None)

    async def _main(self) -> None:
        trio.socket.set_custom_hostname_resolver(Resolver(lambda: False))
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._scope = self._nursery.cancel_scope
            await self._nursery.start(self.server.serve)
            self._ready.set()

    async def _serve(self, connection: socket.socket, config: FetcherConfig) -> None:
        worker = Worker(connection, config, partial(open_transfers, config), Memory())
        try:
            with connection:
                await worker.run()
        finally:
            # In a process of its own, its end does that.
            if hasattr(worker, "_store"):
                worker._store.close()

    def _choose(self, request: Request) -> Fault | None:
        kind = self._roll((*BEFORE_BODY, *WRONG_ANSWER, *IN_BODY))
        if kind in CHANGES_BYTES and request.is_direct and not self.trouble.flips_all:
            return None
        match kind:
            case None:
                return None
            case "status":
                return Fault(kind, self._dice.choice(_STATUSES), self._dice.choice((None, "1")))
            case "delay":
                return Fault(kind, self._dice.choice((0.5, 5.0)))
        return Fault(kind, self._dice.random())

    def _accept(self) -> Fault | None:
        kind = self._roll(AT_ACCEPT)
        return Fault(kind) if kind is not None else None

    def _roll(self, possible: tuple[str, ...]) -> str | None:
        trouble = self.trouble
        kinds = [kind for kind in trouble.kinds if kind in possible]
        if trouble.left <= 0 or not kinds or self._dice.random() >= trouble.rate:
            return None
        trouble.left -= 1
        return self._dice.choice(kinds)


@contextmanager
def far_away(content: bytes, is_virtual: bool = True) -> Iterator[FarAway]:
    """A web server with the content, and fetchers, as long as the block runs; images that this process opens are by way
    of them.

    Args:
        is_virtual: see ``FarAway``.
    """
    found = FarAway(content, is_virtual)
    found.start()
    try:
        with mock.patch.object(open_remote, "start_fetcher", found.start_fetcher):
            yield found
    finally:
        found.stop()


@dataclass(frozen=True)
class FarImage:
    """An image to serve, and what is in it: small files and a large one, ``large``, of which little is read."""

    content: bytes = field(repr=False)
    root_hash: str
    source: Path

    @classmethod
    def make(cls, directory: Path) -> FarImage:
        source, image = directory / "source", directory / "image"
        source.mkdir()
        make_source(source, 1)
        (source / "large").write_bytes(random.Random(4).randbytes(24 << 20))
        assert command("mkext2", source, image).returncode == 0
        root_hash = json.loads(command("fssig", "--json", image).stdout)["root_hash"]
        return cls(image.read_bytes(), root_hash, source)

    @property
    def paths(self) -> list[str]:
        """Of all but the large file."""
        paths = (path.relative_to(self.source) for path in self.source.rglob("*"))
        return sorted(str(path) for path in paths if path.name != "large")


class ChainRun:
    """One seed's run over an image."""

    def __init__(self, seed: int, image: FarImage) -> None:
        self.tally = Tally()
        self._seed, self._image, self._source = seed, image, image.source
        self._dice = random.Random(f"chain {seed}")
        self._kinds = tuple({self._dice.choice(POOL) for _ in range(self._dice.choice((1, 2, 4)))})
        self._flips_all = self._dice.random() < 0.15
        self._paths = image.paths

    def run(self) -> None:
        """Raises AssertionError on any broken promise."""
        with far_away(self._image.content) as far:
            self._vex(far, is_open=True)
            try:
                image = mystfuse.Image(far.url, roothashes=[self._image.root_hash], io_timeout=IO_TIMEOUT)
            except (MystfuseError, OSError) as error:
                self._check_failure(far, "open", error)
                self.tally.refused[type(error).__name__] += 1
            else:
                with image:
                    self._use(far, image)
            self.tally.done += far.server.done

    def _vex(self, far: FarAway, is_open: bool = False) -> None:
        kinds = tuple(kind for kind in self._kinds if not is_open or kind not in {*FINAL_AT_OPEN, "status"})
        if is_open and self._dice.random() < 0.5:
            kinds = ()
        far.trouble = Trouble(kinds, self._dice.choice((1, 2, 3)), self._dice.choice((0.3, 0.7, 1.0)), self._flips_all)

    def _use(self, far: FarAway, image: mystfuse.Image) -> None:
        operations = [self._read, self._list, self._walk, *[self._read_part] * 4]
        for _ in range(6):
            self._vex(far)
            operation = self._dice.choice(operations)
            try:
                operation(image)
                self.tally.right += 1
            except (MystfuseError, OSError) as error:
                self._check_failure(far, operation.__name__, error)
                self.tally.failed[type(error).__name__] += 1
        far.trouble = Trouble((), 0, 0.0, False)
        for path in self._paths:
            if (self._source / path).is_file():
                assert image.read_bytes(path) == (self._source / path).read_bytes(), (self._seed, path)

    def _check_failure(self, far: FarAway, what: str, error: Exception) -> None:
        said = (self._seed, what, self._kinds, far.trouble, error)
        assert not far.trouble.can_be_survived, said
        assert isinstance(error, IntegrityError), said

    def _file(self) -> tuple[str, bytes]:
        path = self._dice.choice([path for path in self._paths if (self._source / path).is_file()])
        return path, (self._source / path).read_bytes()

    def _read(self, image: mystfuse.Image) -> None:
        path, content = self._file()
        assert image.read_bytes(path) == content, (self._seed, path)

    def _read_part(self, image: mystfuse.Image) -> None:
        offset, length = self._dice.randrange(24 << 20), self._dice.choice((1, 5000, 300_000))
        with (self._source / "large").open("rb") as source, image.open("large", "rb") as file:
            source.seek(offset)
            file.seek(offset)
            assert file.read(length) == source.read(length), (self._seed, offset, length)

    def _list(self, image: mystfuse.Image) -> None:
        path = self._dice.choice([path for path in ("", *self._paths) if (self._source / path).is_dir()])
        found = {*image.listdir(path or "/")} - {"lost+found"}
        assert found == {*os.listdir(self._source / path)}, (self._seed, path)

    def _walk(self, image: mystfuse.Image) -> None:
        for path in self._paths:
            status = (self._source / path).lstat()
            assert image.lstat(path).st_size == status.st_size or (self._source / path).is_dir(), (self._seed, path)
