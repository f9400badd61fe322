"""The fetcher, a process of its own: ``python -m mystfuse.remote.fetcher SOCKET CONFIG``.

SOCKET and CONFIG are numbers of descriptors that it inherits: the daemon's socket (``protocol``), and a pipe with the
``FetcherConfig``. What it imports before it forks the worker is little: the worker opens the image as early as it can,
while the daemon is still starting.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.memory_files import Memory
from mystfuse.remote.pins import Pins
from mystfuse.remote.protocol import Note
from mystfuse.remote.supervisor import Ending, supervise
from mystfuse.system.imports import importing

if TYPE_CHECKING:
    from mystfuse.remote.fetching import Fetches

    OpenTransfers = Callable[[FetcherConfig, Callable[[int, str], None]], AbstractAsyncContextManager[Fetches]]

_MAX_CONFIG = 16 << 20
"""Bytes of JSON."""
_READ = 1 << 16
_PATHS = (
    "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)  # fmt: skip
"""Variables that name files, perhaps relative to the directory in which the command was run."""


def main(arguments: list[str]) -> int:
    """Serve until the socket's other end is closed; returns the exit status."""
    daemon = socket.socket(fileno=int(arguments[0]))
    config = FetcherConfig.from_json(_read_all(int(arguments[1])))
    _leave_terminal()
    serve(daemon, config, partial(open_transfers, pins=Pins()))
    return 0


def serve(daemon: socket.socket, config: FetcherConfig, open_image: OpenTransfers) -> None:
    """Serve one image on a socket of kind SOCK_SEQPACKET until its other end is closed.

    Args:
        open_image: makes the image's ``Transfers`` in the worker.
    """
    daemon.setblocking(False)
    if config.cache is not None:
        from mystfuse.system.output_paths import make_directories

        # If it cannot be made, the worker says why.
        with suppress(OSError):
            make_directories(Path(config.cache))
    memory = Memory()
    supervise(daemon, lambda: _work(daemon, config, open_image, memory))


@asynccontextmanager
async def open_transfers(
    config: FetcherConfig, note: Callable[[int, str], None], pins: Pins | None = None
) -> AsyncIterator[Fetches]:
    """The transfers from all places that a configuration names.

    Args:
        pins: the versions that an earlier worker has opened, which are opened again.

    Raises:
        MystfuseError: an address is none.
        FetchError: an address or a file of the configuration is not what it should be.
        ImportError: the extra ``remote`` is not installed.
    """
    from mystfuse.remote.address import parse_address
    from mystfuse.remote.origins import make_origin
    from mystfuse.remote.transfers import Transfers

    pins = pins or Pins()
    known = pins.read()
    origins = [make_origin(parse_address(known.get(address, address)), config) for address in config.addresses]
    try:
        async with Transfers(origins, note) as transfers:
            yield transfers
    finally:
        pins.write(config.addresses, origins)


def _work(daemon: socket.socket, config: FetcherConfig, open_image: OpenTransfers, memory: Memory) -> Ending:
    with importing():
        # Before: it runs ldconfig when it is imported.
        import trio

        from mystfuse.remote.confine_fetcher import confine_fetcher

        confine_fetcher(config)
        from mystfuse.remote.worker import Worker
    try:
        worker = Worker(daemon, config, lambda note: open_image(config, note), memory)
        return trio.run(worker.run)
    except Exception as error:
        if os.environ.get("MYSTFUSE_DEBUG"):
            traceback.print_exc()
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        with suppress(OSError):
            text = f"internal error of the fetcher: {type(error).__name__}: {error} (MYSTFUSE_DEBUG=1 shows where)"
            daemon.send(Note(logging.ERROR, text).pack())
        return Ending.FAILED


def _read_all(descriptor: int) -> bytes:
    data = bytearray()
    while part := os.read(descriptor, _READ):
        data += part
        if len(data) > _MAX_CONFIG:
            raise ValueError("a configuration of too many bytes")
    os.close(descriptor)
    return bytes(data)


def _leave_terminal() -> None:
    """A session of its own: no signals of the terminal; and nothing that who waits for the command's output would wait
    for."""
    with suppress(OSError):
        os.setsid()
    for name in _PATHS:
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2) if not os.environ.get("MYSTFUSE_DEBUG") else (0, 1):
        os.dup2(null, standard)
    os.close(null)
    # It has credentials in memory.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
