"""The seccomp allow-lists of a daemon and of its keeper: policies for ``seccomp_bpf``.

A call that is not listed is refused: one that libraries try and can do without gets ENOSYS or EPERM; one that only an
attacker in the process would make ends it. Where a call's arguments tell what it is for, they are checked. How the
lists were made, and how to make them again: docs/adr/0016.

Sources: the manual pages of section 2; signal(7), futex(2), and what glibc 2.36 to 2.42 and musl call
(pthread_create, malloc, getrandom, rseq).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Mapping

from mystfuse.system.seccomp_bpf import ALL_BITS, ALLOW, KILL_PROCESS, Argument, Rule, Rules, make_program, refuse

_NOT_PERMITTED, _NO_SUCH_CALL = refuse(errno.EPERM), refuse(errno.ENOSYS)

# <asm-generic/mman-common.h>, <linux/sched.h>, <asm-generic/fcntl.h>, <sys/mount.h>, <asm-generic/ioctls.h>; all of
# these are the same on x86-64 and arm64.
_PROT_EXEC = 4
_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | 0o20000000
"""Access for writing, O_CREAT, O_TRUNC, __O_TMPFILE."""
_MAKING = os.O_CREAT | os.O_TRUNC | 0o20000000
_FCNTLS = (0, 1, 2, 3, 4, 1030, 1031, 1032)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ: not F_SETOWN, by which the
kernel sends signals for us."""
_IOCTLS = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS and TCGETS2 (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_PR_SET_NAME = 15
_SOL_SOCKET, _SO_SNDBUF, _SO_RCVBUF = 1, 7, 8
_OTHER_THAN_MOUNTING = 32 | 4096 | 8192 | 16384 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20
"""MS_REMOUNT, BIND, MOVE, REC, UNBINDABLE, PRIVATE, SLAVE, SHARED."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Memory, threads, time, signals, waiting, and descriptors that are open.
_COMMON = _names("""
brk munmap mremap madvise mlock mlock2 munlock mlockall munlockall membarrier futex futex_wait futex_wake
futex_requeue futex_waitv set_robust_list get_robust_list rseq set_tid_address exit exit_group restart_syscall gettid
getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid sched_yield
sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu clock_gettime
clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage getrlimit wait4 waitid sysinfo uname
getrandom getitimer setitimer alarm rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait
rt_sigsuspend sigaltstack poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
epoll_pwait2 eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime read write readv writev pread64 pwrite64
preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 fstat newfstatat stat lstat statx fstatfs
getdents64 getcwd pipe pipe2 recvfrom recvmsg shutdown getsockname getpeername getsockopt
""")

_DAEMON_ALONE = _names("""
fallocate ftruncate fsync fdatasync fadvise64 sync_file_range splice memfd_create pidfd_open
""")

_KEEPER_ALONE = _names("""
umount2 openat2 readlink readlinkat sendmsg
""")

# No library makes these in a daemon: an attacker has taken it over.
_DEADLY = _names("""
execve execveat ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp mount umount2 pivot_root
chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr unshare setns bpf
perf_event_open io_uring_setup io_uring_enter io_uring_register userfaultfd add_key request_key keyctl init_module
finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff iopl ioperm open_by_handle_at
name_to_handle_at quotactl quotactl_fd acct settimeofday clock_settime clock_adjtime adjtimex sethostname
setdomainname syslog vhangup modify_ldt lookup_dcookie fanotify_init mknod mknodat move_pages migrate_pages
map_shadow_stack
""")

# Libraries may try these, and can do without.
_REFUSED = _names("""
fork vfork kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal socket connect bind listen accept
accept4 sendmsg sendmmsg recvmmsg chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat
utimensat setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat unlink unlinkat
rmdir mkdir mkdirat rename renameat renameat2 link linkat symlink symlinkat creat truncate chdir fchdir setuid setgid
setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset setpgid setsid setpriority sched_setscheduler
sched_setparam sched_setattr sched_setaffinity ioprio_set setrlimit shmget shmat shmctl msgget msgsnd msgrcv msgctl
semget semop semctl mq_open mq_unlink flock inotify_init inotify_init1 inotify_add_watch personality seccomp
landlock_create_ruleset landlock_add_rule landlock_restrict_self
""")


def daemon_filter() -> bytes:
    """The program for a daemon; it holds this process's number."""
    policy = _common(_WRITING)
    policy |= dict.fromkeys(_DAEMON_ALONE, ALLOW)
    return make_program(policy, _NO_SUCH_CALL)


def keeper_filter(extra_calls: Iterable[str] = ()) -> bytes:
    """The program for a privileged keeper, which mounts, unmounts, and reads the mount table.

    Args:
        extra_calls: system calls that it makes besides.
    """
    policy = _common(_MAKING)
    policy |= dict.fromkeys((*_KEEPER_ALONE, *extra_calls), ALLOW)
    policy["mount"] = [Rule(ALLOW, [Argument(3, 0, _OTHER_THAN_MOUNTING)]), Rule(KILL_PROCESS)]
    return make_program(policy, _NO_SUCH_CALL)


def _common(forbidden_to_open: int) -> dict[str, Rules]:
    """The part that both have.

    Args:
        forbidden_to_open: flags that open(2) must not have.
    """
    policy: dict[str, Rules] = dict.fromkeys(_REFUSED, _NOT_PERMITTED)
    policy |= dict.fromkeys(_DEADLY, KILL_PROCESS)
    policy |= dict.fromkeys(_COMMON, ALLOW)
    policy |= _by_arguments(forbidden_to_open)
    return policy


def _by_arguments(forbidden_to_open: int) -> Mapping[str, Rules]:
    refused = Rule(_NOT_PERMITTED)
    no_code: Rules = [Rule(ALLOW, [Argument(2, 0, _PROT_EXEC)]), refused]
    own_threads = Argument(0, os.getpid())
    return {
        "mmap": no_code,
        "mprotect": no_code,
        # A thread, and no process or namespace. glibc asks by clone3 first, whose flags are in memory.
        "clone": [Rule(ALLOW, [Argument(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW)]), refused],
        "open": [Rule(ALLOW, [Argument(1, 0, forbidden_to_open)]), Rule(refuse(errno.EACCES))],
        "openat": [Rule(ALLOW, [Argument(2, 0, forbidden_to_open)]), Rule(refuse(errno.EACCES))],
        "tgkill": [Rule(ALLOW, [own_threads]), refused],
        "fcntl": [*(Rule(ALLOW, [Argument(1, command)]) for command in _FCNTLS), Rule(refuse(errno.EINVAL))],
        "ioctl": [*(Rule(ALLOW, [Argument(1, request)]) for request in _IOCTLS), Rule(refuse(errno.ENOTTY))],
        "prctl": [Rule(ALLOW, [Argument(0, _PR_SET_NAME)]), Rule(refuse(errno.EINVAL))],
        "prlimit64": [
            *(Rule(ALLOW, [Argument(0, pid), Argument(2, 0, ALL_BITS)]) for pid in (0, os.getpid())),
            refused,
        ],
        "socketpair": [Rule(ALLOW, [Argument(0, socket.AF_UNIX)]), refused],
        # To the peer that it is connected to, and to no address.
        "sendto": [Rule(ALLOW, [Argument(4, 0, ALL_BITS)]), refused],
        "setsockopt": [
            *(Rule(ALLOW, [Argument(1, _SOL_SOCKET), Argument(2, name)]) for name in (_SO_SNDBUF, _SO_RCVBUF)),
            refused,
        ],
    }
