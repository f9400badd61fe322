"""How mystfuse's figures grow: with the size of files, trees, directories and images, and with the number of reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from removal import remove_tree

from benchmarks.bench import Bench
from benchmarks.data import GIB, Item, Say, Sizes, Store
from benchmarks.peer import Mounted, Peer
from benchmarks.read_jobs import read_big, walk_tree
from benchmarks.reader import MIB, Result
from benchmarks.tools import BenchmarkError, drop_caches

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    x_label: str
    y_label: str
    lines: dict[str, list[Point]]
    """By contender."""


class Scaling:
    """Measures all plots; removes files beyond the usual data at once.

    Args:
        divisor: makes everything smaller by this factor, to try it out.
    """

    def __init__(self, work: Path, sizes: Sizes, scratch: Path, say: Say, divisor: int = 1) -> None:
        self._work = work
        self._sizes = sizes
        self._scratch = scratch
        self._say = say
        self._divisor = divisor

    def measure(self) -> list[Plot]:
        """Every plot."""
        return [
            self._throughput(),
            self._walk(),
            *self._lookup(),
            self._memory_by_reading(),
            self._memory_by_size(),
        ]

    def _throughput(self) -> Plot:
        sizes = self._scaled(16 * MIB, 256 * MIB, 2 * GIB, 8 * GIB, least=MIB)
        lines = self._sweep(sizes, "mystfuse fuse2fs kernel floor", self._read_of_size)
        return Plot("Cold sequential read", "file, MiB", "MB/s", _in_units(lines, MIB))

    def _read_of_size(self, size: int, names: Sequence[str]) -> dict[str, float]:
        bench = self._bench(replace(self._sizes, big=size, names=0))
        item = bench.store.big()
        try:
            return {name: read_big(bench, name) for name in names}
        finally:
            _remove(item)

    def _walk(self) -> Plot:
        counts = self._scaled(1000, 10_000, 50_000, 200_000)
        lines = self._sweep(counts, "mystfuse kernel floor", self._walk_of_size)
        return Plot("Cold stat walk", "entries", "µs an entry", lines)

    def _walk_of_size(self, entries: int, names: Sequence[str]) -> dict[str, float]:
        bench = self._bench(replace(self._sizes, tree=entries, untarred=1))
        item = bench.store.tree()
        try:
            return {name: 1e6 / walk_tree(bench, name) for name in names}
        finally:
            _remove(item)

    def _lookup(self) -> list[Plot]:
        counts = self._scaled(100, 1000, 10_000, 100_000)
        first: dict[str, list[Point]] = {}

        def measure(count: int, names: Sequence[str]) -> dict[str, float]:
            later = {}
            for name, (one, others) in self._lookup_in(count, names).items():
                first.setdefault(name, []).append((count, one))
                later[name] = others
            return later

        lines = self._sweep(counts, "mystfuse fuse2fs kernel", measure)
        return [
            Plot("The first look-up in a directory", "names in it", "ms", first),
            Plot("Look-ups of other names after it, mean", "names in it", "ms", lines),
        ]

    def _lookup_in(self, count: int, names: Sequence[str]) -> dict[str, tuple[float, float]]:
        """The milliseconds of the first lookup, and the mean of those after it."""
        bench = self._bench(self._sizes)
        item = bench.store.flat(count)
        found: dict[str, tuple[float, float]] = {}
        try:
            for name in names:
                with bench.cold(name, item.image()) as (peer, mounted):
                    one, others = (
                        self._time_of_looking_up(bench, peer, mounted, item, part) for part in ("first", "later")
                    )
                found[name] = one, others
        finally:
            _remove(item)
        return found

    @staticmethod
    def _time_of_looking_up(bench: Bench, peer: Peer, mounted: Mounted, item: Item, part: str) -> float:
        expected: Result = {"bytes": item.facts[f"{part}_bytes"]}
        result = bench.read(peer, "stats", mounted.path, item.directory / f"{part}.list", expected=expected)
        return float(result["seconds"]) / float(result["files"]) * 1000

    def _memory_by_reading(self) -> Plot:
        bench = self._bench(self._sizes)
        item = bench.store.big()
        expected: Result = {"bytes": self._sizes.big, "crc": item.facts["crc"]}
        points: list[Point] = []
        with bench.cold("mystfuse", item.image()) as (peer, mounted):
            points.append((0, mounted.memory("VmRSS")))
            for index in range(4):
                drop_caches()
                bench.read(peer, "sequential", mounted.path / "big", "cold", expected=expected)
                points.append(((index + 1) * self._sizes.big / MIB, mounted.memory("VmRSS")))
        return Plot("Resident memory over what was read", "MiB read", "MiB", {"mystfuse": points})

    def _memory_by_size(self) -> Plot:
        sizes = self._scaled(GIB, 4 * GIB, 16 * GIB, 64 * GIB, least=8 * MIB)
        lines = self._sweep(sizes, "mystfuse", self._memory_of_size)
        return Plot("Resident memory over the image's size", "image, GiB", "MiB", _in_units(lines, GIB))

    def _memory_of_size(self, size: int, names: Sequence[str]) -> dict[str, float]:
        bench = self._bench(replace(self._sizes, large_image=size))
        item = bench.store.sparse()
        try:
            with bench.mystfuse.mount(item.image("large")) as mounted:
                (mounted.path / "file").read_bytes()
                return {"mystfuse": mounted.memory("VmRSS")}
        finally:
            if size != self._sizes.large_image:
                _remove(item)

    def _bench(self, sizes: Sizes) -> Bench:
        return Bench(Store(self._work, sizes, self._say), self._scratch)

    def _scaled(self, *values: int, least: int = 64) -> list[int]:
        return sorted({max(value // self._divisor, least) for value in values})

    def _sweep(
        self, values: Iterable[int], contenders: str, measure: Callable[[int, Sequence[str]], dict[str, float]]
    ) -> dict[str, list[Point]]:
        """Measure every available contender at each value."""
        bench = self._bench(self._sizes)
        names = [name for name in contenders.split() if not bench.missing(name)]
        lines: dict[str, list[Point]] = {name: [] for name in names}
        for value in values:
            for name, figure in measure(value, names).items():
                lines[name].append((value, figure))
        if not any(lines.values()):
            raise BenchmarkError("no contender to measure")
        return lines


def _in_units(lines: dict[str, list[Point]], unit: int) -> dict[str, list[Point]]:
    return {name: [(x / unit, y) for x, y in points] for name, points in lines.items()}


def _remove(item: Item) -> None:
    remove_tree(item.directory, ignore_errors=True)
