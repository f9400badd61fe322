"""Measures of images elsewhere: over a slow link, through a web server on this machine, and by many at once."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.data import Item
from benchmarks.link import RATE, ROUND_TRIP, SERVER, Network, compile_link, network
from benchmarks.peer import Mounted
from benchmarks.reader import Result
from benchmarks.remote_peers import mount_remote, mount_with_nbdkit
from benchmarks.tools import BenchmarkError, StrPath, check_on_disk, drop_caches, mystfuse_command, run, run_reader
from benchmarks.web_server import Served, WebServer, web_server

MB = 1_000_000
FAR = 0.22
"""Seconds of another round trip: the difference says how many there were."""
START = ("/usr/bin/python3", "-c", "import json, http.client")
SLOW_MOTION = 10
READ_BY_EACH = 32 << 20
"""Bytes of a large file, where many hosts are played."""
AT_ONCE = 8
"""Programs that run at the same time where many hosts are played."""


@dataclass(slots=True)
class Start:
    """A start of Python from an image elsewhere."""

    seconds: float = 0.0
    """From the mount command on."""
    mounting: float = 0.0
    """Of these, until the image was mounted."""
    requests: list[Served] = field(default_factory=list)

    @property
    def bytes_fetched(self) -> int:
        return sum(request.length for request in self.requests)


@contextmanager
def far_server(
    bench: Bench, item: Item, round_trip: float = ROUND_TRIP, rate: int = RATE
) -> Iterator[tuple[Network, WebServer]]:
    """A web server with an item's files, at the other end of a slow link."""
    program = compile_link(bench.scratch)
    with (
        bench.directory() as directory,
        network(program, round_trip, rate) as hosts,
        web_server(item.directory, directory, SERVER, 80, hosts.on_server) as server,
    ):
        yield hosts, server


@contextmanager
def _mountpoint(bench: Bench) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mount-", dir=bench.scratch))
    try:
        yield path
    finally:
        path.rmdir()


def _image_url(server: WebServer) -> str:
    return f"{server.url}/image.img"


def mount_seconds(bench: Bench, name: str, round_trip: float = ROUND_TRIP) -> float:
    """Seconds until an image at the end of a slow link is mounted."""
    item = bench.store.root()
    drop_caches()
    with far_server(bench, item, round_trip) as (hosts, server), _mountpoint(bench) as mountpoint:
        start = time.perf_counter()
        if name == "mystfuse":
            with mount_remote(_image_url(server), item.image(), mountpoint, hosts.on_client):
                return time.perf_counter() - start
        with mount_with_nbdkit(_image_url(server), bench.scratch, mountpoint, hosts.on_client):
            return time.perf_counter() - start


def mount_round_trips(bench: Bench, name: str) -> float:
    """Round trips until mounted: how much longer it takes when each takes longer."""
    return (mount_seconds(bench, name, FAR) - mount_seconds(bench, name)) / (FAR - ROUND_TRIP)


def start_python(bench: Bench, name: str) -> float:
    """Seconds from the mount command to the end of a start of Python, over the slow link."""
    return measure_start(bench, name).seconds


def fetched_to_needed(bench: Bench, name: str) -> float:
    """Bytes that such a start fetches, to those that it touches."""
    trace, start = _trace(bench)
    needed = sum(length for _, length in trace)
    bench.note(
        f"remote-bytes: {len(start.requests)} requests, {start.bytes_fetched / MB:.1f} MB fetched, "
        f"{needed / MB:.1f} MB needed"
    )
    return start.bytes_fetched / needed


