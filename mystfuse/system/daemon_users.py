"""Users that daemons of root become: each is one alone, and owns nothing."""

from __future__ import annotations

import os

FIRST_OWN_USER = 0x7B000000
"""From here on they are users by their process numbers: nobody else is, neither people nor services, containers or
directory services (systemd's UIDS-GIDS.md; the ranges of sssd, winbind and subuid(5))."""
_MAX_PROCESSES = 1 << 22
"""The kernel's PID_MAX_LIMIT."""


def own_user() -> int:
    """The user that this process may become: no other process of its name space can be it at the same time."""
    return FIRST_OWN_USER + os.getpid()


def is_own_user(user: int) -> bool:
    """Whether a user can be a daemon of root: nobody becomes such a user but by root's doing."""
    return FIRST_OWN_USER <= user < FIRST_OWN_USER + _MAX_PROCESSES
