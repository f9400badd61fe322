"""Confining a process for good: an empty root, a user of its own, no privileges, Landlock, a seccomp allow-list.

The calling process must have one thread: each of these is a property of a thread, which those it starts inherit.

Sources: prctl(2), capabilities(7), credentials(7), <linux/capability.h>, <linux/securebits.h>, fsopen(2), fsmount(2),
open_tree(2), <linux/mount.h>. Why each step is taken, and in this order: docs/adr/0016.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import resource
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from mystfuse.system import seccomp_bpf
from mystfuse.system.daemon_users import own_user
from mystfuse.system.landlock import restrict_file_access
from mystfuse.system.libc import system_call
from mystfuse.system.seccomp_filters import daemon_filter, keeper_filter

log = logging.getLogger(__name__)

# <linux/prctl.h>, <linux/securebits.h>
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = (
    1, 2, 24, 28, 38, 47,
)  # fmt: skip
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NOROOT_NO_SETUID_FIXUP_NO_RAISE_LOCKED = 0xEF
"""SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP, SECBIT_NO_CAP_AMBIENT_RAISE, and the locks of all four bits."""
_MAX_CAPABILITIES = 64
_CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH, _CAP_SYS_ADMIN = 2, 21

_SYS_OPEN_TREE, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 428, 430, 431, 432
"""The same on all machines."""
_AT_FDCWD = -100
_OPEN_TREE_CLONE, _FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1, 1
_FSCONFIG_CMD_CREATE = 6
_RDONLY_NOSUID_NODEV_NOEXEC = 0xF
"""MOUNT_ATTR_RDONLY and so on."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """How a process is confined, as far as the system permitted it."""

    landlock: int = 0
    """The version that is in force; 0 for none."""
    has_filter: bool = False
    """Whether its system calls are filtered."""
    has_empty_root: bool = False
    own_user: int | None = None
    """The user that it has become, and no other process is; None: still the one that started it."""
    proc: int | None = None
    """A descriptor of /proc, the only directory in which it can open files."""

    def groups_of(self, pid: int) -> frozenset[int]:
        """The supplementary groups of a process; none if it has ended, or is hidden.

        Source: proc_pid_status(5), Groups.
        """
        if self.proc is None:
            return frozenset()
        try:
            descriptor = os.open(f"{pid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
            with open(descriptor, "rb") as file:
                match = re.search(rb"^Groups:([\d \t]*)$", file.read(), re.MULTILINE)
        except OSError:
            return frozenset()
        return frozenset(map(int, match[1].split())) if match else frozenset()


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def confine() -> Confinement:
    """Leave this process its open descriptors, ``/proc`` for reading, and the system calls of a daemon. Nothing can be
    imported any more.

    A layer that the system does not permit (an ordinary user, an old kernel, a container) is left out, and logged.

    Raises:
        OSError: dropping privileges failed, which the system has no reason to refuse.
    """
    # glibc loads it when a thread is ended before its time, and aborts the process if it cannot.
    with suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")
    os.umask(0o077)
    os.chdir("/")
    proc, has_empty_root = _leave_file_system()
    own_user = drop_privileges(own_user=True)
    landlock = restrict_file_access(proc)
    return Confinement(landlock, _filter_calls(daemon_filter), has_empty_root, own_user, proc)


def confine_keeper(extra_calls: Iterable[str] = ()) -> bool:
    """Leave this process, if it is privileged, only what mounting and unmounting needs: a capability for that, one to
    reach mountpoints in directories of others, and a few system calls. A keeper that has to run fusermount3 is not
    confined: no-new-privileges would void the set-user-ID bit of fusermount3.

    Args:
        extra_calls: system calls that it makes besides.

    Returns:
        Whether it is confined; then it cannot run programs.
    """
    if not effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        return False
    drop_privileges(keep=1 << _CAP_SYS_ADMIN | 1 << CAP_DAC_READ_SEARCH)
    _filter_calls(lambda: keeper_filter(extra_calls))
    return True


def drop_privileges(keep: int = 0, own_user: bool = False) -> int | None:
    """No capabilities from here on but ``keep``, and no program that is executed has more privileges than we have.

    Args:
        keep: a set of capabilities; those of them that we have.
        own_user: as root, become a user and a group of this process alone, which own nothing.

    Returns:
        The user that we have become.

    Raises:
        OSError: the system refuses it, which it has no reason to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # By a capability, root may lock memory without limit: from now on the limit counts.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # These need CAP_SETPCAP. Without it, no-new-privileges is enough.
    for capability in range(_MAX_CAPABILITIES):
        if not keep >> capability & 1:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_SECUREBITS, _NOROOT_NO_SETUID_FIXUP_NO_RAISE_LOCKED, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    user = _become_own_user(libc) if own_user and os.geteuid() == 0 else None
    kept = keep & effective_capabilities()
    header, data = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_CapabilityData * 2)()
    data[0].effective = data[0].permitted = kept & 0xFFFFFFFF
    data[1].effective = data[1].permitted = kept >> 32
    if libc.capset(ctypes.byref(header), data) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"privileges cannot be dropped: {os.strerror(code)}")
    return user


def effective_capabilities() -> int:
    """The set of capabilities that this process has in effect."""
    header, data = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_CapabilityData * 2)()
    if ctypes.CDLL(None).capget(ctypes.byref(header), data):
        return 0
    return int(data[0].effective) | int(data[1].effective) << 32


def _become_own_user(libc: ctypes.CDLL) -> int | None:
    user = own_user()
    parent, signal_at_its_end = os.getppid(), ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(signal_at_its_end), 0, 0, 0)
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        # A namespace without such a user, or a service without the capability.
        log.info("the daemon stays user %d: %s", os.getuid(), error.strerror)
        return None
    if signal_at_its_end.value:
        # The kernel clears it when a process becomes another user.
        libc.prctl(_PR_SET_PDEATHSIG, signal_at_its_end.value, 0, 0, 0)
        if os.getppid() != parent:
            signal.raise_signal(signal_at_its_end.value)
    return user


def _leave_file_system() -> tuple[int | None, bool]:
    """Make an empty directory our root, if we may. Returns a descriptor of /proc, and whether the root is empty.

    Neither is mounted anywhere: no path leads from them to other directories, not even ``..``, and no other process
    sees them. They go with this process.
    """
    if effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        try:
            return _enter_empty_root(), True
        except OSError as error:
            log.info("the daemon keeps its root directory: %s", error.strerror)
    with suppress(OSError):
        return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), False
    return None, False


def _enter_empty_root() -> int:
    """Make the root of a new, empty and read-only file system our root; returns a descriptor of a mount of /proc."""
    with ExitStack() as stack:

        def opened(number: int, *arguments: object) -> int:
            descriptor = system_call(number, *arguments)
            stack.callback(os.close, descriptor)
            return descriptor

        proc = system_call(_SYS_OPEN_TREE, _AT_FDCWD, b"/proc", _OPEN_TREE_CLONE | os.O_CLOEXEC)
        with ExitStack() as on_failure:
            on_failure.callback(os.close, proc)
            context = opened(_SYS_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
            system_call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            root = opened(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _RDONLY_NOSUID_NODEV_NOEXEC)
            os.fchdir(root)
            os.chroot(".")
            os.chdir("/")
            on_failure.pop_all()
    return proc


def _filter_calls(make: Callable[[], bytes]) -> bool:
    if not seccomp_bpf.can_filter():
        log.info("system calls are not filtered: not known on this machine")
        return False
    try:
        seccomp_bpf.install(make())
    except OSError as error:
        log.info("system calls are not filtered: %s", error.strerror)
        return False
    return True
