"""The flags of an inode that users see and set: chattr(1), lsattr(1).

Sources: fs/ext4/ioctl.c (ext4_fileattr_set, ext4_ioctl_setflags), fs/ext4/ext4.h (EXT4_FL_USER_VISIBLE,
EXT4_FL_USER_MODIFIABLE), fs/ioctl.c (fileattr_set_prepare).
"""

from __future__ import annotations

import os
from errno import EINVAL, EOPNOTSUPP, EPERM

from mystfuse.ext2.block_map import check_not_encrypted
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import (
    EXT2_APPEND_FL,
    EXT2_COMPR_FL,
    EXT2_DIRSYNC_FL,
    EXT2_IMMUTABLE_FL,
    EXT2_JOURNAL_DATA_FL,
    EXT2_NOATIME_FL,
    EXT2_NODUMP_FL,
    EXT2_NOTAIL_FL,
    EXT2_OTHER_FLMASK,
    EXT2_REG_FLMASK,
    EXT2_SECRM_FL,
    EXT2_SYNC_FL,
    EXT2_TOPDIR_FL,
    EXT2_UNRM_FL,
    EXT4_CASEFOLD_FL,
    EXT4_DAX_FL,
    EXT4_EXTENTS_FL,
    EXT4_PROJINHERIT_FL,
)
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.projects import set_project

VISIBLE = 0x725BDFFF
_SETTABLE = (
    EXT2_SECRM_FL | EXT2_UNRM_FL | EXT2_COMPR_FL | EXT2_SYNC_FL | EXT2_IMMUTABLE_FL | EXT2_APPEND_FL | EXT2_NODUMP_FL
    | EXT2_NOATIME_FL | EXT2_NOTAIL_FL | EXT2_DIRSYNC_FL | EXT2_TOPDIR_FL | EXT4_DAX_FL | EXT4_PROJINHERIT_FL
)  # fmt: skip
"""Without EXT2_JOURNAL_DATA_FL, which the kernel does not change where there is no journal."""
_ROOTS = EXT2_IMMUTABLE_FL | EXT2_APPEND_FL | EXT2_JOURNAL_DATA_FL


def set_flags(change: Change, ino: int, flags: int, among: int = VISIBLE, project: int | None = None) -> None:
    """Set those of the flags ``among`` that users may set; others keep their state.

    Args:
        project: the inode's new project, if it is to change.

    Raises:
        OSError: EOPNOTSUPP, EINVAL, a flag that ext2, or an inode of this type, does not have; EPERM, the inode is and
            stays immutable, belongs to another user, or the flag is for root alone. (Since Linux 5.13 the kernel checks
            that before.)
        BlocksMissing, MystfuseError
    """
    inode, caller = change.inode(ino), change.caller
    flags |= inode.i_flags & VISIBLE & ~among
    if not caller.is_root and (caller.uid != inode.uid or (flags ^ inode.i_flags) & _ROOTS):
        raise OSError(EPERM, f"inode {ino} is user {inode.uid}'s, or the flags {flags:#x} are for root alone")
    mask = ~0 if inode.is_directory else EXT2_REG_FLMASK if inode.is_regular else EXT2_OTHER_FLMASK
    if flags & ~VISIBLE or flags & ~mask & (_SETTABLE | EXT4_CASEFOLD_FL) or flags & EXT4_CASEFOLD_FL:
        raise OSError(EOPNOTSUPP, f"inode {ino} cannot have flags {flags:#x}")
    if (flags ^ inode.i_flags) & EXT4_EXTENTS_FL:
        if "extent" in change.superblock.features:
            raise OSError(EOPNOTSUPP, f"inode {ino}: its map stays what it is")
        raise OSError(EINVAL, f"inode {ino}: the file system has no extents")
    new = inode.i_flags & ~_SETTABLE | flags & _SETTABLE
    if inode.is_immutable and new & EXT2_IMMUTABLE_FL and new != inode.i_flags:
        raise OSError(EPERM, f"inode {ino} is immutable")
    change.write_inode(inode._replace(i_flags=new, ctime_ns=change.now_ns))
    if project is not None:
        set_project(change, inode, project)


def check_may_write(inode: Inode, flags: int) -> None:
    """Raise an error if a file must not be opened for writing or truncation.

    Args:
        flags: of open(2).

    Raises:
        OSError: EPERM: it is immutable, has fs-verity, or is append-only and could be changed elsewhere than at its
            end (fs/namei.c, may_open and inode_permission; fs/verity/open.c, fsverity_file_open).
        EncryptedContents: there is no key for it.
    """
    if inode.is_immutable or (inode.is_append_only and (not flags & os.O_APPEND or flags & os.O_TRUNC)):
        raise OSError(EPERM, f"inode {inode.ino} is immutable or append-only")
    if inode.has_verity:
        raise OSError(EPERM, f"inode {inode.ino} has fs-verity")
    check_not_encrypted(inode)
