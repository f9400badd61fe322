"""openat2(2), for which older C libraries have no function: opening a path under rules for how it is resolved."""

from __future__ import annotations

import ctypes
import errno
import os

from mystfuse.system import libc

# <linux/openat2.h>
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

_SYS_OPENAT2 = 437
_AT_FDCWD = -100


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(path: str, flags: int, resolve: int, directory: int = _AT_FDCWD) -> int:
    """Open ``path``, seen from ``directory``, under the rules ``resolve``; OSError as open(2), ELOOP for a link that
    they forbid. The descriptor is not inherited by programs."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    while True:
        try:
            return libc.system_call(_SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        except OSError as error:
            # EAGAIN: a rename or a mount at this moment, anywhere, and ``..`` could not be resolved safely.
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise OSError(error.errno, error.strerror, path) from None
