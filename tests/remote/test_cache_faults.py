"""Faults of the cache under use: no wrong bytes, no failure, no hang, as long as the origin is fine.

A read's bytes are compared with the image's, which stands for the hash tree: what differs is asked for ``again``, as a
daemon does.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from mystfuse.remote.fetcher_config import FetcherConfig
from tests.support.cache_faults import CacheFaults
from tests.support.fetcher_daemon import FetcherDaemon
from tests.support.remote_files import fetcher_of_file

SIZE = (2 << 20) + 777
FETCHERS = 2
FAULTS = 20
"""For each schedule."""
READS = 4
"""After each fault."""
PATIENCE = 30.0
"""Seconds for a read: that of a lock (3 s), and of a worker that is started anew, on a busy machine."""


class _User:
    """A daemon with its fetcher, which it starts again when that is killed."""

    def __init__(self, config: FetcherConfig, content: bytes) -> None:
        self._config, self._content = config, content
        self._stack = ExitStack()
        self.longest = 0.0
        self.again = 0
        self._start()

    def _start(self) -> None:
        self._stack.close()
        connection, self._process = self._stack.enter_context(fetcher_of_file(self._config))
        self._daemon = FetcherDaemon(connection, self._content)
        self._stack.callback(self._daemon.close)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._process

    def read(self, offset: int, length: int) -> None:
        started = time.monotonic()
        while True:
            try:
                self._daemon.verified(offset, length)
                break
            except EOFError:
                self._start()
        self.longest = max(self.longest, time.monotonic() - started)

    def close(self) -> None:
        self.again += self._daemon.again
        self._stack.close()


def _run(seed: int, directory: Path) -> tuple[list[str], float, int]:
    """One schedule; returns the faults, the longest time of a read, and how many were asked for again."""
    chance = random.Random(seed)
    directory.mkdir()
    image, cache, precious = directory / "image", directory / "cache", directory / "precious"
    content = chance.randbytes(SIZE)
    image.write_bytes(content)
    precious.write_bytes(b"precious")
    config = FetcherConfig((f"http://file{image}",), str(cache), chance.choice((256 << 10, 1 << 20, 64 << 20)))
    done: list[str] = []
    with ExitStack() as stack:
        users: list[_User] = []
        for _ in range(FETCHERS):
            users.append(_User(config, content))
            stack.callback(users[-1].close)
        faults = CacheFaults(chance, cache, lambda: [user.process.pid for user in users])
        stack.callback(faults.close)
        for _ in range(FAULTS):
            for _ in range(READS):
                length = chance.choice((1, 4096, 20_000, 300_000))
                chance.choice(users).read(chance.randrange(SIZE - length), length)
            done.append(faults.do())
        for user in users:
            for offset in range(0, SIZE, 1 << 20):
                user.read(offset, min(1 << 20, SIZE - offset))
    assert precious.read_bytes() == b"precious"
    if cache.exists():
        cache.chmod(0o755)
    shutil.rmtree(directory)
    return done, max(user.longest for user in users), sum(user.again for user in users)


def _run_all(seeds: range, directory: Path) -> None:
    again = 0
    for seed in seeds:
        try:
            _, longest, times = _run(seed, directory / str(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        assert longest < PATIENCE, f"seed {seed}: a read took {longest:.1f} s"
        again += times
    # The faults did something.
    assert again


def test_some_faults_cost_no_more_than_fetches(tmp_path: Path) -> None:
    _run_all(range(4), tmp_path)


@pytest.mark.slow
def test_a_thousand_faults_cost_no_more_than_fetches(tmp_path: Path) -> None:
    _run_all(range(100, 100 + int(os.environ.get("CACHE_FAULTS", "1000")) // FAULTS), tmp_path)
