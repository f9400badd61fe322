"""Projects: the id that an inode has (feature ``project``), which quotas count by, and what may not leave its project.

Sources: fs/ext4/ialloc.c (__ext4_new_inode), fs/ext4/ioctl.c (ext4_ioctl_setproject), fs/ext4/namei.c (ext4_link,
ext4_rename, ext4_cross_rename), fs/ext4/inode.c (__ext4_iget).
"""

from __future__ import annotations

from errno import EOPNOTSUPP, EOVERFLOW, EXDEV

from mystfuse.ext2.blocks import Blocks
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_GOOD_OLD_INODE_SIZE, EXT4_PROJINHERIT_FL
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import Inode

_PROJECT_OFFSET = 156
"""Of i_projid."""
_NEEDED_EXTRA = _PROJECT_OFFSET + 4 - EXT2_GOOD_OLD_INODE_SIZE


def project_of(filesystem: FileSystem, blocks: Blocks, inode: Inode) -> int:
    """The project of an inode; 0 if it has none.

    Raises:
        BlocksMissing, MystfuseError
    """
    if "project" not in filesystem.superblock.features or inode.i_extra_isize < _NEEDED_EXTRA:
        return 0
    return filesystem.inode_table.field(blocks, inode.ino, _PROJECT_OFFSET)


def check_project(change: Change, directory: Inode, inode: Inode) -> None:
    """Raise OSError (EXDEV) if ``inode`` must not get a name in ``directory``, whose project is inherited, and another
    one."""
    if directory.i_flags & EXT4_PROJINHERIT_FL:
        filesystem, transaction = change.filesystem, change.transaction
        if project_of(filesystem, transaction, directory) != project_of(filesystem, transaction, inode):
            raise OSError(EXDEV, f"inode {inode.ino} is not of the project of directory inode {directory.ino}")


def inherit_project(change: Change, directory: Inode, inode: Inode) -> None:
    """Give a new inode, which has been written, the project that it inherits from its directory."""
    if directory.i_flags & EXT4_PROJINHERIT_FL and inode.i_extra_isize >= _NEEDED_EXTRA:
        project = project_of(change.filesystem, change.transaction, directory)
        if project:
            change.filesystem.inode_table.set_field(change.transaction, inode.ino, _PROJECT_OFFSET, project)


def set_project(change: Change, inode: Inode, project: int) -> None:
    """Move an inode into another project.

    Raises:
        OSError: EOPNOTSUPP, the file system has no projects; EOVERFLOW, the inode has no room for one.
        BlocksMissing, MystfuseError
    """
    superblock = change.superblock
    if "project" not in superblock.features or superblock.s_inode_size == EXT2_GOOD_OLD_INODE_SIZE:
        if project:
            raise OSError(EOPNOTSUPP, "the file system has no projects")
        return
    if project == project_of(change.filesystem, change.transaction, inode):
        return
    if inode.i_extra_isize < _NEEDED_EXTRA:
        raise OSError(EOVERFLOW, f"inode {inode.ino} has no room for a project")
    change.filesystem.inode_table.set_field(change.transaction, inode.ino, _PROJECT_OFFSET, project)
