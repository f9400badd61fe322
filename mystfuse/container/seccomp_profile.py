"""Which system calls a program under ``exec`` may make: those that container engines leave a program by default.

The facts about which call engines refuse without which capability are from Docker's default profile (moby/profiles,
seccomp/default_linux.go, of 2025); what is a call that no kernel has yet is ENOSYS there too (runc). Ours is stricter
in two ioctls, which act on the caller's terminal, and in 32-bit programs, which have calls of their own.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from mystfuse.system.seccomp_bpf import ALLOW, Argument, Rule, Rules, can_filter, make_program, refuse
from mystfuse.system.syscall_numbers import known_syscalls

_REFUSED_WITHOUT: Mapping[str, str] = {
    "CAP_SYS_ADMIN": """
        bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd
        setdomainname sethostname setns syslog umount2 unshare
    """,
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday clock_settime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
}
"""Calls by the capability with which engines allow them; a program under ``exec`` has none of these."""
_NEVER_ALLOWED = """
    add_key request_key keyctl
    io_uring_setup io_uring_enter io_uring_register userfaultfd
    kexec_load kexec_file_load swapon swapoff pivot_root
    migrate_pages move_pages
    _sysctl create_module get_kernel_syms query_module nfsservctl uselib ustat sysfs
    getpmsg putpmsg afs_syscall tuxcall security vserver
"""
"""Calls that engines leave to no container: keyrings belong to users, not to containers; io_uring and userfaultfd have
been the way to many a hole; the rest changes the machine or is long gone."""

# <linux/sched.h>: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_VSOCK = 40
# <asm-generic/ioctls.h>; TIOCLINUX is in console_ioctl(2).
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, both with UNAME26, and asking which is in force."""

_EPERM, _ENOSYS = refuse(errno.EPERM), refuse(errno.ENOSYS)


def program_policy() -> dict[str, Rules]:
    """The action for each known call."""
    policy: dict[str, Rules] = dict.fromkeys(known_syscalls(), ALLOW)
    for names in (*_REFUSED_WITHOUT.values(), _NEVER_ALLOWED):
        policy.update(dict.fromkeys(names.split(), _EPERM))
    # No filter sees clone3's flags, which are in memory: the C library falls back to clone.
    policy["clone3"] = _ENOSYS
    policy["clone"] = [Rule(ALLOW, [Argument(0, 0, _NEW_NAMESPACES)]), Rule(_EPERM)]
    # Sockets to the host of a virtual machine.
    policy["socket"] = [Rule(_EPERM, [Argument(0, _AF_VSOCK)]), Rule(ALLOW)]
    # They type into the terminal, which is the caller's too.
    policy["ioctl"] = [*(Rule(_EPERM, [Argument(1, request)]) for request in (_TIOCSTI, _TIOCLINUX)), Rule(ALLOW)]
    policy["personality"] = [*(Rule(ALLOW, [Argument(0, value)]) for value in _PERSONALITIES), Rule(_EPERM)]
    return policy


def program_filter() -> bytes | None:
    """The program for bwrap(1)'s ``--seccomp``; None on a machine whose calls we do not know."""
    return make_program(program_policy(), _ENOSYS) if can_filter() else None
