"""Measures of changing files through a mount; each reads back what it has written, and raises ``WrongResult``."""

from __future__ import annotations

import os

from benchmarks.bench import Bench
from benchmarks.reader import Result
from benchmarks.tools import WrongResult, drop_caches

MB = 1_000_000


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


def remove_files(bench: Bench, name: str) -> float:
    """Files/s of removing the small files, just made, by rm(1)."""
    count = bench.sizes.created
    with bench.cold(name, bench.store.empty().image(), writable=True) as (peer, mounted):
        bench.read(peer, "create", mounted.path, count, expected={"files": count})
        result = bench.read(peer, "remove", mounted.path, count, expected={"left": 0})
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
            bench.read(peer, "files", mounted.path, list_file, expected=item.listed("tar"))
    return float(item.facts["tar_entries"]) / float(result["seconds"])
