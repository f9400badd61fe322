"""Making files, directories, symbolic links, devices, FIFOs and sockets. Sources: fs/namei.c, fs/ext4/ialloc.c."""

from __future__ import annotations

import os
import stat
import struct
from errno import ENAMETOOLONG, ENOENT
from functools import partial

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.acl import Acl, acl_to_xattr
from mystfuse.ext2.block_map import check_not_encrypted
from mystfuse.ext2.block_map_changes import add_block
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import (
    EXT2_FL_INHERITED,
    EXT2_GOOD_OLD_INODE_SIZE,
    EXT2_N_BLOCKS,
    EXT2_OTHER_FLMASK,
    EXT2_REG_FLMASK,
    EXT4_DAX_FL,
    EXT4_EXTENTS_FL,
    PATH_MAX,
)
from mystfuse.ext2.directory_blocks import new_directory_block
from mystfuse.ext2.directory_changes import (
    changeable_directory,
    check_links,
    directory_for_new_name,
    insert_entry,
    write_directory,
)
from mystfuse.ext2.extent_format import EMPTY_ROOT
from mystfuse.ext2.inline_directory_changes import begin_inline
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.projects import inherit_project
from mystfuse.ext2.xattr import INDEX_ACL_DEFAULT, POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT
from mystfuse.ext2.xattr_changes import set_attribute

_NO_BLOCKS = bytes(4 * EXT2_N_BLOCKS)


def create(
    change: Change, parent: int, name: bytes, mode: int, rdev: int = 0, target: bytes = b"", umask: int = 0
) -> Inode:
    """Make a regular file, directory, symbolic link, device, FIFO or socket, as ``mode`` says.

    Args:
        mode: type and permissions.
        rdev: for devices, their number (``os.makedev``).
        target: for symbolic links, where to.
        umask: permissions that the caller takes away, unless a default ACL says what is inherited (umask(2)).

    Returns:
        The new inode.

    Raises:
        OSError: EEXIST, ENOENT (the directory has been removed), ENAMETOOLONG, EMLINK, ENOSPC, EPERM (immutable).
        BlocksMissing, MystfuseError
    """
    directory = directory_for_new_name(change, parent, name)
    is_directory = stat.S_ISDIR(mode)
    if is_directory:
        check_links(change, directory)
    inode = new_inode(change, directory, mode, 2 if is_directory else 1, rdev, target, umask)
    directory = insert_entry(change, directory, name, inode)
    write_directory(change, directory, links=int(is_directory))
    return change.read_back(inode.ino)


def create_nameless(change: Change, parent: int, mode: int, umask: int) -> Inode:
    """Make a regular file without a name, an orphan, as for a directory that may later get it: open(2), O_TMPFILE.

    Raises:
        OSError: ENOENT (the directory has been removed), EPERM (it is immutable), ENOSPC.
        BlocksMissing, MystfuseError
    """
    directory = changeable_directory(change, parent)
    inode = new_inode(change, directory, stat.S_IFREG | stat.S_IMODE(mode), 0, umask=umask)
    return change.read_back(inode.ino)


