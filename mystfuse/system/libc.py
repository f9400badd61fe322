"""Functions of the C library and system calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function of the C library that returns -1 and sets errno when it fails; returns its result.

    Raises:
        OSError: it has failed.
    """
    result: int = getattr(_libc, function)(*arguments)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def end_with_parent(number: int, parent: int) -> bool:
    """Have the kernel send this process a signal when the thread that has started it ends.

    Args:
        number: the signal.
        parent: the process ID of who has started it.

    Returns:
        False where no signal will come: ``parent`` has ended before, or the kernel refuses.
    """
    try:
        call("prctl", _PR_SET_PDEATHSIG, number, 0, 0, 0)
    except OSError:
        return False
    return os.getppid() == parent


def system_call(number: int, *arguments: object) -> int:
    """Make the system call ``number``, as ``call`` does."""
    return call("syscall", number, *arguments)
