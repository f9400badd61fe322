"""Running a program for what it prints: bounded in size and time, and ended with all it has started when we give up.

The program gets a process group of its own, so that one signal ends it and its children. Where we have the terminal,
its group gets it meanwhile, as a shell's job does: it may ask there for a PIN, and ^C reaches it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from mystfuse.system.interrupts import ended_like_interrupt, interrupts_wait
from mystfuse.system.wait_readable import wait_readable

_KILL_PATIENCE = 5.0
"""Seconds from SIGKILL to the end."""


class Output(NamedTuple):
    """What a program did."""

    status: int
    """Its exit status, or minus the number of the signal that ended it."""
    size: int
    """Bytes of output. If they fill the buffer there may have been more, and the program was killed."""


def read_output(
    command: Sequence[str],
    buffer: memoryview,
    timeout: float,
    *,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
    has_terminal: bool = True,
    stderr: int | None = None,
) -> Output:
    """Run a program until it has ended, and put its stdout into ``buffer``; no copy of it is left anywhere.

    What it leaves running in the background, with its stdout open, is not waited for.

    Args:
        command: the program, looked up in PATH, and its arguments.
        timeout: seconds.
        environment: ours, if None.
        descriptors: what it inherits beside the standard ones.
        has_terminal: whether it gets our standard input and the terminal; else /dev/null and a session without one.
        stderr: a descriptor for its stderr; ours, if None.

    Raises:
        OSError: the program is not there, or cannot be executed.
        TimeoutError: it had not ended by then, and was killed.
        KeyboardInterrupt: we were interrupted, or ^C at the terminal ended it.
    """
    ours, its = os.pipe()
    with ExitStack() as stack:
        # Its group does not get what is sent to ours.
        stack.enter_context(ended_like_interrupt())
        stack.callback(os.close, ours)
        with interrupts_wait():
            try:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=None if has_terminal else subprocess.DEVNULL,
                    stdout=its,
                    stderr=stderr,
                    pass_fds=descriptors,
                    process_group=0 if has_terminal else None,
                    start_new_session=not has_terminal,
                )
                stack.callback(_end, process)
            finally:
                os.close(its)
        if has_terminal:
            stack.enter_context(_terminal_for(process.pid))
        size = _read(ours, process, buffer, timeout)
        if size < len(buffer):
            process.wait()
    if process.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    return Output(process.returncode, size)


def _read(pipe: int, process: subprocess.Popen[bytes], buffer: memoryview, timeout: float) -> int:
    """Read until the process has ended, or the buffer is full; returns the number of bytes."""
    deadline = time.monotonic() + timeout
    os.set_blocking(pipe, False)
    pidfd = os.pidfd_open(process.pid)
    size = 0
    try:
        waiting = {pipe, pidfd}
        while size < len(buffer):
            ready = wait_readable(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            count = 0
            if pipe in waiting:
                with suppress(BlockingIOError):
                    count = os.readv(pipe, [buffer[size:]])
                    if not count:
                        # Its end. The process may go on.
                        waiting.discard(pipe)
            size += count
            if pidfd in ready and not count:
                break
    finally:
        os.close(pidfd)
    return size


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has not ended, and its group."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_PATIENCE)


@contextmanager
def _terminal_for(group: int) -> Iterator[None]:
    """Lend the terminal to a process group, if it is ours to lend; then take it back, with its settings."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        yield
        return
    # What stops a process in the background that changes, or reads, the terminal.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU, signal.SIGTTIN})
    try:
        is_ours = False
        settings = None
        with suppress(OSError, termios.error):
            is_ours = os.tcgetpgrp(terminal) == os.getpgrp()
            settings = termios.tcgetattr(terminal)
        if is_ours:
            with suppress(OSError):
                os.tcsetpgrp(terminal, group)
                # If it was faster, it has been stopped.
                os.killpg(group, signal.SIGCONT)
        try:
            yield
        finally:
            if is_ours:
                with suppress(OSError, termios.error):
                    os.tcsetpgrp(terminal, os.getpgrp())
                    # Others of our group, a pager behind us for example, may have been stopped meanwhile.
                    os.killpg(os.getpgrp(), signal.SIGCONT)
                    if settings is not None:
                        termios.tcsetattr(terminal, termios.TCSADRAIN, settings)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(terminal)
