"""The process that starts the worker of a fetcher, and another one when that ends.

It keeps the socket, so that the daemon notices nothing but the time, and has nothing to do with the network: what an
origin can bring down is the worker. Both end when the socket's other end is closed; the worker also when the supervisor
ends, by a signal of the kernel.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn

from mystfuse.remote.protocol import Note
from mystfuse.system.libc import end_with_parent

_PAUSES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds before the next worker is started, by the number of those that have ended soon."""
_SOON = 30.0
"""Seconds: a worker that lived longer is forgiven."""
_GRACE = 1.0
"""Seconds that a worker has to end in order."""


class Ending(IntEnum):
    """The exit statuses of a worker."""

    CLOSED = 0
    """The socket's other end is closed."""
    FAILED = 1
    """By a mistake of ours: another worker may do better."""
    RENEWED = 2
    """It needs a file that it may not open, and another worker may."""
    GIVEN_UP = 3
    """The image cannot be served, as the daemon has been told."""


def supervise(daemon: socket.socket, work: Callable[[], Ending]) -> None:
    """Run ``work`` in a process, again and again, until the other end of the socket is closed or a worker gives up.

    Called with one thread. ``work`` returns in a child process, which then ends.

    Args:
        daemon: kept open; nothing is read from it here.
    """
    endings, supervisor = 0, os.getpid()
    while True:
        started = time.monotonic()
        try:
            worker = os.fork()
        except OSError as error:
            # No memory, or too many processes: that passes.
            what = f"cannot be started: {error.strerror}"
        else:
            if not worker:
                _become_worker(work, supervisor)
            status = _wait(worker, daemon)
            if status is None or os.waitstatus_to_exitcode(status) in (Ending.CLOSED, Ending.GIVEN_UP):
                return
            if os.waitstatus_to_exitcode(status) == Ending.RENEWED:
                continue
            what = _describe(status)
        if time.monotonic() - started > _SOON:
            endings = 0
        pause = _PAUSES[min(endings, len(_PAUSES) - 1)]
        endings += 1
        with suppress(OSError):
            daemon.send(Note(logging.WARNING, f"the fetcher {what}; it is started again").pack())
        if _is_closed(daemon, pause):
            return


def _become_worker(work: Callable[[], Ending], supervisor: int) -> NoReturn:
    status = Ending.FAILED
    try:
        if end_with_parent(signal.SIGKILL, supervisor):
            status = work()
    finally:
        os._exit(status)


def _wait(worker: int, daemon: socket.socket) -> int | None:
    """Wait for the worker's end; returns its status, or None: the socket is closed, and the worker has been ended."""
    pidfd = os.pidfd_open(worker)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        # Asked for nothing, the socket tells its end alone.
        poll.register(daemon, 0)
        ready = [descriptor for descriptor, _ in poll.poll()]
        if pidfd not in ready:
            poll.unregister(daemon)
            if not poll.poll(_GRACE * 1000):
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            return None
        return os.waitpid(worker, 0)[1]
    finally:
        os.close(pidfd)


def _is_closed(daemon: socket.socket, patience: float) -> bool:
    """Whether the other end is closed, or is being closed within that time, in seconds."""
    poll = select.poll()
    poll.register(daemon, 0)
    return bool(poll.poll(patience * 1000))


def _describe(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was ended by signal {os.WTERMSIG(status)} ({signal.Signals(os.WTERMSIG(status)).name})"
    return f"has ended with status {os.WEXITSTATUS(status)}"
