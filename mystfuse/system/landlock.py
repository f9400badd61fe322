"""Landlock: a process gives up access to the file system, for good.

Sources: landlock(7), <linux/landlock.h>. The C library has no functions for it; why no Python library:
docs/adr/0011.
"""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from mystfuse.system import libc

log = logging.getLogger(__name__)

_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _TRUNCATE = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 14
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
"""What a rule for a file may permit."""
_ACCESS_FS = {1: 13, 2: 14, 3: 15, 5: 16}
"""The number of kinds of access to files that each version of Landlock can forbid."""
_BIND_TCP, _BIND_AND_CONNECT_TCP = 1, 3
"""Since version 4."""
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2
"""Since version 6: no abstract sockets of processes outside, and no signals to them."""
_WITH_SCOPES = 6
_PR_SET_NO_NEW_PRIVS = 38


class _Ruleset(ctypes.Structure):
    _fields_ = (("access_fs", ctypes.c_uint64), ("access_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


def restrict_file_access(readable: int | None) -> int:
    """Let this thread, and those it starts, open nothing from here on but files beneath one directory, for reading: not
    create, execute, remove, rename or mount anything, nor send signals to other processes, nor use TCP. Descriptors
    that are open stay what they are.

    No-new-privileges comes first. As far as the kernel's Landlock goes; none is no error.

    Args:
        readable: a descriptor of the directory; None for no directory.

    Returns:
        The version of Landlock that is in force; 0 for none.
    """
    try:
        version = _version()
    except OSError as error:
        log.info("the daemon may open files: the kernel has no Landlock (%s)", error.strerror)
        return 0
    rules = _forbid(version, _BIND_AND_CONNECT_TCP)
    # Fields that an older kernel does not know are zero, so it ignores them.
    try:
        _restrict(rules, [_PathBeneath(_READ_FILE | _READ_DIR, readable)] if readable is not None else [])
    except OSError as error:
        log.info("the daemon may open files: Landlock: %s", error.strerror)
        return 0
    return version


def restrict_to_paths(readable: Iterable[str], executable: Iterable[str], writable: Iterable[str]) -> int:
    """Let this process (which must have one thread), and what it starts, open only what is beneath these paths from
    here on, make files and directories only beneath the writable ones, send signals to each other alone, and listen on
    no TCP port. Paths that cannot be opened are left out. No-new-privileges comes first.

    Args:
        executable: programs beneath these may be executed, and read.
        writable: /dev/null always is.

    Returns:
        The version of Landlock that is in force; 0 for none.
    """
    reading = _READ_FILE | _READ_DIR
    writing = reading | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _MAKE_DIR | _REMOVE_FILE | _REMOVE_DIR
    wanted = [(path, reading) for path in readable] + [(path, reading | _EXECUTE) for path in executable]
    wanted += [(path, writing) for path in writable] + [(os.devnull, _READ_FILE | _WRITE_FILE)]
    with ExitStack() as stack:
        try:
            rules = _forbid(_version(), _BIND_TCP)
            permitted = []
            for path, access in wanted:
                with suppress(OSError):
                    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
                    is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                    permitted.append(
                        _PathBeneath(access & rules.access_fs & (-1 if is_directory else _OF_FILES), descriptor)
                    )
            _restrict(rules, permitted)
            return _version()
        except OSError:
            return 0


def leave_abstract_sockets() -> bool:
    """Keep this process (which must have one thread), and what it starts, from abstract sockets of others, and from
    nothing else; no-new-privileges is set with it. Returns whether the kernel can do that (Landlock 6, Linux 6.12)."""
    try:
        if _version() < _WITH_SCOPES:
            return False
        libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Without rules for files: with them, mounting would be forbidden.
        _restrict(_Ruleset(scoped=_SCOPE_ABSTRACT_UNIX_SOCKET))
    except OSError:
        return False
    return True


def _version() -> int:
    return libc.system_call(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)


def _forbid(version: int, tcp: int) -> _Ruleset:
    """Everything that a version of Landlock can forbid, of TCP only some."""
    kinds = max(kinds for since, kinds in _ACCESS_FS.items() if since <= version)
    return _Ruleset(
        access_fs=(1 << kinds) - 1,
        access_net=tcp if version >= 4 else 0,
        scoped=_SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= _WITH_SCOPES else 0,
    )


def _restrict(rules: _Ruleset, permitted: Iterable[_PathBeneath] = ()) -> None:
    ruleset = libc.system_call(_SYS_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    try:
        for path in permitted:
            # If it fails, the process can open nothing there.
            with suppress(OSError):
                libc.system_call(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(path), 0)
        libc.system_call(_SYS_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
