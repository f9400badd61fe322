"""Forking a daemon into the background.

The parent waits until the child reports that the mount answers, or why there is none, and exits with that status.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn

from mystfuse.errors import ExitStatus, explain
from mystfuse.system import libc
from mystfuse.system.interrupts import ended_like_interrupt
from mystfuse.system.wait_readable import wait_readable

"""<linux/prctl.h>"""
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PATIENCE = 60.0
"""Seconds for a daemon to end: the time that its keeper may take to unmount."""
_KILL_PATIENCE = 5.0
"""Seconds from SIGKILL to the end."""

Report = Callable[[ExitStatus, str], None]
"""Called once by the child: the exit status, and one line for the user (may be empty)."""


class Started(NamedTuple):
    """The outcome of starting a daemon."""

    status: ExitStatus
    message: str
    pid: int
    """The process has ended, unless ``status`` is DONE."""


def run_in_background(serve: Callable[[Report], int], keep: frozenset[int], dies_with_parent: bool = False) -> Started:
    """Fork; the child runs ``serve(report)`` and exits with its result, the parent returns the report.

    Args:
        keep: descriptors above 2 that the child needs; all others that were inherited are closed.
        dies_with_parent: the child gets SIGTERM when the parent has ended in any way.
    """
    receiver, sender = os.pipe()
    parent = os.getpid()
    # Until each has its own handlers: otherwise the child would go on as the parent, and the parent would leave a
    # child.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        child = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    if child == 0:
        if dies_with_parent and not libc.end_with_parent(signal.SIGTERM, parent):
            os._exit(ExitStatus.FAILED)
        _run_child(serve, sender, keep, blocked)
    os.close(sender)

    with ended_like_interrupt():
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            said = _read_report(receiver, child)
        except KeyboardInterrupt:
            end_child(child, _PATIENCE, signal.SIGTERM)
            raise
        finally:
            os.close(receiver)
    if said:
        status, message = json.loads(said)
        if status != ExitStatus.DONE:
            end_child(child, _PATIENCE)
        return Started(ExitStatus(status), message, child)
    code = end_child(child, _PATIENCE)
    what = f"exit status {code}" if code is None or code >= 0 else signal.Signals(-code).name
    return Started(ExitStatus.FAILED, f"the daemon ended before it was ready ({what})", child)


def _read_report(receiver: int, child: int) -> bytes:
    """Read a child's report until it closes the pipe or ends: a process that it has started, and that hangs, may hold
    the pipe open."""
    said = b""
    pidfd = os.pidfd_open(child)
    try:
        while receiver in wait_readable((receiver, pidfd)):
            part = os.read(receiver, 4096)
            if not part:
                break
            said += part
        return said
    finally:
        os.close(pidfd)


def end_child(pid: int, patience: float, number: signal.Signals | None = None) -> int | None:
    """Wait until a child has ended, and kill it when it does not.

    Args:
        patience: seconds that it may take.
        number: the signal that tells it to end; None: it is ending already.

    Returns:
        Its exit status, or minus the signal that ended it; None if it has been reaped, or we failed to end it.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if number is not None:
            signal.pidfd_send_signal(pidfd, number)
        if not wait_readable([pidfd], patience):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if not wait_readable([pidfd], _KILL_PATIENCE):
                return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except (ChildProcessError, ProcessLookupError):
        return None
    except PermissionError:
        # We are confined. A child that hangs ends when it goes on, and finds its socket closed.
        return None
    finally:
        os.close(pidfd)


def _run_child(
    serve: Callable[[Report], int], sender: int, keep: frozenset[int], blocked: set[int | signal.Signals]
) -> NoReturn:
    status = int(ExitStatus.FAILED)
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        # Opened now: when it is needed, the daemon is confined.
        null = os.open(os.devnull, os.O_RDWR)
        close_descriptors(keep | {sender, null})

        def report(how: ExitStatus, message: str) -> None:
            if how is ExitStatus.DONE:
                _detach(null)
            with suppress(BrokenPipeError):
                os.write(sender, json.dumps([how, message]).encode())
            os.close(sender)

        status = serve(report)
    except Exception as error:
        # The parent prints it, if it still reads.
        with suppress(OSError):
            said = explain(error) or f"internal error: {type(error).__name__}: {error}"
            os.write(sender, json.dumps([ExitStatus.FAILED, said]).encode())
    finally:
        # Not sys.exit: functions registered with atexit and buffered output belong to the parent.
        os._exit(status)


def close_descriptors(keep: frozenset[int]) -> None:
    """Close all descriptors above 2 but ``keep``: a daemon must not hold its caller's files open."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in keep:
            with suppress(OSError):
                os.close(descriptor)


def _detach(null: int) -> None:
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
