"""The keeper: a process that mounts and unmounts for a daemon, so that the daemon itself needs no privileges.

The daemon forks it before it is confined, and before either reads the image. It serves five requests, none with an
argument, and never reads the image or has a key. It unmounts only the mount that it was made for. When the daemon has
ended in any way, it ends too, and leaves the mount as it is. Why: docs/adr/0011.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from mystfuse.errors import MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.daemonize import end_child
from mystfuse.mounting.keeper_server import KeeperServer, Request, run_server
from mystfuse.mounting.mount import check_descriptors
from mystfuse.mounting.mount_table import Mount
from mystfuse.mounting.unmount import BusyError

_MAX_ANSWER = 64 << 10
"""Bytes: two paths of 4096, each byte of which JSON may write as six, and as much again for a message."""
PATIENCE = 60.0
"""Seconds for a request. An unmount takes as long as the kernel needs to forget the mount's inodes."""
_QUICK = 5.0
"""Seconds for requests that only make things faster, and for the keeper to end."""


class Keeper:
    """The daemon's end. The process must have one thread when it makes this; then any thread may use it, one at a
    time."""

    def __init__(
        self, options: MountOptions, at_the_end: Callable[[], None] = lambda: None, extra_calls: Iterable[str] = ()
    ) -> None:
        """Fork the process.

        Args:
            at_the_end: what the keeper does when the daemon has ended in any way.
            extra_calls: system calls that this takes.
        """
        self._patience = PATIENCE
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            self._socket.close()
            run_server(KeeperServer(options), other, at_the_end, extra_calls)
        other.close()

    def mount(self, read_only: bool = False) -> tuple[int | None, Mount | None]:
        """Mount, unless the caller has, and read-only even if the options do not say so. Returns the descriptor of
        /dev/fuse, if it is a new one, and the mount as the
        mount table has it.

        Raises:
            MountError: mounting failed.
        """
        check_descriptors(self._socket.fileno())
        answer, descriptor = self._request(Request.MOUNT_READ_ONLY if read_only else Request.MOUNT)
        return descriptor, Mount(**answer["mount"]) if answer["mount"] else None

    def raise_read_ahead(self) -> None:
        """Have the kernel read further ahead in the mount, if we may."""
        with suppress(MountError):
            self._request(Request.RAISE_READ_AHEAD, _QUICK)

    def unmount(self, lazy: bool = False) -> bool:
        """Unmount our mount; False if another mount, or none, is on top at the mountpoint. Blocks: never call it from
        the loop that serves the mount.

        Raises:
            BusyError: it is in use.
            MountError: unmounting failed.
        """
        return bool(self._request(Request.UNMOUNT_LAZILY if lazy else Request.UNMOUNT)[0]["was_mounted"])

    def close(self) -> None:
        """End the keeper, and wait for its end, but not for long if it hangs."""
        self._socket.close()
        end_child(self._pid, _QUICK)

    def _request(self, request: Request, patience: float = math.inf) -> tuple[dict[str, Any], int | None]:
        patience = min(patience, self._patience)
        try:
            self._socket.settimeout(patience)
            self._socket.send(request.value)
            data, descriptors, _, _ = socket.recv_fds(self._socket, _MAX_ANSWER, 1)
        except TimeoutError as error:
            # A late answer must not count for the next request.
            self._socket.close()
            raise MountError(f"the process that mounts does not answer within {patience:g} s") from error
        except OSError as error:
            raise MountError(f"the process that mounts does not answer: {error.strerror}") from error
        if not data:
            raise MountError("the process that mounts has ended")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise (BusyError if answer["is_busy"] else MountError)(answer["error"])
        return answer, descriptors[0] if descriptors else None
