"""What a file loses when its contents or its owner change: set-user-ID, set-group-ID and capabilities, which let a
program run with more than its caller's privileges. Sources: fs/inode.c, file_remove_privs; fs/attr.c, notify_change."""

from __future__ import annotations

import stat
from enum import Enum, auto

from mystfuse.ext2.caller import Caller
from mystfuse.ext2.change import Change
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.xattr import read_all, split_name
from mystfuse.ext2.xattr_changes import remove_attribute

CAPABILITY = b"security.capability"
_CAPABILITY = split_name(CAPABILITY)


class Loses(Enum):
    """What a regular file loses by a write or truncation."""

    BY_CALLER = auto()
    """Set-user-ID and set-group-ID, unless the caller is root. The kernel itself removes capabilities before."""
    NOTHING = auto()
    """It was written by way of a mapping (mmap)."""
    CAPABILITIES = auto()
    """Capabilities alone: the caller has CAP_FSETID."""
    ALL = auto()
    """Capabilities, set-user-ID and set-group-ID: the caller does not have it."""

    @property
    def takes_capabilities(self) -> bool:
        return self in (Loses.CAPABILITIES, Loses.ALL)


def mode_after_write(inode: Inode, caller: Caller, loses: Loses = Loses.BY_CALLER) -> int:
    """i_mode after a write or truncation (fs/attr.c, setattr_should_drop_suidgid)."""
    mode = inode.i_mode
    keeps = caller.is_root if loses is Loses.BY_CALLER else loses is not Loses.ALL
    if keeps or not stat.S_ISREG(mode):
        return mode
    return _without_sgid(inode, mode & ~stat.S_ISUID, caller)


def mode_after_chown(inode: Inode, caller: Caller) -> int:
    """i_mode after a change of owner: it loses set-user-ID, and set-group-ID of a file that the group may execute, for
    every caller (chown(2); fs/open.c, chown_common)."""
    mode = inode.i_mode
    if stat.S_ISDIR(mode):
        return mode
    return _without_sgid(inode, mode & ~stat.S_ISUID, caller)


def _without_sgid(inode: Inode, mode: int, caller: Caller) -> int:
    """``mode`` without set-group-ID if the group may execute the file, or ``caller`` is not in it (fs/attr.c,
    setattr_should_drop_sgid; without execution the bit once meant mandatory locking)."""
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not (caller.is_root or caller.is_in_group(inode.gid))):
        mode &= ~stat.S_ISGID
    return mode


def without_capabilities(change: Change, inode: Inode) -> Inode:
    """The inode, not written, without ``security.capability``.

    Raises:
        OSError: ENOSPC, its attribute block is shared, and there is no room for one of its own.
        BlocksMissing, MystfuseError
    """
    for attribute in read_all(change.superblock, change.transaction, inode):
        if (attribute.name_index, attribute.suffix) == _CAPABILITY:
            return remove_attribute(change, inode, CAPABILITY)
    return inode
