"""``mystfuse speed``: what hashing and decrypting cost on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import ModuleType

import click

from mystfuse import __version__, kernels

_DATA_SIZE = 1 << 20
"""Bytes a call: what the way of a read hands over at once."""
_SECONDS = 0.25
"""How long each is measured."""

Action = Callable[[], object]
"""Deals with _DATA_SIZE bytes."""
Prepare = Callable[[], Action]
"""Makes the action of one thread, with its own memory for results."""


@click.command("speed", short_help="Measure hashing and decryption on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def command(as_json: bool) -> None:
    """Measure how fast this machine verifies and decrypts: with the native kernels on one processor and on all, with
    what stands in for them in Python, and with the standard library, a call a block. Takes a few seconds."""
    figures = {what: {how: _measure(*run) for how, run in runs.items()} for what, runs in _runs().items()}
    if as_json:
        document = {
            "version": __version__,
            "kernel": kernels.name(),
            "processors": _processors(),
            "megabytes_per_second": figures,
        }
        click.echo(json.dumps(document, indent=2))
        return
    title = f"kernel: {kernels.name()}; MB/s, {_processors()} processors"
    columns = list(dict.fromkeys(how for row in figures.values() for how in row))
    rows = [[what, *(f"{row[how]:,.0f}" if how in row else "-" for how in columns)] for what, row in figures.items()]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table("", title=title)
        for name in columns:
            table.add_column(name, justify="right")
        for cells in rows:
            table.add_row(*cells)
        Console().print(table)
        return
    click.echo(title)
    widths = [max(map(len, cells)) for cells in zip(["", *columns], *rows, strict=True)]
    for cells in (["", *columns], *rows):
        first, *others = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join([first, *(cell.strip().rjust(len(cell)) for cell in others)]).rstrip())


def _runs() -> dict[str, dict[str, tuple[Prepare, int]]]:
    """What is measured, by job and by who does it, and in how many threads."""
    data, salt = os.urandom(_DATA_SIZE), os.urandom(32)
    twins = {"pure Python": "mystfuse.kernels.pure"}
    try:
        import_module("mystfuse.kernels.native")
        twins = {"native": "mystfuse.kernels.native", **twins}
    except ImportError:
        pass
    runs: dict[str, dict[str, tuple[Prepare, int]]] = {}
    verify = runs["SHA-256, blocks of 4096"] = {}
    for name, package in twins.items():
        action = _verify(import_module(f"{package}.hashing"), salt, data)
        if name == "native":
            verify["native, all processors"] = action, _processors()
        verify[name] = action, 1
    verify["standard library"] = (lambda: lambda: _hash_with_hashlib(data)), 1
    for sector_size in 512, 4096:
        decrypt = runs[f"AES-256-XTS, sectors of {sector_size}"] = {}
        for name, package in twins.items():
            action = _decrypt(import_module(f"{package}.sectors"), sector_size, data)
            if name == "native":
                decrypt["native, all processors"] = action, _processors()
            decrypt[name] = action, 1
    return runs


def _verify(hashing: ModuleType, salt: bytes, data: bytes) -> Prepare:
    hasher = hashing.BlockHasher("sha256", salt)
    expected = hasher.digests(data, 4096)
    return lambda: lambda: hasher.mismatches(data, 4096, expected)


def _decrypt(sectors: ModuleType, sector_size: int, data: bytes) -> Prepare:
    cipher = sectors.XtsCipher(memoryview(os.urandom(64)), sector_size)

    def prepare() -> Action:
        out = bytearray(len(data))
        return lambda: cipher.decrypt_into(data, 0, out)

    return prepare


def _hash_with_hashlib(data: bytes) -> None:
    view = memoryview(data)
    for start in range(0, len(data), 4096):
        hashlib.sha256(view[start : start + 4096]).digest()


def _measure(prepare: Prepare, threads: int) -> float:
    """Megabytes a second."""

    def repeat() -> int:
        action = prepare()
        count = 0
        while time.perf_counter() < end:
            action()
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        end = start + _SECONDS
        counts = [future.result() for future in [pool.submit(repeat) for _ in range(threads)]]
        return round(sum(counts) * _DATA_SIZE / (time.perf_counter() - start) / 1e6, 1)


def _processors() -> int:
    return len(os.sched_getaffinity(0))
