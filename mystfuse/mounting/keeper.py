"""The process that mounts and unmounts for a daemon, so that the daemon itself needs no privileges at all.

It is forked before the daemon is confined, before either has looked at the image. It takes four orders, none with an
argument, each one message of fixed bytes, and answers no other message: a text that was meant for stderr is none. It
does nothing with any other mount than the one it was made for. It keeps no keys, and never looks at the image. When the
daemon has ended, however that was, it ends too, and leaves the mount as it is.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from enum import IntEnum
from typing import Any, NoReturn

from mystfuse.errors import MountError
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.daemonize import close_descriptors, end_child
from mystfuse.mounting.fusermount import run_fusermount
from mystfuse.mounting.kernel_read_ahead import allow_background, raise_read_ahead
from mystfuse.mounting.mount_table import FSTYPE, Mount, find_mount, find_mount_of, find_mounts, set_process_name
from mystfuse.mounting.unmount import BusyError, GoneError, unmount
from mystfuse.system.confinement import confine_keeper

NAME = "mystfuse:keeper"
"""What it calls itself: as long as the name of a process can be."""
# <sys/mount.h>
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 1, 2, 4, 8, 1024
_REQUEST = struct.Struct("=8sI")
"""``_MAGIC`` and an ``_Order``."""
_MAGIC = b"\0keeper\xff"
_MAX_ANSWER = 64 << 10
"""Bytes: two paths of 4096, each byte of which JSON may write as six, and as much for a message."""
_MAX_ERROR = 2048
"""Characters of an error."""
_SPARE_DESCRIPTORS = 4
PATIENCE = 60.0
"""Seconds for an order. An unmount takes as long as the kernel forgets what it knows of the mount."""
_QUICK = 5.0
"""Seconds for what only makes things faster, and to end."""


class _Order(IntEnum):
    MOUNT = 1
    RAISE_READ_AHEAD = 2
    UNMOUNT = 3
    UNMOUNT_LAZILY = 4


class Keeper:
    """The daemon's end. The process must have one thread when this is made; then any may use it, one at a time."""

    def __init__(
        self, options: MountOptions, at_the_end: Callable[[], None] = lambda: None, extra_calls: Iterable[str] = ()
    ) -> None:
        """Start it.

        Args:
            at_the_end: what it does when the daemon has ended, however that was.
            extra_calls: system calls that this takes.
        """
        self._patience = PATIENCE
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            self._socket.close()
            _run(_Office(options), other, at_the_end, extra_calls)
        other.close()

    def mount(self) -> tuple[int | None, Mount | None]:
        """Mount, unless the caller has. Returns the descriptor of /dev/fuse, if it is a new one, and the mount as the
        mount table has it.

        Raises:
            MountError: it cannot be mounted there.
        """
        _check_descriptors(self._socket.fileno())
        answer, descriptor = self._ask(_Order.MOUNT)
        return descriptor, Mount(**answer["mount"]) if answer["mount"] else None

    def raise_read_ahead(self) -> None:
        """Have the kernel read further ahead in it, if we may."""
        with suppress(MountError):
            self._ask(_Order.RAISE_READ_AHEAD, _QUICK)

    def unmount(self, lazy: bool = False) -> bool:
        """Unmount ours; False if it is not what an unmount of the mountpoint would take away. Blocks; never call it
        from the loop that serves the mount.

        Raises:
            BusyError: it is in use.
            MountError: it cannot be unmounted.
        """
        return bool(self._ask(_Order.UNMOUNT_LAZILY if lazy else _Order.UNMOUNT)[0]["was_mounted"])

    def close(self) -> None:
        """End it, and wait for that, but not for long if it hangs."""
        self._socket.close()
        end_child(self._pid, _QUICK)

    def _ask(self, order: _Order, patience: float = math.inf) -> tuple[dict[str, Any], int | None]:
        patience = min(patience, self._patience)
        try:
            self._socket.settimeout(patience)
            self._socket.send(_REQUEST.pack(_MAGIC, order))
            data, descriptors, _, _ = socket.recv_fds(self._socket, _MAX_ANSWER, 1)
        except TimeoutError as error:
            # An answer that comes now must not be taken for that to another order.
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


