"""Giving up what a process does not need any more, for good: privileges, and the file system.

The calling process must have one thread: each of these is a property of a thread, which those it starts inherit.

Sources: prctl(2), capabilities(7), <linux/capability.h>, landlock(7), <linux/landlock.h>. Landlock has no functions in
the C library; why no library of Python's is used is told in docs/adr/0011.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

# <linux/prctl.h>, <linux/securebits.h>
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 28, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NOROOT_NO_SETUID_FIXUP_NO_RAISE_LOCKED = 0xEF
"""SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP, SECBIT_NO_CAP_AMBIENT_RAISE, and the locks of all four bits."""
_MAX_CAPABILITIES = 64
_CAPABILITY_VERSION_3 = 0x20080522

_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ACCESS_FS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Since which version of Landlock how many kinds of access to files can be forbidden."""
_BIND_AND_CONNECT_TCP = 3
"""Since version 4."""
_SCOPE_ABSTRACT_UNIX_SOCKET_AND_SIGNAL = 3
"""Since version 6: no abstract sockets of processes outside, and no signals to them."""
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _Ruleset(ctypes.Structure):
    _fields_ = (("access_fs", ctypes.c_uint64), ("access_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


def drop_privileges() -> None:
    """No capabilities from here on, and no program that is executed has more privileges than we have.

    Raises:
        OSError: the system refuses it, which it has no reason to.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Root may lock memory without limit by a capability alone: from now on by the limit.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # These need CAP_SETPCAP. Without it there is no more than what no-new-privileges takes care of.
    for capability in range(_MAX_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_SECUREBITS, _NOROOT_NO_SETUID_FIXUP_NO_RAISE_LOCKED, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, data = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (_CapabilityData * 2)()
    if libc.capset(ctypes.byref(header), data) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"privileges cannot be dropped: {os.strerror(code)}")


def restrict_file_access(readable: Iterable[str]) -> int:
    """Let this process open nothing from here on but files beneath the directories ``readable``, for reading: not
    create, execute, remove, rename or mount anything, nor send signals to others, nor use TCP. Descriptors that are
    open stay what they are.

    ``drop_privileges`` comes first. As far as the kernel's Landlock goes; none is no error.

    Returns:
        The version of Landlock that is in force; 0 for none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    if version < 1:
        log.info("the daemon may open files: the kernel has no Landlock (%s)", os.strerror(ctypes.get_errno()))
        return 0
    kinds = max(kinds for since, kinds in _ACCESS_FS.items() if since <= version)
    rules = _Ruleset(
        access_fs=(1 << kinds) - 1,
        access_net=_BIND_AND_CONNECT_TCP if version >= 4 else 0,
        scoped=_SCOPE_ABSTRACT_UNIX_SOCKET_AND_SIGNAL if version >= 6 else 0,
    )
    # What an older kernel does not know is zero, and so does not matter to it.
    ruleset = libc.syscall(_SYS_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    if ruleset < 0:
        log.info("the daemon may open files: Landlock: %s", os.strerror(ctypes.get_errno()))
        return 0
    try:
        for path in readable:
            with suppress(OSError):
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                rule = _PathBeneath(_READ_FILE | _READ_DIR, fd)
                libc.syscall(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
                os.close(fd)
        if libc.syscall(_SYS_RESTRICT_SELF, ruleset, 0):
            log.info("the daemon may open files: Landlock: %s", os.strerror(ctypes.get_errno()))
            return 0
    finally:
        os.close(ruleset)
    return version


def needed_directories() -> Iterator[str]:
    """What a daemon reads after it has been confined: code that is imported when it is needed, the groups of processes
    that ask for something (/proc/PID/status; what is private in there stays so), and how much memory there is."""
    yield from ("/proc", "/sys/fs/cgroup", *_LIBRARIES)
    yield str(Path(__file__).parent)
    # The standard library; sysconfig, which knows all of these, takes 5 ms to ask.
    yield os.path.dirname(os.__file__)
    yield f"{sys.base_prefix}/lib"
    # Not all of sys.path: the directory that we were started in can be there.
    yield from (path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages"))
    if trio := sys.modules.get("trio"):
        yield str(Path(str(trio.__file__)).parents[1])