def measure_start(bench: Bench, name: str, trace_to: Path | None = None, slower: int = 1) -> Start:
    """Start Python from an image at the end of the slow link, nothing of it being cached.

    Args:
        name: "mystfuse", "traced" (with a trace of an earlier start) or "nbdkit+fuse2fs".
        trace_to: where to write a trace of this start.
        slower: so many times as far away, with as many times less bandwidth.
    """
    item, found = bench.store.root(), Start()
    options: list[StrPath] = []
    if name == "traced":
        _trace(bench)
        options = ["--prefetch", bench.scratch / "trace"]
    # What the start-up of mystfuse itself reads is not what is measured.
    run(*mystfuse_command(), "--version")
    far = far_server(bench, item, ROUND_TRIP * slower, RATE // slower)
    with far as (hosts, server), _mountpoint(bench) as mountpoint:
        begin = time.perf_counter()
        mount: AbstractContextManager[object]
        if name == "nbdkit+fuse2fs":
            mount = mount_with_nbdkit(_image_url(server), bench.scratch, mountpoint, hosts.on_client)
        else:
            mount = mount_remote(_image_url(server), item.image(), mountpoint, hosts.on_client, options)
        with mount:
            found.mounting = time.perf_counter() - begin
            run("chroot", mountpoint, *START)
            found.seconds = time.perf_counter() - begin
            found.requests = server.requests()
            if trace_to is not None:
                trace_to.write_text(run(*mystfuse_command(), "trace", mountpoint))
    bench.note(
        f"remote-python: {name} fetched {found.bytes_fetched / MB:.1f} MB in {len(found.requests)} requests; "
        f"mounting took {found.mounting:.2f} s of the {found.seconds:.2f} s"
    )
    return found


_starts: dict[Path, Start] = {}


def _trace(bench: Bench) -> tuple[list[tuple[int, int]], Start]:
    """What a start of Python touches (offsets and lengths), and that start; the trace is in the file ``trace`` of the
    scratch directory."""
    path = bench.scratch / "trace"
    if path not in _starts:
        _starts[path] = measure_start(bench, "mystfuse", path)
    lines = path.read_text().splitlines()
    ranges = [(int(line.split()[0]), int(line.split()[1])) for line in lines if line[:1].isdigit()]
    return ranges, _starts[path]


def read_through_server(bench: Bench, name: str, again: bool = False) -> float:
    """MB/s of reading the large file, from storage; "local": from the image itself.

    Args:
        again: the second time, by another mount with the same cache.
    """
    item = bench.store.big()
    expected: Result = {"bytes": bench.sizes.big, "crc": item.facts["crc"]}
    if name == "local":
        with bench.cold("mystfuse", item.image(), from_storage=True) as (peer, mounted):
            result = bench.read(peer, "sequential", mounted.path / "big", "cold", expected=expected)
        return bench.sizes.big / MB / float(result["seconds"])
    check_on_disk(item.image().path)
    with bench.directory() as directory, web_server(item.directory, directory) as server:
        cache = directory / "cache"
        options: list[StrPath] = ["--cache", cache, "--cache-size", str(2 * bench.sizes.big)]
        for turn in range(1 + again):
            server.forget()
            with (
                _mountpoint(bench) as mountpoint,
                mount_remote(_image_url(server), item.image(), mountpoint, options=options) as pid,
            ):
                drop_caches(*(path for path in cache.rglob("*") if path.is_file()))
                result = run_reader("sequential", mountpoint / "big", "cold")
                memory = Mounted(mountpoint, pid).memory("VmHWM")
            fetched = sum(request.length for request in server.requests())
            if any(result[key] != expected[key] for key in expected):
                raise BenchmarkError(f"wrong result through the web server: {result}")
            bench.note(
                f"remote-read, {'again' if turn else 'cold'}: {fetched / MB:.0f} MB fetched in "
                f"{len(server.requests())} requests, daemon and fetcher at most {memory:.0f} MiB"
            )
    return bench.sizes.big / MB / float(result["seconds"])


def bytes_of_many(bench: Bench, name: str) -> float:
    """What many mounts of one image with one cache fetch together, to the bytes that are different ones."""
    return _play_hosts(bench, bench.sizes.hosts)[0]


def memory_of_many(bench: Bench, name: str) -> float:
    """MiB resident for each of many mounts of one image: daemon, fetcher and supervisor; of pages that processes share
    each has its share."""
    return _play_hosts(bench, bench.sizes.hosts)[1]


@functools.cache
def _play_hosts(bench: Bench, count: int) -> tuple[float, float]:
    """Mount an image so many times, with one cache; start Python, and read some of a large file, in each.

    Returns:
        The bytes fetched to the different ones, and the memory in MiB of each.
    """
    item = bench.store.root()
    with bench.directory() as directory, ExitStack() as stack:
        server = stack.enter_context(web_server(item.directory, directory))
        options: list[StrPath] = ["--cache", directory / "cache", "--cache-size", "2G"]
        mountpoints = [stack.enter_context(_mountpoint(bench)) for _ in range(count)]

        def mount(mountpoint: Path) -> Mounted:
            pid = stack.enter_context(mount_remote(_image_url(server), item.image(), mountpoint, options=options))
            return Mounted(mountpoint, pid)

        def use(mounted: Mounted) -> None:
            run("chroot", mounted.path, *START)
            run("head", f"--bytes={READ_BY_EACH}", mounted.path / "srv/noise")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            mounts = list(pool.map(mount, mountpoints))
            for_opening = sum(request.length for request in server.requests())
            list(pool.map(use, mounts))
        resident = sum(mounted.memory("VmRSS") for mounted in mounts) / count
        shares = sum(_proportional(mounted) for mounted in mounts) / count
        requests = server.requests()
        fetched = sum(request.length for request in requests)
        different = _union(requests)
        bench.note(
            f"remote-hosts: {count} mounts fetched {fetched / MB:.1f} MB, of that {for_opening / MB:.1f} MB to open, "
            f"{different / MB:.1f} MB of different bytes; resident memory of each: {shares:.1f} MiB, or "
            f"{resident:.1f} MiB if what is shared counts for each"
        )
        return fetched / different, shares


def _union(requests: Sequence[Served]) -> int:
    """The different bytes that were sent."""
    total = end = 0
    for start, stop in sorted((request.offset, request.offset + request.length) for request in requests):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def _proportional(mounted: Mounted) -> float:
    """MiB of memory, of all processes of a mount; of shared pages each process has its share."""
    total = 0
    for pid in mounted.processes():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def write_traces(bench: Bench, path: Path) -> None:
    """Write what ``scripts/simulate-origin`` needs: the requests of a start with and without a trace; of each, when it
    reached the server (seconds since the first), offset and length.

    They are measured in slow motion, and their times divided: so what else the machine does counts less.
    """
    document: dict[str, object] = {"round_trip": ROUND_TRIP, "rate": RATE}
    for name in ("mystfuse", "traced"):
        start = measure_start(bench, name, slower=SLOW_MOTION)
        requests = sorted(
            (request.time - request.seconds, request.offset, request.length) for request in start.requests
        )
        begin = requests[0][0]
        document[name] = {
            "seconds": round(start.seconds / SLOW_MOTION, 3),
            "requests": [[round((moment - begin) / SLOW_MOTION, 5), at, length] for moment, at, length in requests],
        }
    path.write_text(json.dumps(document) + "\n")