class _Office:
    """What the keeper does."""

    def __init__(self, options: MountOptions) -> None:
        self.options = options
        self.is_confined = False
        self._own: Mount | None = None

    def answer(self, order: _Order) -> tuple[dict[str, Any], list[int]]:
        """What to answer, and descriptors to go with it; MountError for what cannot be done."""
        match order:
            case _Order.MOUNT:
                if self.options.descriptor is not None:
                    # Mounted by the caller, perhaps where we cannot see it.
                    self._own = find_mount(self.options.mountpoint)
                    return {"mount": self._own and asdict(self._own)}, []
                descriptor = _mount(self.options, may_run_programs=not self.is_confined)
                self._own = self._find_own(descriptor)
                return {"mount": asdict(self._own)}, [descriptor]
            case _Order.RAISE_READ_AHEAD:
                if self._own is not None:
                    raise_read_ahead(self._own.device)
                    allow_background(self._own.device)
                return {}, []
            case _Order.UNMOUNT | _Order.UNMOUNT_LAZILY:
                # The path alone may belong to somebody else by now.
                was_mounted = self._own is not None and find_mount(self.options.mountpoint) == self._own
                if was_mounted:
                    try:
                        unmount(self.options.mountpoint, order is _Order.UNMOUNT_LAZILY, self._own)
                    except GoneError:
                        was_mounted = False
                return {"was_mounted": was_mounted}, []

    def _find_own(self, descriptor: int) -> Mount:
        """What has just been mounted; a mountpoint that has been moved since it was looked at is refused, and so is one
        where somebody has mounted an image directly before: the lower of the two stays."""
        path = self.options.mountpoint
        # Not the first that find_mount_of finds: where mounts are shared, it can be in several places.
        mount, elsewhere = find_mount(path), find_mount_of(descriptor)
        ours = [each for each in find_mounts(path) if each is not None]
        own = next((each for each in ours if elsewhere is not None and each.device == elsewhere.device), None)
        if own is not None:
            if own == ours[0] or self.options.nonempty:
                # What may be on top of it is taken away by those who come here as well.
                return own
            _take_back(own)
            raise MountError(f"{path}: {ours[0].source} is mounted there already")
        if mount is not None and elsewhere is None:
            return mount
        if elsewhere is not None:
            with suppress(MountError):
                unmount(elsewhere.mountpoint, lazy=True, expected=elsewhere)
        raise MountError(f"{path}: another directory has taken its place: nothing is mounted")


def _run(
    office: _Office,
    connection: socket.socket,
    at_the_end: Callable[[], None] = lambda: None,
    extra_calls: Iterable[str] = (),
) -> NoReturn:
    """Answer until the daemon is gone."""
    try:
        set_process_name(NAME)
        # A terminal and a service manager mean the daemon, which needs us to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        # Not one of /dev/fuse that was passed to us: who holds it keeps the mount alive, and seems to serve it.
        needed = {connection.fileno(), office.options.directory}
        close_descriptors(frozenset(fd for fd in needed if fd is not None))
        office.is_confined = confine_keeper(extra_calls)
        while message := connection.recv(_REQUEST.size + 1):
            order = _understand(message)
            if order is None:
                # Unanswered: the daemon would take the answer for that to its next order.
                continue
            descriptors: list[int] = []
            try:
                answer, descriptors = office.answer(order)
            except (MountError, OSError) as error:
                answer = {"error": str(error)[:_MAX_ERROR], "is_busy": isinstance(error, BusyError)}
            try:
                socket.send_fds(connection, [json.dumps(answer).encode()], descriptors)
            except OSError:
                # Given up meanwhile: nobody would serve what has been mounted.
                if descriptors:
                    office.answer(_Order.UNMOUNT_LAZILY)
                raise
            # Whoever holds it keeps the mount alive.
            for descriptor in descriptors:
                os.close(descriptor)
    finally:
        try:
            at_the_end()
        finally:
            os._exit(0)


def _understand(message: bytes) -> _Order | None:
    """The order that a message is; None if it is none."""
    if len(message) != _REQUEST.size:
        return None
    magic, number = _REQUEST.unpack(message)
    return _Order(number) if magic == _MAGIC and number in iter(_Order) else None


