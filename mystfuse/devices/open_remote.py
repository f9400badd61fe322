"""Opening an image elsewhere: a fetcher is started, and begins to fetch."""

from __future__ import annotations

import logging
import math
import os

from mystfuse.devices.remote_options import RemoteOptions
from mystfuse.devices.remote_source import RemoteSource
from mystfuse.errors import UsageError
from mystfuse.remote.address import Address, parse_address
from mystfuse.remote.client import MARGIN
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.start_fetcher import start_fetcher

log = logging.getLogger(__name__)


def open_remote(text: str, io_timeout: float, options: RemoteOptions) -> RemoteSource:
    """Start the fetcher of the image at an address; it opens it in the background.

    Raises:
        UsageError: not an address, or an option is wrong.
        MystfuseError: the fetcher cannot be started.
    """
    address, *_ = [_address(each) for each in (text, *options.mirrors)]
    config = FetcherConfig(
        addresses=(text, *options.mirrors),
        cache=_absolute(options.cache) if options.trusts_cache else None,
        # Before we give up, the fetcher can say why it has.
        io_timeout=None if io_timeout == math.inf else io_timeout - min(MARGIN, io_timeout / 10),
        ca_certificates=_file(options.ca_certificates, "--ca-certificates"),
        client_certificate=_file(options.client_certificate, "--client-certificate"),
        prefetch=_prefetch(options.prefetch),
        **({} if options.cache_size is None else {"cache_size": options.cache_size}),
    )
    client = start_fetcher(address, config)
    return RemoteSource(client, io_timeout, config.cache is not None, has_mirrors=bool(options.mirrors))


def _address(text: str) -> Address:
    """An address that its origin will understand: before a process is started for it. Raises UsageError."""
    address = parse_address(text)
    # Only here: each is needed for its own addresses alone.
    if address.scheme == "s3":
        from mystfuse.remote.s3_address import parse_s3_address

        parse_s3_address(address)
    elif address.scheme == "oci":
        from mystfuse.remote.oci_address import parse_oci_address

        parse_oci_address(address)
    return address


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def _file(path: str | None, option: str) -> str | None:
    """The absolute path of a file that can be read; raises UsageError."""
    if path is None:
        return None
    try:
        with open(path, "rb"):
            return os.path.abspath(path)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def _prefetch(wanted: str | None) -> tuple[tuple[int, int], ...]:
    if wanted is None:
        return ()
    if wanted == "all":
        return ((0, -1),)
    # Only here: it is hardly ever needed.
    from mystfuse.remote.trace import read_trace

    return read_trace(wanted).ranges
