"""``mystfuse cache``: what is in a cache of images elsewhere, clearing it, and filling it before it is needed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.options import DirectoryPath, GivenPath, ImagePath, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.cli.remote_options import CACHE_VARIABLE, remote_options_of, remote_options_of_fetching
from mystfuse.cli.text import say
from mystfuse.devices.open_remote import open_remote
from mystfuse.devices.remote_source import RemoteSource
from mystfuse.errors import MystfuseError, UsageError, one_line
from mystfuse.mounting.daemon_logs import log_to_stderr
from mystfuse.remote.address import parse_address
from mystfuse.remote.cache_directory import CachedImage, CacheDirectory, CacheUnusable
from mystfuse.system.units import describe_bytes

_LOOK = 0.1
"""Seconds between looks at how far prefetching is."""
_KEY_SHOWN = 12
"""Digits of an entry's name that tell it from others."""
_COLUMNS = ("ENTRY", "USED", "OF", "LAST USED", "IMAGE")

_cache_option = click.option(
    "--cache",
    type=DirectoryPath(),
    metavar="DIR",
    envvar=CACHE_VARIABLE,
    required=True,
    help=f"The cache's directory (default: {CACHE_VARIABLE}).",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")


@click.group("cache", short_help="Look at, clear and fill a cache of images elsewhere.")
def command() -> None:
    """Look at, clear and fill a cache of images elsewhere. What is in it is verified again each time it is read."""


@command.command("status", short_help="Show what is in a cache.")
@_cache_option
@_json_option
def status(cache: str, as_json: bool) -> None:
    """Show which images are in the cache, how much of them, and when they were last in use.

    The names are what was noted beside them: nothing in a cache is verified.
    """
    images = _images(cache)
    used = sum(image.used for image in images)
    if as_json:
        listed = [
            {
                "key": image.key,
                "name": image.name or None,
                "size": image.size,
                "used": image.used,
                "last_use": int(image.last_use),
            }
            for image in images
        ]
        click.echo(json.dumps({"cache": os.path.abspath(cache), "used": used, "images": listed}, indent=2))
        return
    rows = [_COLUMNS, *map(_row, images)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows if images else ():
        say("  ".join(map(str.ljust, row, widths)).rstrip())
    say(f"{len(images)} image{'' if len(images) == 1 else 's'}, {describe_bytes(used)}")


@command.command("clear", short_help="Empty a cache.")
@_cache_option
@_json_option
@click.argument("images", metavar="[ENTRY|ADDRESS]...", nargs=-1, type=ImagePath())
def clear(cache: str, as_json: bool, images: tuple[str, ...]) -> None:
    """Empty the cache, or remove from it what ENTRY (its first digits, as status shows it) or ADDRESS names.

    A mount that uses an image goes on, and fetches what it needs once more.
    """
    from mystfuse.remote.eviction import clear as clear_image

    directory = _open(cache)
    try:
        there = directory.images()
        chosen = [image for image in there if not images or any(_is_meant(image, word) for word in images)]
        for word in images:
            if not any(_is_meant(image, word) for image in there):
                raise MystfuseError(f"{cache}: has no image {_name(word)} (mystfuse cache status shows what it has)")
        freed, in_use = 0, 0
        for image in chosen:
            try:
                in_use += not clear_image(directory, image)
            except FileNotFoundError:
                # Somebody else has removed it.
                continue
            except OSError as error:
                raise MystfuseError(f"{cache}: {image.key[:_KEY_SHOWN]}: {error.strerror}") from error
            freed += image.used
    finally:
        directory.close()
    if as_json:
        click.echo(json.dumps({"cache": os.path.abspath(cache), "images": len(chosen), "freed": freed}, indent=2))
        return
    said = f"; {in_use} of them in use, and emptied" if in_use else ""
    say(f"{len(chosen)} image{'' if len(chosen) == 1 else 's'} cleared, {describe_bytes(freed)}{said}")


@command.command("prefetch", short_help="Fetch an image into a cache.")
@remote_options_of_fetching
@click.option(
    "--trace", type=GivenPath(), metavar="FILE", help="Only what this trace names (mystfuse trace), in its order."
)
@_json_option
@io_timeout_option
@click.argument("address", type=ImagePath())
def prefetch(address: str, trace: str | None, as_json: bool, io_timeout: float, **given: Any) -> None:
    """Fetch the image at ADDRESS into the cache, or what a trace names, so that mounts find it there.

    What is there already is not fetched again. Nothing is verified: whoever reads it does that.
    """
    parse_address(address)
    options = remote_options_of({**given, "prefetch": trace or "all"})
    if options.cache is None:
        raise UsageError(f"--cache DIR (or {CACHE_VARIABLE}) is needed: where should it go?")
    end_like_interrupt()
    log_to_stderr()
    if trace is not None:
        _check_trace(trace)
    source = open_remote(address, io_timeout, options)
    try:
        result = _wait(source, io_timeout)
        if trace is not None:
            _check_trace(trace, source)
    finally:
        source.close()
    name = parse_address(address).name
    if not result.is_kept:
        raise MystfuseError(f"{name}: nothing is kept: the cache {options.cache} cannot be used")
    if as_json:
        document = {
            "image": name, "cache": os.path.abspath(options.cache), "size": source.size, "wanted": result.wanted,
            "fetched": result.fetched, "missing": result.missing,
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
    if result.missing:
        raise MystfuseError(
            f"{name}: {describe_bytes(result.missing)} of {describe_bytes(result.wanted)} are not in the cache: they "
            "cannot be fetched, or it has no room for them (--cache-size)"
        )
    if not as_json:
        say(f"{name}: {describe_bytes(result.wanted)} in {options.cache}, {describe_bytes(result.fetched)} fetched now")


@dataclass(frozen=True, slots=True)
class _Result:
    """What prefetching has come to, in bytes."""

    wanted: int
    fetched: int
    missing: int
    is_kept: bool
    """Whether it is in the directory."""


def _wait(source: RemoteSource, io_timeout: float) -> _Result:
    """Wait until all is prefetched. It ends: each fetch has a time-out, and they are not repeated forever."""
    source.open()
    counters = source.counters()
    with progress("prefetching", counters.get("prefetch_total")) as advance:
        done = _advance(advance, 0, counters)
        while not counters.get("prefetch_is_over"):
            if "prefetch_total" not in counters:
                raise MystfuseError(f"{source.name}: the fetcher does not prefetch")
            time.sleep(_LOOK)
            counters = source.counters()
            done = _advance(advance, done, counters)
    return _Result(
        counters["prefetch_total"],
        counters.get("bytes_stored", 0),
        counters.get("prefetch_missing", 0),
        bool(counters.get("in_directory")),
    )


def _advance(advance: Callable[[int], None], before: int, counters: dict[str, int]) -> int:
    done = max(before, counters.get("prefetch_done", 0))
    advance(done - before)
    return done


def _check_trace(path: str, source: RemoteSource | None = None) -> None:
    """Raises FormatError for no trace, and UsageError for that of another image."""
    from mystfuse.remote.trace import read_trace

    trace = read_trace(path)
    if source is not None and trace.size != source.size:
        raise UsageError(f"{path}: the trace of an image of {trace.size} bytes; {source.name} has {source.size}")


def _open(cache: str) -> CacheDirectory:
    try:
        return CacheDirectory(cache, create=False)
    except CacheUnusable as error:
        raise MystfuseError(str(error)) from error


def _images(cache: str) -> list[CachedImage]:
    """What is in a cache, the most recently used first."""
    directory = _open(cache)
    try:
        return sorted(directory.images(), key=lambda image: (-image.last_use, image.key))
    except OSError as error:
        raise MystfuseError(f"{cache}: {error.strerror}") from error
    finally:
        directory.close()


def _is_meant(image: CachedImage, word: str) -> bool:
    return image.key.startswith(word) or (image.name != "" and image.name == _name(word))


def _name(word: str) -> str:
    try:
        return parse_address(word).name
    except UsageError:
        return word


def _row(image: CachedImage) -> tuple[str, ...]:
    try:
        last_use = f"{datetime.fromtimestamp(image.last_use):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        last_use = "?"
    size = describe_bytes(image.size)
    return image.key[:_KEY_SHOWN], describe_bytes(image.used), size, last_use, one_line(image.name) or "?"