def _check_descriptors(open_one: int) -> None:
    """See that there can be a few more descriptors: who finds out after mounting may be unable to unmount.

    Args:
        open_one: any that is open.

    Raises:
        MountError: they cannot.
    """
    spare: list[int] = []
    try:
        for _ in range(_SPARE_DESCRIPTORS):
            # Not opened anew: the daemon is confined.
            spare.append(os.dup(open_one))
    except OSError as error:
        raise MountError(f"cannot mount: {error.strerror} (ulimit -n)") from error
    finally:
        for descriptor in spare:
            os.close(descriptor)


def _mount(options: MountOptions, may_run_programs: bool) -> int:
    """Mount by the system call, or by fusermount3 as somebody who may not; returns the descriptor of /dev/fuse.

    Sources: libfuse's lib/mount.c; the kernel's Documentation/filesystems/fuse.rst.
    """
    _check_descriptors(0)
    flags = _MS_NOATIME
    for is_set, flag in (
        (options.read_only, _MS_RDONLY), (not options.suid, _MS_NOSUID), (not options.dev, _MS_NODEV),
        (options.noexec, _MS_NOEXEC),
    ):  # fmt: skip
        flags |= flag if is_set else 0
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"/dev/fuse: {error.strerror}") from error
    user, group = options.owner
    data = f"fd={descriptor},rootmode={_kind_of(options):o},user_id={user},group_id={group},default_permissions"
    if options.allow_other:
        data += ",allow_other"
    # By the descriptor: whatever has that name by now, it is the directory that was looked at.
    target = options.mountpoint if options.directory is None else f"/proc/self/fd/{options.directory}"
    libc = ctypes.CDLL(None, use_errno=True)
    name, place = options.shown_name.encode(), os.fsencode(target)
    try:
        _refuse_second(options)
    except BaseException:
        os.close(descriptor)
        raise
    if not libc.mount(name, place, FSTYPE.encode(), ctypes.c_ulong(flags), data.encode()):
        return descriptor
    code = ctypes.get_errno()
    os.close(descriptor)
    if code != errno.EPERM or not may_run_programs:
        raise MountError(f"cannot mount on {options.mountpoint}: {os.strerror(code)}")
    return _mount_by_fusermount(options)


def _take_back(own: Mount) -> None:
    """Unmount what has just been mounted, as soon as nothing is on top of it: others may be about to do the same."""
    deadline = time.monotonic() + _QUICK
    while True:
        try:
            unmount(own.mountpoint, lazy=True, expected=own)
            return
        except GoneError:
            if time.monotonic() > deadline or own not in find_mounts(own.mountpoint):
                return
        time.sleep(0.005)


def _refuse_second(options: MountOptions) -> None:
    """Raise MountError if somebody has mounted an image there since the mountpoint was looked at: the kernel would
    stack them, and the lower one could not be unmounted."""
    if not options.nonempty and (mount := find_mount(options.mountpoint)) is not None:
        raise MountError(f"{options.mountpoint}: {mount.source} is mounted there already")


def _kind_of(options: MountOptions) -> int:
    """What is mounted on, as the kernel wants it of what is mounted: a directory, or a file (``encrypted_file``)."""
    if options.directory is not None:
        return stat.S_IFDIR
    try:
        return stat.S_IFMT(os.stat(options.mountpoint).st_mode)
    except OSError as error:
        raise MountError(f"{options.mountpoint}: {error.strerror}") from error


def _mount_by_fusermount(options: MountOptions) -> int:
    """The same through fusermount3, which sends the descriptor, and itself looks at where it mounts."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with receiver, sender:
        arguments = ["-o", ",".join(sorted(options.fuse_options())), "--", options.mountpoint]
        _refuse_second(options)
        result = run_fusermount(arguments, sender)
        if result.returncode:
            message = " ".join(result.stderr.split()) or f"fusermount3 exited {result.returncode}"
            raise MountError(f"cannot mount on {options.mountpoint}: {message}")
        sender.close()
        _, descriptors, _, _ = socket.recv_fds(receiver, 1, 1)
    if not descriptors:
        raise MountError(f"cannot mount on {options.mountpoint}: fusermount3 has not sent a descriptor")
    return descriptors[0]
