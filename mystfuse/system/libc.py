"""Functions of the C library and system calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

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


def system_call(number: int, *arguments: object) -> int:
    """Make the system call ``number``, as ``call`` does."""
    return call("syscall", number, *arguments)
