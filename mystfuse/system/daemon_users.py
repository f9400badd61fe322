"""Users that daemons of root become: one for each process, which owns nothing."""

from __future__ import annotations

import os

FIRST_OWN_USER = 0x7B000000
"""Plus the process number. No person, service, container or directory service has user IDs in this range (systemd's
UIDS-GIDS.md; the ranges of sssd, winbind and subuid(5))."""
_MAX_PROCESSES = 1 << 22
"""The kernel's PID_MAX_LIMIT."""


def own_user() -> int:
    """The user that this process may become: no other process of its namespace can be it at the same time."""
    return FIRST_OWN_USER + os.getpid()


def is_own_user(user: int) -> bool:
    """Whether a user can be a daemon of root: only root can become such a user."""
    return FIRST_OWN_USER <= user < FIRST_OWN_USER + _MAX_PROCESSES
