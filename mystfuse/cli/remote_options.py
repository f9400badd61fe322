"""Options for images elsewhere: cache, mirrors, certificates, and what to fetch unasked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mystfuse.cli.options import DirectoryPath, FileOrText, GivenPath, option_group, parse_size
from mystfuse.devices.open_source import is_address, open_source
from mystfuse.devices.remote_options import LOCAL, RemoteOptions

if TYPE_CHECKING:
    from mystfuse.devices.remote_source import RemoteSource
    from mystfuse.devices.source import FileSource

CACHE_VARIABLE = "MYSTFUSE_CACHE"
"""The directory of ``--cache``, where that is not given."""

_CACHE = (
    click.option(
        "--cache",
        type=DirectoryPath(),
        metavar="DIR",
        help=f"Of an image elsewhere: keep there what is fetched (default: {CACHE_VARIABLE}, else in memory).",
    ),
    click.option(
        "--cache-size", type=parse_size, metavar="SIZE", help="What the cache may hold (default: 10G; in memory: 64M)."
    ),
    click.option(
        "--mirror", "mirrors", multiple=True, metavar="URL", help="Another address of the same image (repeatable)."
    ),
)
_PREFETCH = click.option(
    "--prefetch",
    type=FileOrText(),
    metavar="all|FILE",
    help="Fetch unasked: all of it, or what a trace names (mystfuse trace).",
)
_CERTIFICATES = (
    click.option(
        "--ca-certificates",
        type=GivenPath(),
        metavar="PEM",
        help="Whom to trust about servers, instead of the system's authorities.",
    ),
    click.option(
        "--client-certificate", type=GivenPath(), metavar="PEM", help="Our certificate and key, for servers that ask."
    ),
)
remote_options = option_group(*_CACHE, _PREFETCH, *_CERTIFICATES)
remote_options_of_fetching = option_group(*_CACHE, *_CERTIFICATES)
"""For a command that itself says what is fetched."""
OF_ALL_IMAGES = ("cache", "cache_size", "ca_certificates", "client_certificate")
"""The parameters that several images can have in common."""
REMOTE_PARAMETERS = (*OF_ALL_IMAGES, "prefetch")
"""All but ``mirrors``."""


def remote_options_of(given: Mapping[str, Any]) -> RemoteOptions:
    """How the options say that images elsewhere are read.

    Args:
        given: ``remote_options`` by the names of their parameters; those that are missing have their defaults.
    """
    chosen = {name: given[name] for name in (*REMOTE_PARAMETERS, "mirrors") if given.get(name)}
    if "cache" not in chosen and os.environ.get(CACHE_VARIABLE):
        chosen["cache"] = os.environ[CACHE_VARIABLE]
    # A bare file system has no hash tree.
    if given.get("insecure"):
        chosen["trusts_cache"] = False
    return RemoteOptions(**chosen) if chosen else LOCAL


def open_given(image: str, io_timeout: float, options: RemoteOptions) -> FileSource | RemoteSource:
    """As ``devices.open_source``; what a fetcher has to say while it opens the image goes to stderr."""
    if is_address(image):
        # Only here: a local image has nothing to say.
        from mystfuse.mounting.daemon_logs import log_to_stderr

        log_to_stderr()
    return open_source(image, io_timeout, options)
