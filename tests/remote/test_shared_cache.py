"""Many fetchers of one image on one machine, with one cache: each chunk is fetched once."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mystfuse.remote.fetcher_config import FetcherConfig
from tests.support.commands import run
from tests.support.fetcher_daemon import FetcherDaemon
from tests.support.remote_files import fetcher_of_file

SIZE = 16 << 20
READ = 128 << 10


def _read_all(count: int, directory: Path, delay: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Have as many fetchers read an image through at the same time; returns the bytes that all of them fetched, and
    resident memory: what is a process's own, of all of them, and the most that one has."""
    monkeypatch.setenv("FILE_TRANSFERS_DELAY", delay)
    content = random.Random(count).randbytes(SIZE)
    image, cache = directory / "image", directory / "cache"
    image.write_bytes(content)
    config = FetcherConfig((f"http://file{image}",), str(cache))
    failures: list[BaseException] = []
    with ExitStack() as stack:
        daemons = []
        processes = []
        for _ in range(count):
            connection, process = stack.enter_context(fetcher_of_file(config))
            daemons.append(FetcherDaemon(connection, content))
            processes.append(process)
            stack.callback(daemons[-1].close)

        def read(daemon: FetcherDaemon) -> None:
            try:
                for offset in range(0, SIZE, READ):
                    daemon.verified(offset, READ)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read, args=(daemon,)) for daemon in daemons]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        if failures:
            raise failures[0]
        fetched = sum(daemon.status()["bytes_fetched"] for daemon in daemons)
        resident = [sum(_resident(process)) for process in processes]
        assert all(daemon.again == 0 and not daemon.notes for daemon in daemons)
    return fetched, sum(resident), max(resident)


def _resident(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Bytes of memory that supervisor and worker have, what they share with others divided by those (Pss)."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *children):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                yield int(line.split()[1]) << 10


@pytest.mark.parametrize("delay", ["0", "0.05"])
def test_a_few_fetchers_fetch_each_chunk_once(delay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, _, most = _read_all(4, tmp_path, delay, monkeypatch)
    assert fetched <= 1.05 * SIZE and most < 60 << 20


@pytest.mark.slow
def test_sixty_four_fetchers_fetch_each_chunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, resident, most = _read_all(64, tmp_path, "0.02", monkeypatch)
    print(f"fetched {fetched / SIZE:.3f} x, resident {resident >> 20} MiB, the largest {most >> 20} MiB")
    assert fetched <= 1.05 * SIZE and resident <= 64 * 40 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path)
    yield path
    run("umount", "-l", path)


@pytest.mark.root
def test_a_full_disk_costs_fetches(small_disk: Path, tmp_path: Path) -> None:
    content = random.Random(9).randbytes(SIZE)
    (tmp_path / "image").write_bytes(content)
    for others in (0, 3 << 20, (4 << 20) - 4096):
        shutil.rmtree(small_disk / "cache", ignore_errors=True)
        (small_disk / "others").write_bytes(bytes(others))
        with fetcher_of_file(FetcherConfig((f"http://file{tmp_path}/image",), str(small_disk / "cache"))) as (ours, _):
            daemon = FetcherDaemon(ours, content)
            for offset in range(0, SIZE, READ):
                daemon.verified(offset, READ)
            daemon.status()
            # What is said once is enough.
            assert len(daemon.notes) <= 2, daemon.notes
            daemon.close()