def new_inode(
    change: Change,
    directory: Inode,
    mode: int,
    links: int,
    rdev: int = 0,
    target: bytes = b"",
    umask: int = 0,
) -> Inode:
    """A new inode, written, for a name in ``directory``, with what it inherits from there; see ``create``.

    Args:
        links: i_links_count; without any, it is an orphan.
    """
    filesystem, transaction, superblock, now = change.filesystem, change.transaction, change.superblock, change.now_ns
    is_directory, is_regular = stat.S_ISDIR(mode), stat.S_ISREG(mode)
    check_not_encrypted(directory)
    gid = change.caller.gid
    if directory.i_mode & stat.S_ISGID:
        gid = directory.gid
        if is_directory:
            mode |= stat.S_ISGID
    flags = directory.i_flags & EXT2_FL_INHERITED
    if is_regular:
        flags &= EXT2_REG_FLMASK
    elif not is_directory:
        flags &= EXT2_OTHER_FLMASK
    i_block = _device_block(mode, rdev)
    if "extent" in superblock.features and (is_regular or is_directory or stat.S_ISLNK(mode)):
        # fs/ext4/ialloc.c, __ext4_new_inode.
        flags |= EXT4_EXTENTS_FL
        i_block = EMPTY_ROOT
    ino = filesystem.allocator.take_inode(transaction, directory, mode)
    extra_isize = superblock.new_extra_isize
    inode = Inode(
        ino,
        mode,
        change.caller.uid,
        gid,
        0,  # size
        now,  # atime_ns
        now,  # mtime_ns
        now,  # ctime_ns
        links,
        0,  # i_blocks
        flags,
        i_block,
        filesystem.next_generation(),
        0,  # i_file_acl
        bytes(superblock.s_inode_size - EXT2_GOOD_OLD_INODE_SIZE - extra_isize),
        extra_isize,
    )
    if is_regular:
        pass
    elif is_directory and superblock.has_inline_data and (inline := begin_inline(superblock, inode, directory.ino)):
        inode = inline
    elif is_directory:
        inode, number, block = add_block(change, inode, 0)
        new_directory_block(change, inode, number, block, directory.ino)
        inode = inode._replace(size=superblock.block_size)
    elif stat.S_ISLNK(mode):
        inode = _with_target(change, inode, target)
    inode = _inherit_acl(change, directory, inode, umask)
    filesystem.inode_table.write_new(transaction, inode)
    inherit_project(change, directory, inode)
    (transaction.released if links else transaction.orphaned).add(ino)
    transaction.on_commit.append(partial(filesystem.forget, ino))
    if is_regular and superblock.has_inline_data and not flags & EXT4_DAX_FL:
        transaction.on_commit.append(partial(filesystem.note_new_file, ino))
    return inode


def _with_target(change: Change, inode: Inode, target: bytes) -> Inode:
    """Put a symbolic link's target into i_block, or if it is too long into a block (fs/ext4/namei.c, ext4_symlink)."""
    if not target:
        raise OSError(ENOENT, "a symbolic link needs a target")
    if len(target) >= min(change.superblock.block_size, PATH_MAX):
        raise OSError(ENAMETOOLONG, f"a symbolic link's target of {len(target)} bytes")
    if len(target) < len(inode.i_block):
        flags = inode.i_flags & ~EXT4_EXTENTS_FL
        return inode._replace(i_block=target.ljust(len(inode.i_block), b"\0"), size=len(target), i_flags=flags)
    inode, _, block = add_block(change, inode, 0)
    block[: len(target)] = target
    return inode._replace(size=len(target))


def _device_block(mode: int, rdev: int) -> bytes:
    """i_block of a device: the old 8:8 encoding where it fits, else the new one (include/linux/kdev_t.h); of anything
    else zeros."""
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        return _NO_BLOCKS
    major, minor = os.major(rdev), os.minor(rdev)
    if major < 256 and minor < 256:
        old, new = major << 8 | minor, 0
    else:
        old, new = 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    return struct.pack("<II", old, new & 0xFFFFFFFF).ljust(len(_NO_BLOCKS), b"\0")


def _inherit_acl(change: Change, directory: Inode, inode: Inode, umask: int) -> Inode:
    """Give a new inode the ACLs that its directory's default ACL prescribes, or without one take the permissions in
    ``umask`` from it (fs/posix_acl.c, posix_acl_create)."""
    if inode.is_symlink:
        return inode
    stored = None
    if directory.i_file_acl or any(directory.extra):
        stored = change.find_attribute(directory, INDEX_ACL_DEFAULT)
    if stored is None:
        lost = inode.i_mode & umask & 0o777
        return inode._replace(i_mode=inode.i_mode & ~lost) if lost else inode
    try:
        default = Acl.parse(acl_to_xattr(stored, directory.ino))
    except OSError as error:
        raise CorruptFilesystem(f"directory inode {directory.ino}: its default ACL is not valid") from error
    access = default.inherited(inode.i_mode)
    inode = inode._replace(i_mode=inode.i_mode & ~0o777 | access.mode)
    if inode.is_directory:
        inode = set_attribute(change, inode, POSIX_ACL_DEFAULT, default.stored())
    if not access.is_minimal:
        inode = set_attribute(change, inode, POSIX_ACL_ACCESS, access.stored())
    return inode
