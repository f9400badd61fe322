"""mount(8) --namespace: mounting in another mount namespace, with image, keys and code from our own."""

from __future__ import annotations

import os

from mystfuse.errors import MountError
from mystfuse.system import libc

_CLONE_NEWNS = 0x00020000
"""<linux/sched.h>"""


class MountNamespace:
    """Another mount namespace. ``with`` it, paths are resolved there; ``enter`` stays there.

    The process must have one thread.

    Args:
        name: the path of a namespace, or the number of a process in it.

    Raises:
        MountError: there is no such namespace.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            # O_NONBLOCK: a FIFO under that name would hang the open.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self.descriptor = os.open(f"/proc/{name}/ns/mnt" if name.isdecimal() else name, flags)
        except OSError as error:
            raise MountError(f"mount namespace {name}: {error.strerror}") from error
        self._ours = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        self._directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)

    def enter(self) -> None:
        """Enter the namespace to stay. Raises MountError if the system does not allow it."""
        self._set(self.descriptor)

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *error: object) -> None:
        self._set(self._ours)
        os.fchdir(self._directory)

    def _set(self, descriptor: int) -> None:
        try:
            libc.call("setns", descriptor, _CLONE_NEWNS)
        except OSError as error:
            raise MountError(f"mount namespace {self._name}: {error.strerror}") from error
