"""The jobs: measures, their contenders, and mystfuse's marks.

Each measuring function takes one reading of one contender and returns a number in its job's unit; it raises
``WrongResult`` when a read does not return the written data.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import tool_jobs
from benchmarks.bench import Bench
from benchmarks.data import Item
from benchmarks.reader import Result
from benchmarks.tools import WrongResult, check_ordinary_user, drop_caches, run_reader

Measure = Callable[[Bench], float]
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Mark:
    """The minimum of mystfuse's figure: ``limit`` times that of ``against``. Without ``against``, its maximum."""

    limit: float
    against: str = ""
    aim: bool = False
    """Wanted, but not required."""


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    title: str
    unit: str
    measures: dict[str, Measure]
    """By contender; mystfuse is among them."""
    marks: tuple[Mark, ...]
    exact_rounds: str = ""
    """The field of ``Sizes`` with the number of readings, for any number of rounds."""
    once: bool = False
    """One reading is enough."""
    needs_root: bool = False


def _on(names: str, measure: Callable[[Bench, str], float]) -> dict[str, Measure]:
    """The same measure on several peers."""
    return {name: functools.partial(_call, measure, name) for name in names.split()}


def _call(measure: Callable[[Bench, str], float], name: str, bench: Bench) -> float:
    return measure(bench, name)


def read_big(bench: Bench, name: str, mode: str = "cold", ordinary: bool = False, secret: bool = False) -> float:
    """MB/s of reading the large file."""
    if ordinary:
        check_ordinary_user()
    item = bench.store.secret() if secret else bench.store.big()
    expected: Result = {"bytes": bench.sizes.big, "crc": item.facts["crc"]}
    with bench.cold(name, item.image(), ordinary=ordinary) as (peer, mounted):
        result = bench.read(peer, "sequential", mounted.path / "big", mode, expected=expected, ordinary=ordinary)
    return bench.sizes.big / MB / float(result["seconds"])


def walk_tree(bench: Bench, name: str, mode: str = "cold") -> float:
    """Entries/s of listing a tree with the attributes of all entries."""
    item = bench.store.tree()
    expected: Result = {"entries": item.facts["entries"], "bytes": item.facts["bytes"]}
    with bench.cold(name, item.image()) as (peer, mounted):
        result = bench.read(peer, "walk", mounted.path / "tree", mode, expected=expected)
    return float(result["entries"]) / float(result["seconds"])


def read_files(bench: Bench, name: str) -> float:
    """Files/s of reading every nth file of a tree."""
    item = bench.store.tree()
    with bench.cold(name, item.image()) as (peer, mounted):
        list_file = item.directory / "files.list"
        result = bench.read(peer, "files", mounted.path, list_file, expected=_listed(item, "files"))
    return float(result["files"]) / float(result["seconds"])


def _listed(item: Item, name: str) -> Result:
    return {"bytes": item.facts[f"{name}_bytes"], "crc": item.facts[f"{name}_crc"]}


def read_randomly(bench: Bench, name: str) -> float:
    """Reads/s of 4 KiB each in the large file."""
    item = bench.store.big()
    arguments = bench.sizes.random_reads, 7
    expected = _random_of_source(str(item.directory / "source/big"), *arguments)
    with bench.cold(name, item.image()) as (peer, mounted):
        result = bench.read(peer, "random", mounted.path / "big", *arguments, expected=expected)
    return float(result["reads"]) / float(result["seconds"])


@functools.cache
def _random_of_source(path: str, count: int, seed: int) -> Result:
    result = run_reader("random", path, count, seed)
    return {"bytes": result["bytes"], "crc": result["crc"]}


def write_big(bench: Bench, name: str) -> float:
    """MB/s of writing a file, up to its close."""
    with bench.cold(name, bench.store.empty().image(), writable=True) as (peer, mounted):
        file = mounted.path / "written"
        result = bench.read(peer, "write", file, bench.sizes.written, 3, expected={"bytes": bench.sizes.written})
        if peer.keeps_writes:
            drop_caches()
            bench.read(peer, "sequential", file, "cold", expected={name: result[name] for name in ("bytes", "crc")})
    return bench.sizes.written / MB / float(result["seconds"])


