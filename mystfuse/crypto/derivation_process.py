"""A process of its own for key derivations, whose time and memory are bounded.

An image's header, which its carrier may have written, states the cost of a derivation, and nothing can stop a thread in
OpenSSL. A process ends by a limit, and its memory comes back.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import time
from contextlib import suppress
from math import ceil, inf
from typing import Any, NoReturn

import trio

from mystfuse.crypto.kdf_limit import KdfLimit
from mystfuse.crypto.secret import Secret, harden_process
from mystfuse.errors import MystfuseError
from mystfuse.system import libc

"""<linux/prctl.h>"""
_MAX_REQUEST = 4096
"""Bytes: salts have 256 at most."""
_MAX_SECRET = (64 << 10) + 1
_SLACK = 384 << 20
"""Bytes of address space beside what a derivation fills: threads, one a lane, and what the allocator reserves."""
_DONE, _NO_MEMORY, _FAILED = b"k", b"m", b"f"


class Deriver:
    """The caller's end. The process is forked when this is made: early, before there are threads, where possible.

    Args:
        limit: for all derivations together that are asked for.
    """

    def __init__(self, limit: KdfLimit) -> None:
        # Only here: it takes 7 ms to import. Before the fork, since the child may not find it any more.
        import mystfuse.crypto.key_derivation  # noqa: F401

        self.limit = limit
        self._left = limit.seconds
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            _run(other, limit, parent)
        other.close()
        self._socket.setblocking(False)

    async def derive(self, parameters: dict[str, Any], secret: Secret, length: int) -> Secret:
        """The ``length`` bytes that a key derivation makes from a secret.

        Args:
            parameters: of ``derive_pbkdf2`` or ``derive_argon2``, by name, the salt in hex digits.

        Raises:
            MystfuseError: the time is up, there is too little memory, or the process was killed.
        """
        started = time.monotonic()
        key, answer, count = Secret(length), Secret(1 + length), 0
        try:
            # Without a deadline of ours: the process ends itself in time, which closes its socket.
            await trio.lowlevel.wait_writable(self._socket)
            self._socket.send(json.dumps({**parameters, "length": length}).encode())
            self._socket.send(secret.view)
            await trio.lowlevel.wait_readable(self._socket)
            count = self._socket.recv_into(answer.view)
            key.view[:] = answer.view[1:]
        except OSError:
            count = 0
        finally:
            status = bytes(answer.view[: min(count, 1)])
            answer.wipe()
        self._left -= time.monotonic() - started
        if status == _DONE and count == 1 + length:
            return key
        key.wipe()
        if status == _NO_MEMORY:
            raise MystfuseError("opening it needs more memory than there is, or than --kdf-limit allows")
        if status == _FAILED:
            raise MystfuseError("OpenSSL derives no key by these parameters")
        # Its clock began a moment after ours.
        if self._left <= 0.01:
            raise MystfuseError(
                f"opening it took longer than {self.limit.seconds:g} s, and was ended (--kdf-limit SECONDS allows more)"
            )
        raise MystfuseError("the process that derives keys has ended: killed, or out of memory?")

    async def close(self) -> None:
        """End the process in any state; not cancellable."""
        pid = self._end()
        if not pid:
            return
        with trio.CancelScope(shield=True):
            for delay in (0, 0.001, 0.01, 0.1, 0.5, 1):
                await trio.sleep(delay)
                if _has_ended(pid):
                    return

    def kill(self) -> None:
        """The same without an event loop, for a process that has not been asked for anything."""
        pid = self._end()
        for delay in (0, 0.001, 0.01, 0.1, 0.5, 1):
            time.sleep(delay)
            if not pid or _has_ended(pid):
                return

    def _end(self) -> int:
        """Have the process end; returns its number, or 0 if that has been done."""
        pid, self._pid = self._pid, 0
        if pid:
            self._socket.close()
            # A confined daemon may not send it: there, closing the socket ends the process. Elsewhere a process that
            # was forked meanwhile may hold ours open.
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return pid


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def _run(connection: socket.socket, limit: KdfLimit, parent: int) -> NoReturn:
    """The child: answer until the caller is gone."""
    from mystfuse.system.confinement import confine

    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.SIGIO):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if not libc.end_with_parent(signal.SIGKILL, parent):
            os._exit(1)
        harden_process()
        _close_all_but(connection.fileno())
        _limit(limit)
        # A process that becomes another user gets no signal when its parent dies or gives up.
        fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
        # Its requests come from the header, through a process that has parsed it.
        if (proc := confine().proc) is not None:
            # It must not see which other processes there are.
            os.close(proc)
        left = limit.seconds
        while request := connection.recv(_MAX_REQUEST):
            secret = Secret(_MAX_SECRET)
            started = time.monotonic()
            if left < inf:
                # OpenSSL may be busy then, so the kernel ends us.
                signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
            size = connection.recv_into(secret.view)
            _die_with(connection, True)
            answer = _answer(json.loads(request), secret.view[:size])
            _die_with(connection, False)
            secret.wipe()
            connection.send(answer.view)
            answer.wipe()
            signal.setitimer(signal.ITIMER_REAL, 0)
            left -= time.monotonic() - started
    finally:
        os._exit(0)


def _die_with(connection: socket.socket, is_computing: bool) -> None:
    """Whether the kernel ends this process when the caller closes its end: by SIGIO, whose default action that is.

    Source: fcntl(2), F_SETOWN and O_ASYNC. Data from the caller would do the same: it sends none meanwhile.
    """
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC if is_computing else flags & ~os.O_ASYNC)
    if is_computing:
        # It may have been closed a moment before.
        with suppress(BlockingIOError):
            connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            os._exit(0)


def _answer(parameters: dict[str, Any], secret: memoryview) -> Secret:
    """A byte with the outcome, and the key."""
    from mystfuse.crypto.key_derivation import derive_argon2, derive_pbkdf2

    try:
        salt = bytes.fromhex(parameters.pop("salt"))
        derive = derive_argon2 if "variant" in parameters else derive_pbkdf2
        key = derive(passphrase=secret, salt=salt, **parameters)
    except MemoryError:
        return Secret.copy_of(_NO_MEMORY)
    except Exception:
        return Secret.copy_of(_FAILED)
    answer = Secret(1 + len(key))
    answer.view[:1] = _DONE
    answer.view[1:] = key.view
    key.wipe()
    return answer


def _limit(limit: KdfLimit) -> None:
    """Bound this process. The address space it has already is its own."""
    with suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, size + limit.memory + _SLACK)
    if limit.seconds < inf:
        _lower(resource.RLIMIT_CPU, ceil(limit.seconds * (os.cpu_count() or 1)) + 1)
    # If memory ends all the same, the system should end this process.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _lower(which: int, limit: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(which, (limit, limit))


def _close_all_but(connection: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != connection:
            with suppress(OSError):
                os.close(descriptor)
