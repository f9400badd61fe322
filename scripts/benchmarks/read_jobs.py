"""Measures of reading through a mount.

Each function takes one reading of one contender and returns a number in its job's unit; it raises ``WrongResult`` when
a read does not return the written data. ``from_storage``: the image itself comes from the disk.
"""

from __future__ import annotations

import functools

from benchmarks.bench import Bench
from benchmarks.reader import Result
from benchmarks.tools import WrongResult, check_installed, check_ordinary_user, drop_caches, run_reader

MB = 1_000_000
PARALLEL = 8
"""Readers at once."""


def read_big(
    bench: Bench,
    name: str,
    mode: str = "cold",
    ordinary: bool = False,
    secret: bool = False,
    from_storage: bool = False,
) -> float:
    """MB/s of reading the large file."""
    if ordinary:
        check_ordinary_user()
    item = bench.store.secret() if secret else bench.store.big()
    expected: Result = {"bytes": bench.sizes.big, "crc": item.facts["crc"]}
    with bench.cold(name, item.image(), ordinary=ordinary, from_storage=from_storage) as (peer, mounted):
        result = bench.read(peer, "sequential", mounted.path / "big", mode, expected=expected, ordinary=ordinary)
    return bench.sizes.big / MB / float(result["seconds"])


def walk_tree(bench: Bench, name: str, mode: str = "cold", from_storage: bool = False) -> float:
    """Entries/s of listing a tree with the attributes of all entries."""
    item = bench.store.tree()
    expected: Result = {"entries": item.facts["entries"], "bytes": item.facts["bytes"]}
    with bench.cold(name, item.image(), from_storage=from_storage) as (peer, mounted):
        result = bench.read(peer, "walk", mounted.path / "tree", mode, expected=expected)
    return float(result["entries"]) / float(result["seconds"])


def read_files(bench: Bench, name: str, from_storage: bool = False) -> float:
    """Files/s of reading every nth file of a tree."""
    item = bench.store.tree()
    with bench.cold(name, item.image(), from_storage=from_storage) as (peer, mounted):
        list_file = item.directory / "files.list"
        result = bench.read(peer, "files", mounted.path, list_file, expected=item.listed("files"))
    return float(result["files"]) / float(result["seconds"])


def read_randomly(bench: Bench, name: str, from_storage: bool = False) -> float:
    """Reads/s of 4 KiB each in the large file."""
    item = bench.store.big()
    arguments = bench.sizes.random_reads, 7
    expected = _random_of_source(str(item.directory / "source/big"), *arguments)
    with bench.cold(name, item.image(), from_storage=from_storage) as (peer, mounted):
        result = bench.read(peer, "random", mounted.path / "big", *arguments, expected=expected)
    return float(result["reads"]) / float(result["seconds"])


@functools.cache
def _random_of_source(path: str, count: int, seed: int) -> Result:
    result = run_reader("random", path, count, seed)
    return {"bytes": result["bytes"], "crc": result["crc"]}


def read_in_parallel(bench: Bench, name: str) -> float:
    """MB/s of several processes together, each of which reads its part of the large file."""
    item = bench.store.big()
    expected: Result = {"bytes": bench.sizes.big, "crc": item.facts["crc"]}
    with bench.cold(name, item.image()) as (peer, mounted):
        result = bench.read(peer, "parallel", mounted.path / "big", PARALLEL, expected=expected)
    return bench.sizes.big / MB / float(result["seconds"])


def git_status(bench: Bench, name: str) -> float:
    """Files/s of a checkout that git(1) compares with its index."""
    check_installed("git")
    item = bench.store.repository()
    with bench.cold(name, item.image()) as (peer, mounted):
        result = bench.read(peer, "git_status", mounted.path / "repository", expected={"crc": item.facts["crc"]})
    return float(item.facts["files"]) / float(result["seconds"])


def start_python(bench: Bench, name: str) -> float:
    """Starts/s of Python with a library that lies in the image, of which it imports many modules."""
    item = bench.store.python()
    list_file = item.directory / "imports.list"
    expected: Result = {"imported": item.facts["imports"]}
    with bench.cold(name, item.image()) as (peer, mounted):
        result = bench.read(peer, "imports", mounted.path / "python", list_file, expected=expected)
    return 1 / float(result["seconds"])


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


def memory(bench: Bench, name: str) -> float:
    """MiB resident, of all its processes, after the large file has been read several times."""
    item = bench.store.big()
    expected: Result = {"bytes": bench.sizes.big, "crc": item.facts["crc"]}
    with bench.cold(name, item.image()) as (peer, mounted):
        for _ in range(bench.sizes.memory_passes):
            drop_caches()
            bench.read(peer, "sequential", mounted.path / "big", "cold", expected=expected)
        peak = mounted.memory("VmHWM")
        count = len(mounted.processes())
        bench.note(f"memory: {name} had {peak:.0f} MiB at most (VmHWM), in {count} process{'es' * (count > 1)}")
        return mounted.memory("VmRSS")