def write_little(bench: Bench, name: str, command: str = "small_writes", size: int = 512) -> float:
    """Writes/s of a few bytes each."""
    count = bench.sizes.small_writes
    with bench.cold(name, bench.store.empty().image(), writable=True) as (peer, mounted):
        file = mounted.path / "written"
        result = bench.read(peer, command, file, size, count, expected={"writes": count})
        if peer.keeps_writes:
            drop_caches()
            bench.read(peer, "sequential", file, "cold", expected={"crc": result["crc"]})
    return count / float(result["seconds"])


def create_files(bench: Bench, name: str) -> float:
    """Files/s of making small files."""
    count = bench.sizes.created
    with bench.cold(name, bench.store.empty().image(), writable=True) as (peer, mounted):
        result = bench.read(peer, "create", mounted.path, count, expected={"files": count})
        if peer.keeps_writes:
            drop_caches()
            bench.read(peer, "created", mounted.path, count, expected={"files": count})
        elif (counted := os.statvfs(mounted.path).f_files) != count:
            raise WrongResult(f"wrong result: {name} has counted {counted} new files, not {count}")
    return count / float(result["seconds"])


def unpack_tar(bench: Bench, name: str) -> float:
    """Entries/s of unpacking an archive."""
    item = bench.store.tree()
    with bench.cold(name, bench.store.empty().image(), writable=True) as (peer, mounted):
        result = bench.read(peer, "untar", item.directory / "part.tar", mounted.path, expected={})
        if peer.keeps_writes:
            drop_caches()
            entries: Result = {"entries": item.facts["tar_entries"] - 1}
            bench.read(peer, "walk", mounted.path / "tree", "cold", expected=entries)
            list_file = item.directory / "tar.list"
            bench.read(peer, "files", mounted.path, list_file, expected=_listed(item, "tar"))
    return float(item.facts["tar_entries"]) / float(result["seconds"])


def memory(bench: Bench, name: str) -> float:
    """MiB resident after the large file has been read several times."""
    item = bench.store.big()
    expected: Result = {"bytes": bench.sizes.big, "crc": item.facts["crc"]}
    with bench.cold(name, item.image()) as (peer, mounted):
        for _ in range(bench.sizes.memory_passes):
            drop_caches()
            bench.read(peer, "sequential", mounted.path / "big", "cold", expected=expected)
        peak = mounted.memory("VmHWM")
        bench.note(f"memory: {name} had {peak:.0f} MiB at most (VmHWM)")
        return mounted.memory("VmRSS")


def lookup_latency(bench: Bench, name: str) -> float:
    """Milliseconds, 99th percentile, of first look-ups while the large file is being read."""
    item = bench.store.big()
    expected: Result = {"bytes": item.facts["names_bytes"]}
    with bench.cold(name, item.image()) as (peer, mounted):
        list_file, big = item.directory / "names.list", mounted.path / "big"
        result = bench.read(peer, "lookups", mounted.path, list_file, big, expected=expected)
    if not result["streamed"]:
        raise WrongResult(f"wrong result: {name} read nothing while names were looked up")
    return float(result["seconds"]) * 1000


ALL = "mystfuse fuse2fs kernel floor"

