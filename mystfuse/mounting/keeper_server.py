"""The keeper's side: a server of five requests, in a process with the privileges that mounting takes and no others."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from enum import Enum
from typing import Any, NoReturn

from mystfuse.errors import MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.daemonize import close_descriptors
from mystfuse.mounting.find_daemon import set_process_name
from mystfuse.mounting.kernel_read_ahead import allow_background, raise_read_ahead
from mystfuse.mounting.mount import mount
from mystfuse.mounting.mount_table import Mount, find_mount, find_mount_of, find_mounts
from mystfuse.mounting.unmount import BusyError, GoneError, unmount
from mystfuse.system.confinement import confine_keeper

NAME = "mystfuse:keeper"
"""The process's name, of the maximum length."""
_MAX_REQUEST = 64
"""Bytes: longer than a request, so that a longer message is none."""
_MAX_ERROR = 2048
"""Maximum length of an error in characters."""
_COVERED_PATIENCE = 5.0
"""Seconds for other processes to unmount what they have mounted on top of our mount."""


class Request(Enum):
    """Each is the whole message. Text never contains the bytes in front and behind: what a library writes to stderr,
    and what reaches the socket by mistake, is no request."""

    MOUNT = b"\0mount\xff"
    MOUNT_READ_ONLY = b"\0mount read-only\xff"
    RAISE_READ_AHEAD = b"\0raise read-ahead\xff"
    UNMOUNT = b"\0unmount\xff"
    UNMOUNT_LAZILY = b"\0unmount lazily\xff"


def parse_request(message: bytes) -> Request | None:
    """The request that a message is; None if it is none."""
    return next((request for request in Request if message == request.value), None)


class KeeperServer:
    """Answers requests about one mount."""

    def __init__(self, options: MountOptions) -> None:
        self.options = options
        self.is_confined = False
        self._own: Mount | None = None

    def answer(self, request: Request) -> tuple[dict[str, Any], list[int]]:
        """Returns the answer, and descriptors to send with it; raises MountError if the request fails."""
        match request:
            case Request.MOUNT | Request.MOUNT_READ_ONLY:
                if self.options.descriptor is not None:
                    # Mounted by the caller, perhaps where we cannot see it.
                    self._own = find_mount(self.options.mountpoint)
                    return {"mount": self._own and asdict(self._own)}, []
                if request is Request.MOUNT_READ_ONLY:
                    self.options = replace(self.options, read_only=True)
                descriptor = mount(self.options, may_run_programs=not self.is_confined)
                self._own = self._find_own(descriptor)
                return {"mount": asdict(self._own)}, [descriptor]
            case Request.RAISE_READ_AHEAD:
                if self._own is not None:
                    raise_read_ahead(self._own.device)
                    allow_background(self._own.device)
                return {}, []
            case Request.UNMOUNT | Request.UNMOUNT_LAZILY:
                # By now the path alone may belong to another mount.
                was_mounted = self._own is not None and find_mount(self.options.mountpoint) == self._own
                if was_mounted:
                    try:
                        unmount(self.options.mountpoint, request is Request.UNMOUNT_LAZILY, self._own)
                    except GoneError:
                        was_mounted = False
                return {"was_mounted": was_mounted}, []

    def _find_own(self, descriptor: int) -> Mount:
        """The new mount in the mount table.

        Raises:
            MountError: the mountpoint was moved since it was opened, or another image was mounted there meanwhile (the
                lower of the two stays). Then we unmount the new mount again.
        """
        path = self.options.mountpoint
        # Not the first one of find_mount_of: where mounts are shared, it can be in several places.
        found, elsewhere = find_mount(path), find_mount_of(descriptor)
        ours = [each for each in find_mounts(path) if each is not None]
        own = next((each for each in ours if elsewhere is not None and each.device == elsewhere.device), None)
        if own is not None:
            if own == ours[0] or self.options.nonempty:
                # A mount on top of it was made by another mystfuse, which runs this check as well and unmounts it.
                return own
            _take_back(own)
            raise MountError(f"{path}: {ours[0].source} is already mounted there")
        if found is not None and elsewhere is None:
            return found
        if elsewhere is not None:
            with suppress(MountError):
                unmount(elsewhere.mountpoint, lazy=True, expected=elsewhere)
        raise MountError(f"{path}: another directory has taken its place: nothing is mounted")


def run_server(
    server: KeeperServer,
    connection: socket.socket,
    at_the_end: Callable[[], None] = lambda: None,
    extra_calls: Iterable[str] = (),
) -> NoReturn:
    """Answer until the daemon is gone."""
    try:
        set_process_name(NAME)
        # A terminal's or service manager's signal is meant for the daemon, which needs us to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        # Close the caller's descriptor of /dev/fuse as well: it would keep the mount alive.
        needed = {connection.fileno(), server.options.directory}
        close_descriptors(frozenset(fd for fd in needed if fd is not None))
        server.is_confined = confine_keeper(extra_calls)
        while message := connection.recv(_MAX_REQUEST):
            request = parse_request(message)
            if request is None:
                # No answer: the daemon would take it for the answer to its next request.
                continue
            _answer(server, connection, request)
    finally:
        try:
            at_the_end()
        finally:
            os._exit(0)


def _answer(server: KeeperServer, connection: socket.socket, request: Request) -> None:
    descriptors: list[int] = []
    try:
        answer, descriptors = server.answer(request)
    except (MountError, OSError) as error:
        answer = {"error": str(error)[:_MAX_ERROR], "is_busy": isinstance(error, BusyError)}
    try:
        socket.send_fds(connection, [json.dumps(answer).encode()], descriptors)
    except OSError:
        # The daemon has given up meanwhile, and will not serve the mount.
        if descriptors:
            server.answer(Request.UNMOUNT_LAZILY)
        raise
    # An open one would keep the mount alive.
    for descriptor in descriptors:
        os.close(descriptor)


def _take_back(own: Mount) -> None:
    """Unmount the new mount as soon as nothing is on top of it: other processes may be about to do the same with
    theirs."""
    deadline = time.monotonic() + _COVERED_PATIENCE
    while True:
        try:
            unmount(own.mountpoint, lazy=True, expected=own)
            return
        except GoneError:
            if time.monotonic() > deadline or own not in find_mounts(own.mountpoint):
                return
        time.sleep(0.005)
