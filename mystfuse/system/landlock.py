"""Landlock: a process gives up access to the file system, for good.

Sources: landlock(7), <linux/landlock.h>. The C library has no functions for it; why no Python library:
docs/adr/0011.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress

from mystfuse.system import libc

log = logging.getLogger(__name__)

_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_ACCESS_FS = {1: 13, 2: 14, 3: 15, 5: 16}
"""The number of kinds of access to files that each version of Landlock can forbid."""
_BIND_AND_CONNECT_TCP = 3
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
    kinds = max(kinds for since, kinds in _ACCESS_FS.items() if since <= version)
    rules = _Ruleset(
        access_fs=(1 << kinds) - 1,
        access_net=_BIND_AND_CONNECT_TCP if version >= 4 else 0,
        scoped=_SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= _WITH_SCOPES else 0,
    )
    # Fields that an older kernel does not know are zero, so it ignores them.
    try:
        _restrict(rules, _PathBeneath(_READ_FILE | _READ_DIR, readable) if readable is not None else None)
    except OSError as error:
        log.info("the daemon may open files: Landlock: %s", error.strerror)
        return 0
    return version


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


def _restrict(rules: _Ruleset, readable: _PathBeneath | None = None) -> None:
    ruleset = libc.system_call(_SYS_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    try:
        if readable is not None:
            # If it fails, the process can read nothing at all.
            with suppress(OSError):
                libc.system_call(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(readable), 0)
        libc.system_call(_SYS_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
