"""Changing what an inode says about itself: mode, owner, times, size, and extended attributes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from errno import EACCES, ENODATA, EPERM

from mystfuse.ext2.acl import Acl, acl_to_xattr
from mystfuse.ext2.blocks import Transaction
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.contents import mode_after_write, truncate, without_sgid
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.xattr import (
    INDEX_ACL_ACCESS,
    POSIX_ACL_ACCESS,
    POSIX_ACL_DEFAULT,
    read_block,
    read_body,
)
from mystfuse.ext2.xattr_changes import remove_attribute, set_attribute


@dataclass(frozen=True, slots=True)
class AttributeChanges:
    """What chmod(2), chown(2), truncate(2) and utimensat(2) ask for; None leaves a thing as it is."""

    mode: int | None = None
    """Permission bits, set-user-ID, set-group-ID and sticky; a file type in it is ignored."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def set_attributes(
    filesystem: FileSystem, transaction: Transaction, ino: int, changes: AttributeChanges, caller: Caller
) -> tuple[Inode, bool]:
    """Change an inode as asked.

    Returns:
        The inode, and whether ``changes.size`` is reached; if not, call again with the size alone.

    Raises:
        OSError: EPERM (immutable or append-only), EFBIG, EISDIR, ENOSPC.
        BlocksMissing, MystfuseError
    """
    inode = filesystem.inode(transaction, ino)
    if inode.is_immutable or (inode.is_append_only and changes != AttributeChanges()):
        raise OSError(EPERM, f"inode {ino} is immutable or append-only")
    is_reached = True
    if changes.size is not None:
        inode, is_reached = truncate(filesystem, transaction, inode, changes.size)
        inode = inode._replace(i_mode=mode_after_write(inode, caller))
    if changes.uid is not None or changes.gid is not None:
        inode = inode._replace(
            uid=inode.uid if changes.uid is None else changes.uid,
            gid=inode.gid if changes.gid is None else changes.gid,
            i_mode=_mode_after_chown(inode, caller),
        )
    if changes.mode is not None:
        inode = inode._replace(i_mode=stat.S_IFMT(inode.i_mode) | stat.S_IMODE(changes.mode))
        inode = _chmod_acl(filesystem, transaction, inode, caller)
    if changes.atime_ns is not None:
        inode = inode._replace(atime_ns=changes.atime_ns)
    if changes.mtime_ns is not None:
        inode = inode._replace(mtime_ns=changes.mtime_ns)
    inode = inode._replace(ctime_ns=transaction.now_ns)
    filesystem.inode_table.write(transaction, inode)
    return filesystem.inode_table.read_back(transaction, ino), is_reached


def set_xattr(
    filesystem: FileSystem, transaction: Transaction, ino: int, name: bytes, value: bytes, caller: Caller
) -> None:
    """Set an extended attribute by its full name; an access ACL changes the mode as well.

    Raises:
        OSError: ENOSPC, ERANGE, EOPNOTSUPP as ``set_attribute``; EINVAL, not a valid ACL; EACCES, a default ACL for
            something that is not a directory; EPERM, immutable or append-only.
        BlocksMissing, MystfuseError
    """
    inode = _changeable(filesystem, transaction, ino)
    stored: bytes | None = value
    if name in (POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT):
        acl = Acl.parse(value) if len(value) > 4 else None
        stored = acl.stored() if acl else None
        if name == POSIX_ACL_DEFAULT and not inode.is_directory:
            raise OSError(EACCES, f"inode {ino} is not a directory and can have no default ACL")
        if name == POSIX_ACL_ACCESS and acl:
            mode = inode.i_mode & ~0o777 | acl.mode
            if not caller.is_root and not caller.is_in_group(inode.gid):
                mode &= ~stat.S_ISGID
            inode = inode._replace(i_mode=mode)
            if acl.is_minimal:
                stored = None
    superblock, allocator = filesystem.superblock, filesystem.allocator
    if stored is None:
        try:
            inode = remove_attribute(superblock, allocator, transaction, inode, name, caller)
        except OSError as error:
            if error.errno != ENODATA:
                raise
    else:
        inode = set_attribute(superblock, allocator, transaction, inode, name, stored, caller)
    filesystem.inode_table.write(transaction, inode._replace(ctime_ns=transaction.now_ns))


def remove_xattr(filesystem: FileSystem, transaction: Transaction, ino: int, name: bytes, caller: Caller) -> None:
    """Remove an extended attribute by its full name.

    Raises:
        OSError: ENODATA, it is not there (a missing ACL is no error); EOPNOTSUPP; EPERM, immutable or append-only.
        BlocksMissing, MystfuseError
    """
    inode = _changeable(filesystem, transaction, ino)
    superblock, allocator = filesystem.superblock, filesystem.allocator
    try:
        inode = remove_attribute(superblock, allocator, transaction, inode, name, caller)
    except OSError as error:
        if error.errno != ENODATA or name not in (POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT):
            raise
    filesystem.inode_table.write(transaction, inode._replace(ctime_ns=transaction.now_ns))


def _changeable(filesystem: FileSystem, transaction: Transaction, ino: int) -> Inode:
    inode = filesystem.inode(transaction, ino)
    if inode.is_immutable or inode.is_append_only:
        raise OSError(EPERM, f"inode {ino} is immutable or append-only")
    return inode


def _mode_after_chown(inode: Inode, caller: Caller) -> int:
    """i_mode after the owner was changed: set-user-ID is lost, and set-group-ID of a file that the group may execute,
    whoever does it (chown(2); fs/open.c, chown_common)."""
    mode = inode.i_mode
    if stat.S_ISDIR(mode):
        return mode
    return without_sgid(inode, mode & ~stat.S_ISUID, caller)


def _chmod_acl(filesystem: FileSystem, transaction: Transaction, inode: Inode, caller: Caller) -> Inode:
    """Make the access ACL, if there is one, say what the mode says."""
    superblock = filesystem.superblock
    for attribute in (*read_body(inode), *read_block(superblock, transaction, inode)):
        if attribute.name_index == INDEX_ACL_ACCESS:
            acl = Acl.parse(acl_to_xattr(attribute.value, inode.ino)).after_chmod(inode.i_mode)
            return set_attribute(
                superblock, filesystem.allocator, transaction, inode, POSIX_ACL_ACCESS, acl.stored(), caller
            )
    return inode