JOBS: tuple[Job, ...] = (
    Job(
        "read",
        "cold sequential read, verified, as root",
        "MB/s",
        _on(ALL, read_big) | {"openssl": tool_jobs.openssl_speed},
        (Mark(2, "fuse2fs"), Mark(0.6, "openssl"), Mark(0.75, "openssl", aim=True)),
        needs_root=True,
    ),
    Job(
        "read-user",
        "the same as an ordinary user",
        "MB/s",
        _on("mystfuse fuse2fs floor", functools.partial(read_big, ordinary=True)),
        (Mark(1, "fuse2fs"),),
    ),
    Job(
        "read-encrypted",
        "cold sequential read, verified and decrypted",
        "MB/s",
        _on("mystfuse", functools.partial(read_big, secret=True))
        | _on("fuse2fs", read_big)
        | {"nbdkit": tool_jobs.nbdkit_copy},
        (Mark(1.5, "fuse2fs"), Mark(2.5, "nbdkit")),
    ),
    Job(
        "walk",
        "cold stat walk of a tree",
        "entries/s",
        _on(ALL, walk_tree),
        (Mark(5, "fuse2fs"), Mark(10, "fuse2fs", aim=True), Mark(0.6, "floor")),
    ),
    Job(
        "read-files",
        "cold read of every 5th file of a tree",
        "files/s",
        _on(ALL, read_files),
        (Mark(2.5, "fuse2fs"),),
    ),
    Job(
        "warm-read",
        "warm read of one large file",
        "MB/s",
        _on(ALL, functools.partial(read_big, mode="warm")),
        (Mark(0.9, "kernel"), Mark(0.7, "floor")),
    ),
    Job(
        "warm-walk",
        "warm stat walk",
        "entries/s",
        _on(ALL, functools.partial(walk_tree, mode="warm")),
        (Mark(0.9, "kernel"), Mark(0.7, "floor")),
    ),
    Job(
        "random",
        "random 4 KiB cold reads",
        "reads/s",
        _on(ALL, read_randomly),
        (Mark(0.6, "fuse2fs"), Mark(1, "fuse2fs", aim=True)),
    ),
    Job("write", "sequential write", "MB/s", _on(ALL, write_big), (Mark(1.3, "fuse2fs"),)),
    Job("write-512", "writes of 512 bytes", "writes/s", _on(f"{ALL} noxattr", write_little), ()),
    Job(
        "write-4k",
        "writes of 4 KiB",
        "writes/s",
        _on(f"{ALL} noxattr", functools.partial(write_little, size=4096)),
        (),
    ),
    Job(
        "write-mapped",
        "512 bytes through a mapping, and msync",
        "writes/s",
        _on("mystfuse fuse2fs kernel noxattr", functools.partial(write_little, command="mapped_writes")),
        (),
    ),
    Job(
        "create",
        "create small files",
        "files/s",
        _on(ALL, create_files),
        (Mark(0.6, "floor"), Mark(1, "fuse2fs", aim=True)),
    ),
    Job(
        "untar",
        "unpack a tar archive",
        "entries/s",
        _on(ALL, unpack_tar),
        (Mark(0.6, "floor"), Mark(1, "fuse2fs", aim=True)),
    ),
    Job(
        "verify",
        "verify an image",
        "MB/s",
        {"mystfuse": tool_jobs.verify, "veritysetup": tool_jobs.veritysetup_verify},
        (Mark(2, "veritysetup"),),
    ),
    Job(
        "mkext2",
        "mkext2 of a directory",
        "MB/s",
        {"mystfuse": tool_jobs.mkext2, "mke2fs+verity": tool_jobs.mke2fs_and_format},
        (Mark(1, "mke2fs+verity"),),
    ),
    Job(
        "mount-small",
        "until mounted, 64 MiB image",
        "ms",
        {"mystfuse": functools.partial(tool_jobs.mount_time, which="small")},
        (Mark(500),),
        exact_rounds="mounts",
    ),
    Job(
        "mount-large",
        "until mounted, large sparse image",
        "ms",
        {"mystfuse": functools.partial(tool_jobs.mount_time, which="large")},
        (Mark(500),),
        exact_rounds="mounts",
    ),
    Job(
        "mount-difference",
        "what the large one takes longer",
        "ms",
        {"mystfuse": tool_jobs.mount_difference},
        (Mark(50),),
        exact_rounds="mounts",
    ),
    Job(
        "mount-bytes",
        "read of the large one until mounted",
        "KiB",
        {"mystfuse": tool_jobs.mount_bytes},
        (Mark(1024),),
        once=True,
    ),
    Job(
        "memory",
        "resident memory after reading",
        "MiB",
        _on("mystfuse floor", memory),
        (Mark(100),),
        once=True,
    ),
    Job(
        "latency",
        "first look-ups while reading, p99",
        "ms",
        _on("mystfuse fuse2fs floor", lookup_latency),
        (Mark(20),),
    ),
)


def choose(names: str) -> tuple[Job, ...]:
    """The jobs of these names, comma-separated; "mount" stands for all those that begin with it and a dash.

    Raises:
        ValueError: no job has that name.
    """
    chosen: set[str] = set()
    for name in names.split(","):
        found = {job.name for job in JOBS if job.name == name}
        found = found or {job.name for job in JOBS if job.name.startswith(f"{name}-")}
        if not found:
            raise ValueError(f"{name}: no such job; there are {', '.join(job.name for job in JOBS)}")
        chosen |= found
    return tuple(job for job in JOBS if job.name in chosen)
