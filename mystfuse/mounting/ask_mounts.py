"""Asking mounts for their status: they may hang, be dead, or be another program's that only looks like ours.

Each is asked by a process of its own, which is left behind where it hangs. A thread would not do: while one waits for
an answer to a request that the mount's daemon has taken, no signal ends it, nor the process that it belongs to.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import signal
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from mystfuse.fuse.control_directory_names import CONTROL_NAME, STATUS_NAME
from mystfuse.mounting.mount_table import Mount, find_mount, mount_id, mount_ids
from mystfuse.system import libc
from mystfuse.system.wait_readable import wait_readable

ANSWER_TIMEOUT = 2.0
"""Seconds that mounts get to answer when all of them are asked."""
_AT_ONCE = 32
"""Processes at the same time."""
_MAX_STATUS = 64 << 10
"""Bytes. Ours have 2000, and two paths of 4096, each byte of which JSON may write as six."""
_HIDDEN, _FOREIGN = 254, 255
"""Exit statuses of the process that asks; others are errnos."""
"""<linux/prctl.h>"""


class State(Enum):
    """What a mount says when it is asked."""

    SERVING = "serving"
    DEAD = "dead"
    """Its daemon was killed."""
    HUNG = "hung"
    """No answer in time."""
    REFUSED = "refused"
    """Another user's."""
    HIDDEN = "hidden"
    """Another mount lies on top."""
    SILENT = "silent"
    """Mounted with ``nocontrol``, or only a part of a mount (a bind mount)."""
    UNKNOWN = "unknown"
    """Something else is wrong."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A mount, and what it said."""

    mount: Mount
    state: State
    status: dict[str, Any] | None = None
    """Its status.json, if it is ``SERVING``. The program that wrote it may be another than ours."""
    error: str = ""
    """The system's word, if the state is ``UNKNOWN``."""

    @property
    def image(self) -> str:
        """What is mounted, as far as the mount says; the mount table has it in ASCII alone."""
        image = (self.status or {}).get("image")
        return image if isinstance(image, str) else self.mount.source

    @property
    def written(self) -> int | None:
        """Bytes that have been written since the mount and are forgotten with it; None if that is not known."""
        written = (self.status or {}).get("overlay_written")
        return written if isinstance(written, int) else None


def ask(mounts: Sequence[Mount], timeout: float = ANSWER_TIMEOUT) -> list[Answer]:
    """The status of some mounts of ours. The process must have one thread.

    Args:
        timeout: seconds for each, or together for up to 32 of them.
    """
    return [answer for start in range(0, len(mounts), _AT_ONCE) for answer in _ask(mounts[start:][:_AT_ONCE], timeout)]


def _ask(mounts: Sequence[Mount], timeout: float) -> list[Answer]:
    deadline = time.monotonic() + timeout
    asking: list[_Asking] = []
    try:
        for mount in mounts:
            asking.append(_Asking(mount))
        return [each.finish(max(0.0, deadline - time.monotonic())) for each in asking]
    finally:
        for each in asking:
            each.close()


class _Asking:
    """A process that reads a mount's status.json, and writes it into a pipe."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._receiver, sender = os.pipe()
        try:
            parent = os.getpid()
            self._pid = os.fork()
            if not self._pid:
                _read_in_child(mount, sender, parent)
        except BaseException:
            os.close(self._receiver)
            raise
        finally:
            os.close(sender)

    def finish(self, timeout: float) -> Answer:
        """What the mount has said after ``timeout`` seconds at most."""
        deadline, said = time.monotonic() + timeout, b""
        while True:
            if not wait_readable([self._receiver], max(0.0, deadline - time.monotonic())):
                return Answer(self._mount, State.HUNG)
            if not (part := os.read(self._receiver, _MAX_STATUS)):
                break
            said += part
        status, self._pid = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), 0
        return _judge(self._mount, status, said)

    def close(self) -> None:
        """Leave it behind if it has not ended. Where the daemon has not taken the request, the signal takes it back."""
        os.close(self._receiver)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            deadline = time.monotonic() + 0.2
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.001)


def _read_in_child(mount: Mount, sender: int, parent: int) -> NoReturn:
    result = _FOREIGN
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if libc.end_with_parent(signal.SIGKILL, parent):
            result = _read(mount, sender)
    except OSError as error:
        result = error.errno or _FOREIGN
    finally:
        os._exit(result)


def _read(mount: Mount, sender: int) -> int:
    directory = os.open(mount.mountpoint, os.O_PATH | os.O_DIRECTORY)
    # Not by fstat, which would ask the daemon, and renew what the kernel knows of the root for a day.
    if mount_id(directory) not in mount_ids(mount):
        return _HIDDEN
    control = os.open(CONTROL_NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    file = os.open(STATUS_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=control)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or _device(status.st_dev) != mount.device:
        return _FOREIGN
    left = _MAX_STATUS + 1
    while left and (data := os.read(file, left)):
        left -= len(data)
        while data:
            data = data[os.write(sender, data) :]
    return 0 if left else _FOREIGN


def _device(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _judge(mount: Mount, status: int, said: bytes) -> Answer:
    if status == 0:
        # An image's own directory of that name, where it was mounted with nocontrol, may have anything in it.
        with suppress(ValueError, RecursionError):
            document = json.loads(said, parse_int=_int, parse_float=_float, parse_constant=_float)
            if isinstance(document, dict) and {"version", "image", "mountpoint"} <= document.keys():
                return Answer(mount, State.SERVING, document)
        return Answer(mount, State.SILENT)
    if status == _HIDDEN:
        return Answer(mount, State.HIDDEN)
    if status in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV):
        return Answer(mount, State.DEAD)
    if status in (errno.EACCES, errno.EPERM):
        return Answer(mount, State.REFUSED)
    if status in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, _FOREIGN):
        # Another may have unmounted it meanwhile.
        is_there = find_mount(mount.mountpoint) == mount
        return Answer(mount, State.SILENT if is_there else State.HIDDEN)
    return Answer(mount, State.UNKNOWN, error=os.strerror(status) if status > 0 else f"signal {-status}")


def _int(digits: str) -> int:
    if abs(value := int(digits)) >= 1 << 64:
        raise ValueError(digits)
    return value


def _float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(digits)
    return value


def explain_silence(answer: Answer, timeout: float) -> str:
    """Why there is no status, in one clause, and what helps.

    Args:
        timeout: seconds that the mount had to answer.
    """
    mount, place = answer.mount, shlex.quote(answer.mount.mountpoint)
    match answer.state:
        case State.DEAD:
            return f"its daemon is gone, and its writes (mystfuse umount {place} clears the dead mount away)"
        case State.HUNG:
            return f"no answer within {timeout:g} s (mystfuse umount --force {place} ends it)"
        case State.REFUSED:
            who = "only that user and root" if os.geteuid() else "without allow_other not even root"
            return f"user {mount.user_id} has mounted it: {who} may look into it"
        case State.HIDDEN:
            return "another mount lies on top of it"
        case State.SILENT:
            return "it has no status: it was mounted with nocontrol"
    return answer.error
