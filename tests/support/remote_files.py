"""An image elsewhere that is a file here: transfers for fetchers under test, and a process that serves it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Failure, FetchError, Opened, Receive

PROJECT = Path(__file__).parents[2]
_PART = 64 << 10
_opened = -1


@dataclass
class FileTransfers:
    """Reads a file as if it were elsewhere; notes what was asked for."""

    path: Path | int
    """Or a descriptor, for a process that opens no files any more."""
    round_trip: float = 0.001
    throughput: float = 1e9
    delay: float = 0.0
    """Seconds before the first byte of each fetch."""
    part_delay: float = 0.0
    """Seconds before each further 64 KiB."""
    validator: str = "1"
    counters: dict[str, int] = field(default_factory=lambda: {"requests": 0, "bytes_fetched": 0})
    asked: list[tuple[int, int, bool]] = field(default_factory=list)
    """Offset, length, again."""
    failure: FetchError | None = None
    """What every fetch raises."""
    gate: trio.Event | None = None
    """What every fetch waits for."""

    async def open(self, tail: int, deadline: float) -> Opened:
        await trio.sleep(self.delay)
        try:
            size = os.stat(self.path).st_size
        except OSError:
            raise FetchError(Failure.ABSENT, "file: absent") from None
        return Opened(size, self.validator, self._read(max(0, size - tail), tail))

    async def fetch(self, offset: int, length: int, receive: Receive, *, deadline: float, again: bool = False) -> None:
        self.asked.append((offset, length, again))
        self.counters["requests"] += 1
        if self.failure is not None:
            raise self.failure
        with trio.move_on_at(deadline) as scope:
            if self.gate is not None:
                await self.gate.wait()
            await trio.sleep(self.delay)
            while length:
                part = self._read(offset, min(_PART, length))
                assert part, "a range behind the end"
                self.counters["bytes_fetched"] += len(part)
                await receive(offset, memoryview(part))
                await trio.sleep(self.part_delay)
                offset, length = offset + len(part), length - len(part)
        if scope.cancelled_caught:
            raise FetchError(Failure.UNREACHABLE, "file: no answer in time")

    def _read(self, offset: int, length: int) -> bytes:
        if isinstance(self.path, int):
            return os.pread(self.path, length, offset)
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


@asynccontextmanager
async def open_file(config: FetcherConfig, note: Callable[[int, str], None]) -> AsyncIterator[FileTransfers]:
    """The transfers of the file that was opened; the delay of each fetch is the environment's, and so is the name of a
    file that keeps it from being opened."""
    if os.path.exists(os.environ.get("FILE_TRANSFERS_FAIL", "")):
        raise FetchError(Failure.UNTRUSTED, "file: a certificate that is none")
    yield FileTransfers(_opened, delay=float(os.environ.get("FILE_TRANSFERS_DELAY", "0")))


@contextmanager
def fetcher_of_file(config: FetcherConfig) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A fetcher, as a process, of ``http://file/PATH``, an image that is a file here; yields the daemon's end of its
    socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "tests.support.remote_files", str(theirs.fileno()), str(reading)]
    process = subprocess.Popen(command, pass_fds=(theirs.fileno(), reading), cwd=PROJECT)
    theirs.close()
    os.close(reading)
    with open(writing, "wb") as pipe:
        pipe.write(config.to_json())
    ours.settimeout(60)
    try:
        yield ours, process
    finally:
        ours.close()
        try:
            process.wait(30)
        finally:
            process.kill()


if __name__ == "__main__":
    from mystfuse.remote.fetcher import serve

    with open(int(sys.argv[2]), "rb") as pipe:
        given = FetcherConfig.from_json(pipe.read())
    with suppress(FileNotFoundError):
        _opened = os.open(given.addresses[0].removeprefix("http://file"), os.O_RDONLY)
    serve(socket.socket(fileno=int(sys.argv[1])), given, open_file)
