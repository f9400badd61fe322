"""Starting the fetcher: a process of its own, which works on the network at once, while we go on."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress

from mystfuse.errors import MystfuseError
from mystfuse.remote.address import Address
from mystfuse.remote.client import FetcherClient
from mystfuse.remote.fetcher_config import FetcherConfig

SOCKET, CONFIG = 3, 4
"""The fetcher's descriptors; its arguments name them."""
_FREE = 16
"""Ours are above, so that none of them lies where the fetcher's are to be."""
_MAX_CONFIG = 1 << 20
"""Bytes: what a pipe takes at once, as an ordinary user may make it."""
_NEEDED = {"s3": ("httpx2", "botocore"), "http": ("httpx2",), "https": ("httpx2", "truststore"), "oci": ("httpx2",)}
_NOT_FOR_FETCHER = ("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET")
"""Variables: where systemd has put the keys of images, and what is for the service alone."""

_started: list[int] = []
"""Processes that have not been seen to end."""


def start_fetcher(address: Address, config: FetcherConfig) -> FetcherClient:
    """Start a fetcher.

    Returns:
        The connection; closing it ends the fetcher, as the end of this process and its children does.

    Raises:
        MystfuseError: packages are missing, or no process can be started.
    """
    for module in _NEEDED[address.scheme]:
        if importlib.util.find_spec(module) is None:
            raise MystfuseError(f"{address.name}: reading images from there needs pip install 'mystfuse[remote]'")
    _reap()
    with ExitStack() as stack:
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(other.close)
        try:
            config_file = _pipe_with(config.to_json(), address)
            stack.callback(os.close, config_file)
            theirs = _moved(other.fileno(), stack), _moved(config_file, stack)
            _started.append(_spawn(*theirs))
        except OSError as error:
            ours.close()
            raise MystfuseError(f"{address.name}: the fetcher cannot be started: {error.strerror}") from error
        except BaseException:
            ours.close()
            raise
    return FetcherClient(ours, address.name)


def _pipe_with(data: bytes, address: Address) -> int:
    """A descriptor to read the data from."""
    receiver, sender = os.pipe()
    try:
        with open(sender, "wb", buffering=0) as file:
            if len(data) > fcntl.fcntl(sender, fcntl.F_GETPIPE_SZ):
                if len(data) > _MAX_CONFIG:
                    raise MystfuseError(f"{address.name}: too long a list of what to prefetch")
                fcntl.fcntl(sender, fcntl.F_SETPIPE_SZ, _MAX_CONFIG)
            file.write(data)
    except BaseException:
        os.close(receiver)
        raise
    return receiver


def _moved(descriptor: int, stack: ExitStack) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE)
    stack.callback(os.close, moved)
    return moved


def _spawn(connection: int, config: int) -> int:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        if not os.environ.get("MYSTFUSE_DEBUG"):
            # A daemon in the background must not keep the terminal, or a pipe, of who has started it.
            actions.append((os.POSIX_SPAWN_DUP2, null, 2))
        # What we have inherited ourselves: keys may be there.
        actions += [(os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()]
        actions += [(os.POSIX_SPAWN_DUP2, connection, SOCKET), (os.POSIX_SPAWN_DUP2, config, CONFIG)]
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_FETCHER}
        return os.posix_spawn(
            sys.executable,
            [sys.executable, *_flags(), "-m", "mystfuse.remote.fetcher", str(SOCKET), str(CONFIG)],
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD],
        )
    finally:
        os.close(null)


def _flags() -> list[str]:
    """What decides where modules come from, as for us; never the current directory."""
    if sys.flags.isolated:
        return ["-I"]
    return [*(["-E"] if sys.flags.ignore_environment else []), *(["-s"] if sys.flags.no_user_site else []), "-P"]


def _inheritable() -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        # The directory's own has been closed by now.
        with suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _reap() -> None:
    """Take note of fetchers that have ended; others are left to the end of this process."""
    for pid in _started[:]:
        with suppress(ChildProcessError):
            if not os.waitpid(pid, os.WNOHANG)[0]:
                continue
        _started.remove(pid)
