"""Memory for keys: locked, left out of core dumps, overwritten when done; and hardening the process that holds them."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import resource
from io import FileIO

from mystfuse.system import libc

log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4
"""<linux/prctl.h>"""
_MCL_CURRENT, _MCL_ONFAULT = 1, 4
"""<sys/mman.h>"""


class Secret:
    """Bytes that must not get out. ``bytes(secret)`` would copy them: use ``view``.

    The memory is shared with children of fork(2), so that there is one copy, and ``wipe`` ends it for all of them.

    Args:
        size: bytes; zeros at first.
    """

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, max(size, 1))
        self._memory.madvise(mmap.MADV_DONTDUMP)
        self._view = memoryview(self._memory)[:size]
        self.lock()

    @classmethod
    def copy_of(cls, data: bytes | bytearray | memoryview) -> Secret:
        """A secret with these bytes; ``data`` itself is for the caller to overwrite."""
        secret = cls(len(data))
        secret.view[:] = data
        return secret

    @classmethod
    def read(cls, file: FileIO, limit: int) -> Secret:
        """Read up to ``limit`` bytes of an unbuffered file, leaving no copy anywhere."""
        buffer = cls(limit)
        count = 0
        while count < limit and (step := file.readinto(buffer.view[count:])):
            count += step
        secret = cls.copy_of(buffer.view[:count])
        buffer.wipe()
        return secret

    @property
    def view(self) -> memoryview:
        """The bytes themselves, writable."""
        return self._view

    def lock(self) -> None:
        """Keep the memory out of swap, where the limit of locked memory allows; to be repeated after a fork."""
        start = ctypes.c_char.from_buffer(self._memory)
        try:
            libc.call("mlock", ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(self._memory)))
        except OSError as error:
            log.debug("a key cannot be locked in memory: %s", error.strerror)

    def wipe(self) -> None:
        """Overwrite the bytes with zeros."""
        self._memory[:] = bytes(len(self._memory))

    def __len__(self) -> int:
        return len(self._view)

    def __repr__(self) -> str:
        return f"<Secret of {len(self)} bytes>"


def harden_process() -> None:
    """No core dumps of this process, and only root may trace it or read its memory.

    Call this before reading a key; children inherit it until they execute a program.
    """
    # Not 0: of the limits, 1 alone keeps the kernel from piping a dump to a program (core(5), core_pattern), also for
    # mke2fs, which is dumpable again and sees plaintext. (A limit that is 0 for good cannot be raised to that.)
    limit = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    libc.call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def lock_memory() -> bool:
    """Keep the present memory out of swap: key schedules are somewhere in OpenSSL's heap.

    Returns:
        Whether the limit of locked memory allowed it.
    """
    try:
        libc.call("mlockall", _MCL_CURRENT | _MCL_ONFAULT)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOMEM):
            log.debug("mlockall: %s", error.strerror)
        return False
    return True
