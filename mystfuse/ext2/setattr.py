"""Changing mode, owner, size and times of an inode: chmod(2), chown(2), truncate(2), utimensat(2)."""

from __future__ import annotations

import stat
from errno import EPERM
from typing import NamedTuple

from mystfuse.ext2.acl import Acl, acl_to_xattr
from mystfuse.ext2.change import Change
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.privileges import Loses, mode_after_chown, mode_after_write, without_capabilities
from mystfuse.ext2.truncate import truncate
from mystfuse.ext2.xattr import INDEX_ACL_ACCESS, POSIX_ACL_ACCESS
from mystfuse.ext2.xattr_changes import set_attribute


class AttributeChanges(NamedTuple):
    """The changes that chmod(2), chown(2), truncate(2) and utimensat(2) request; None for no change."""

    mode: int | None = None
    """Permission bits, set-user-ID, set-group-ID and sticky; a file type in it is ignored."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    is_touch: bool = False
    """Both times become the present one, and nothing else changes: that may be done to an append-only file."""


def set_attributes(
    change: Change, ino: int, changes: AttributeChanges, loses: Loses = Loses.BY_CALLER
) -> tuple[Inode, bool]:
    """Change an inode as asked.

    Args:
        loses: the privileges that the file loses by a change of size or owner. ``ALL`` without either is a chown(2)
            that keeps both owners.

    Returns:
        The inode, and whether ``changes.size`` is reached; if not, call again with the size alone.

    Raises:
        OSError: EPERM (immutable or append-only), EFBIG, EISDIR, ENOSPC.
        BlocksMissing, MystfuseError
    """
    inode = change.inode(ino)
    if inode.is_immutable or (inode.is_append_only and not changes.is_touch and changes != AttributeChanges()):
        raise OSError(EPERM, f"inode {ino} is immutable or append-only")
    is_reached = True
    if changes.size is not None:
        inode, is_reached = truncate(change, inode, changes.size)
        inode = inode._replace(i_mode=mode_after_write(inode, change.caller, loses))
    is_chown = changes.uid is not None or changes.gid is not None or (changes.size is None and loses is Loses.ALL)
    if is_chown:
        inode = inode._replace(
            uid=inode.uid if changes.uid is None else changes.uid,
            gid=inode.gid if changes.gid is None else changes.gid,
            i_mode=mode_after_chown(inode, change.caller),
        )
    if loses.takes_capabilities and (is_chown or changes.size is not None) and not inode.is_directory:
        inode = without_capabilities(change, inode)
    if changes.mode is not None:
        inode = inode._replace(i_mode=stat.S_IFMT(inode.i_mode) | stat.S_IMODE(changes.mode))
        inode = _chmod_acl(change, inode)
    inode = inode._replace(
        atime_ns=inode.atime_ns if changes.atime_ns is None else changes.atime_ns,
        mtime_ns=inode.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
        ctime_ns=change.now_ns,
    )
    change.write_inode(inode)
    return change.read_back(ino), is_reached


def _chmod_acl(change: Change, inode: Inode) -> Inode:
    """Make the access ACL, if there is one, agree with the mode."""
    stored = change.find_attribute(inode, INDEX_ACL_ACCESS)
    if stored is None:
        return inode
    acl = Acl.parse(acl_to_xattr(stored, inode.ino)).after_chmod(inode.i_mode)
    return set_attribute(change, inode, POSIX_ACL_ACCESS, acl.stored())
