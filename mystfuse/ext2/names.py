"""Operations on names: making, linking, removing and renaming. Each happens whole or not at all.

What the kernel's VFS checks before it asks a file system (types, sticky directories, permissions) is checked again here
as far as the file system's own order depends on it. Sources: fs/namei.c, fs/ext4/namei.c.
"""

from __future__ import annotations

import os
import stat
import struct
from errno import (
    EEXIST,
    EINVAL,
    EISDIR,
    EMLINK,
    ENAMETOOLONG,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
)

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.acl import Acl, acl_to_xattr
from mystfuse.ext2.block_map_changes import map_for_writing
from mystfuse.ext2.blocks import Transaction
from mystfuse.ext2.caller import Caller
from mystfuse.ext2.constants import (
    EXT2_FL_INHERITED,
    EXT2_GOOD_OLD_INODE_SIZE,
    EXT2_LINK_MAX,
    EXT2_N_BLOCKS,
    EXT2_NAME_LEN,
    EXT2_OTHER_FLMASK,
    EXT2_REG_FLMASK,
    EXT2_ROOT_INO,
    PATH_MAX,
)
from mystfuse.ext2.directory import read_parent
from mystfuse.ext2.directory_changes import (
    Place,
    find_place,
    find_place_again,
    insert_entry,
    new_directory_block,
    point_entry,
    remove_entry,
    set_parent,
)
from mystfuse.ext2.filesystem import FileSystem
from mystfuse.ext2.inode import EXTRA_ISIZE, Inode
from mystfuse.ext2.xattr import (
    INDEX_ACL_DEFAULT,
    POSIX_ACL_ACCESS,
    POSIX_ACL_DEFAULT,
    read_block,
    read_body,
)
from mystfuse.ext2.xattr_changes import set_attribute

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
"""Flags of renameat2(2)."""


def create(
    filesystem: FileSystem,
    transaction: Transaction,
    parent: int,
    name: bytes,
    mode: int,
    caller: Caller,
    rdev: int = 0,
    target: bytes = b"",
) -> Inode:
    """Make something new: a regular file, directory, symbolic link, device, FIFO or socket, as ``mode`` says.

    Args:
        mode: type and permissions, the caller's umask already applied.
        rdev: for devices, their number (``os.makedev``).
        target: for symbolic links, where to.

    Returns:
        The new inode.

    Raises:
        OSError: EEXIST, ENOENT (the directory has been removed), ENAMETOOLONG, EMLINK, ENOSPC, EPERM (immutable).
        BlocksMissing, MystfuseError
    """
    superblock = filesystem.superblock
    directory = _changeable_directory(filesystem, transaction, parent)
    _check_name(name)
    if filesystem.name_indexes.find(superblock, transaction, directory, name):
        raise OSError(EEXIST, f"{name!r} is there already")
    is_directory = stat.S_ISDIR(mode)
    if is_directory and directory.i_links_count >= EXT2_LINK_MAX:
        raise OSError(EMLINK, f"directory inode {parent} has {directory.i_links_count} links")
    gid = caller.gid
    if directory.i_mode & stat.S_ISGID:
        gid = directory.gid
        if is_directory:
            mode |= stat.S_ISGID
    flags = directory.i_flags & EXT2_FL_INHERITED
    if stat.S_ISREG(mode):
        flags &= EXT2_REG_FLMASK
    elif not is_directory:
        flags &= EXT2_OTHER_FLMASK
    ino = filesystem.allocator.take_inode(transaction, directory, mode)
    extra_isize = min(superblock.s_inode_size - EXT2_GOOD_OLD_INODE_SIZE, EXTRA_ISIZE)
    now = transaction.now_ns
    inode = Inode(
        ino=ino,
        i_mode=mode,
        uid=caller.uid,
        gid=gid,
        size=0,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
        i_links_count=2 if is_directory else 1,
        i_blocks=0,
        i_flags=flags,
        i_block=_device_block(rdev) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else bytes(4 * EXT2_N_BLOCKS),
        i_generation=filesystem.next_generation(),
        i_file_acl=0,
        extra=bytes(superblock.s_inode_size - EXT2_GOOD_OLD_INODE_SIZE - extra_isize),
        i_extra_isize=extra_isize,
    )
    if is_directory:
        inode, block = _first_block(filesystem, transaction, inode, caller)
        new_directory_block(superblock, block, ino, parent)
        inode = inode._replace(size=superblock.block_size)
    elif stat.S_ISLNK(mode):
        inode = _with_target(filesystem, transaction, inode, target, caller)
    inode = _inherit_acl(filesystem, transaction, directory, inode, caller)
    filesystem.inode_table.write_new(transaction, inode)
    directory = _enter(filesystem, transaction, directory, name, inode, caller)
    _write_directory(filesystem, transaction, directory, links=int(is_directory))
    transaction.released.add(ino)
    transaction.on_commit.append(lambda: filesystem.forget(ino))
    return filesystem.inode_table.read_back(transaction, ino)


def link(filesystem: FileSystem, transaction: Transaction, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
    """Give inode ``ino`` another name; returns the inode.

    Raises:
        OSError: EEXIST, ENOENT (no name is left, or the directory is removed), EMLINK, EPERM (a directory, immutable or
            append-only), ENAMETOOLONG, ENOSPC.
        BlocksMissing, MystfuseError
    """
    superblock = filesystem.superblock
    inode = filesystem.inode(transaction, ino)
    directory = _changeable_directory(filesystem, transaction, parent)
    _check_name(name)
    if filesystem.name_indexes.find(superblock, transaction, directory, name):
        raise OSError(EEXIST, f"{name!r} is there already")
    if inode.is_directory or inode.is_immutable or inode.is_append_only:
        raise OSError(EPERM, f"inode {ino} is a directory, immutable or append-only")
    if not inode.i_links_count:
        raise OSError(ENOENT, f"inode {ino} has been removed")
    if inode.i_links_count >= EXT2_LINK_MAX:
        raise OSError(EMLINK, f"inode {ino} has {inode.i_links_count} links")
    inode = inode._replace(i_links_count=inode.i_links_count + 1, ctime_ns=transaction.now_ns)
    filesystem.inode_table.write(transaction, inode)
    directory = _enter(filesystem, transaction, directory, name, inode, caller)
    _write_directory(filesystem, transaction, directory)
    return filesystem.inode_table.read_back(transaction, ino)


def remove(filesystem: FileSystem, transaction: Transaction, parent: int, name: bytes, is_rmdir: bool) -> Inode:
    """Remove a name: unlink(2), or rmdir(2). Returns the inode it referred to, an orphan if that was its last name.

    Raises:
        OSError: ENOENT, ENOTDIR or EISDIR (the other is wanted), ENOTEMPTY, EPERM (immutable or append-only).
        BlocksMissing, MystfuseError
    """
    superblock = filesystem.superblock
    transaction.gives_back = True
    directory = _changeable_directory(filesystem, transaction, parent)
    place = _existing(filesystem, transaction, directory, name)
    inode = _referred(filesystem, transaction, directory, place)
    _check_removable(directory, inode)
    if is_rmdir != inode.is_directory:
        raise OSError(ENOTDIR if is_rmdir else EISDIR, f"{name!r} is {'not ' if is_rmdir else ''}a directory")
    if is_rmdir and not filesystem.name_indexes.is_empty(superblock, transaction, inode):
        raise OSError(ENOTEMPTY, f"{name!r} is not empty")
    remove_entry(superblock, filesystem.name_indexes, transaction, directory, name, place)
    _drop_link(filesystem, transaction, inode)
    _write_directory(filesystem, transaction, directory, links=-int(is_rmdir))
    return filesystem.inode_table.read_back(transaction, inode.ino)


def rename(
    filesystem: FileSystem,
    transaction: Transaction,
    old_parent: int,
    old_name: bytes,
    new_parent: int,
    new_name: bytes,
    flags: int,
    caller: Caller,
    old_ancestors: frozenset[int],
    new_ancestors: frozenset[int],
) -> Inode | None:
    """Rename, replacing what has the new name; with RENAME_EXCHANGE the two names change places.

    Args:
        old_ancestors: the directories that ``old_parent`` is in, itself included, up to the root; may be empty when
            both parents are the same.
        new_ancestors: the same for ``new_parent``.

    Returns:
        The inode that was replaced, or None.

    Raises:
        OSError: EINVAL (a directory into itself, or unknown flags), ENOENT, EEXIST, ENOTEMPTY, ENOTDIR, EISDIR, EMLINK,
            EPERM, ENAMETOOLONG, ENOSPC.
        BlocksMissing, MystfuseError
    """
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
        raise OSError(EINVAL, f"rename flags {flags:#x}")
    superblock = filesystem.superblock
    old_directory = _changeable_directory(filesystem, transaction, old_parent)
    new_directory = _changeable_directory(filesystem, transaction, new_parent)
    _check_name(new_name)
    old_place = _existing(filesystem, transaction, old_directory, old_name)
    inode = _referred(filesystem, transaction, old_directory, old_place)
    if inode.ino in new_ancestors:
        raise OSError(EINVAL, f"directory inode {inode.ino} cannot be moved into itself")
    new_place = find_place(superblock, filesystem.name_indexes, transaction, new_directory, new_name)
    _check_removable(old_directory, inode)
    if flags & RENAME_EXCHANGE:
        if new_place is None:
            raise OSError(ENOENT, f"there is no {new_name!r}")
        if new_place.ino in old_ancestors:
            raise OSError(EINVAL, f"directory inode {new_place.ino} cannot be moved into itself")
        _exchange(filesystem, transaction, old_directory, old_place, new_directory, new_place)
        return None
    if new_place is not None and new_place.ino in old_ancestors:
        raise OSError(ENOTEMPTY, f"directory inode {new_place.ino} holds what is to replace it")
    if new_place is not None and flags & RENAME_NOREPLACE:
        raise OSError(EEXIST, f"{new_name!r} is there already")
    if new_place is not None and new_place.ino == inode.ino:
        return None
    moves = inode.is_directory and old_parent != new_parent
    replaced = None
    if new_place is not None:
        replaced = _referred(filesystem, transaction, new_directory, new_place)
        _check_replaceable(filesystem, transaction, new_directory, inode, replaced)
    elif moves and new_directory.i_links_count >= EXT2_LINK_MAX:
        raise OSError(EMLINK, f"directory inode {new_parent} has {new_directory.i_links_count} links")
    if moves:
        read_parent(superblock, transaction, inode)
    if new_place is not None and replaced is not None:
        point_entry(superblock, transaction, new_place, inode.ino, inode.i_mode)
        _drop_link(filesystem, transaction, replaced)
    else:
        new_directory = _enter(filesystem, transaction, new_directory, new_name, inode, caller)
    if old_parent == new_parent:
        old_directory = new_directory
    # The new entry may have been put between the old one and the one in front of it.
    old_place = find_place_again(superblock, transaction, old_directory, old_name, old_place)
    remove_entry(superblock, filesystem.name_indexes, transaction, old_directory, old_name, old_place)
    filesystem.inode_table.write(transaction, inode._replace(ctime_ns=transaction.now_ns))
    if moves:
        set_parent(superblock, transaction, inode, new_parent)
    lost = int(replaced is not None and replaced.is_directory)
    if old_parent == new_parent:
        _write_directory(filesystem, transaction, new_directory, links=-lost)
    else:
        _write_directory(filesystem, transaction, old_directory, links=-int(moves))
        _write_directory(filesystem, transaction, new_directory, links=int(moves) - lost)
    return None if replaced is None else filesystem.inode_table.read_back(transaction, replaced.ino)


def _exchange(
    filesystem: FileSystem,
    transaction: Transaction,
    old_directory: Inode,
    old_place: Place,
    new_directory: Inode,
    new_place: Place,
) -> None:
    superblock = filesystem.superblock
    inode = _referred(filesystem, transaction, old_directory, old_place)
    other = _referred(filesystem, transaction, new_directory, new_place)
    _check_removable(new_directory, other)
    if inode.ino == other.ino:
        return
    same_directory = old_directory.ino == new_directory.ino
    links = 0
    if not same_directory:
        for moved, target in ((inode, new_directory), (other, old_directory)):
            if moved.is_directory:
                read_parent(superblock, transaction, moved)
                set_parent(superblock, transaction, moved, target.ino)
        links = int(inode.is_directory) - int(other.is_directory)
        for directory, gained in ((new_directory, links), (old_directory, -links)):
            if gained > 0 and directory.i_links_count >= EXT2_LINK_MAX:
                raise OSError(EMLINK, f"directory inode {directory.ino} has {directory.i_links_count} links")
    point_entry(superblock, transaction, old_place, other.ino, other.i_mode)
    point_entry(superblock, transaction, new_place, inode.ino, inode.i_mode)
    for moved in (inode, other):
        filesystem.inode_table.write(transaction, moved._replace(ctime_ns=transaction.now_ns))
    _write_directory(filesystem, transaction, old_directory, links=-links)
    if not same_directory:
        _write_directory(filesystem, transaction, new_directory, links=links)


def _changeable_directory(filesystem: FileSystem, transaction: Transaction, ino: int) -> Inode:
    directory = filesystem.directory(transaction, ino)
    if not directory.i_links_count:
        raise OSError(ENOENT, f"directory inode {ino} has been removed")
    if directory.is_immutable:
        raise OSError(EPERM, f"directory inode {ino} is immutable")
    return directory


def _check_name(name: bytes) -> None:
    if len(name) > EXT2_NAME_LEN:
        raise OSError(ENAMETOOLONG, f"a name of {len(name)} bytes")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(EINVAL, f"{name!r} cannot be a name")


def _existing(filesystem: FileSystem, transaction: Transaction, directory: Inode, name: bytes) -> Place:
    place = find_place(filesystem.superblock, filesystem.name_indexes, transaction, directory, name)
    if place is None:
        raise OSError(ENOENT, f"there is no {name!r}")
    return place


def _enter(
    filesystem: FileSystem, transaction: Transaction, directory: Inode, name: bytes, inode: Inode, caller: Caller
) -> Inode:
    """Put a name for an inode into a directory; returns the directory, perhaps grown, not written."""
    return insert_entry(
        filesystem.superblock,
        filesystem.allocator,
        filesystem.name_indexes,
        transaction,
        directory,
        name,
        inode.ino,
        inode.i_mode,
        caller,
    )


def _referred(filesystem: FileSystem, transaction: Transaction, directory: Inode, place: Place) -> Inode:
    if place.ino == EXT2_ROOT_INO:
        raise CorruptFilesystem(f"directory inode {directory.ino}: an entry refers to the root directory")
    return filesystem.inode(transaction, place.ino)


def _check_removable(directory: Inode, inode: Inode) -> None:
    """Source: fs/namei.c, may_delete."""
    if directory.is_append_only or inode.is_append_only or inode.is_immutable:
        raise OSError(EPERM, f"inode {inode.ino} or its directory {directory.ino} is immutable or append-only")


def _check_replaceable(
    filesystem: FileSystem, transaction: Transaction, directory: Inode, inode: Inode, replaced: Inode
) -> None:
    _check_removable(directory, replaced)
    if inode.is_directory and not replaced.is_directory:
        raise OSError(ENOTDIR, "a directory cannot replace something else")
    if replaced.is_directory and not inode.is_directory:
        raise OSError(EISDIR, "only a directory can replace a directory")
    if replaced.is_directory and not filesystem.name_indexes.is_empty(filesystem.superblock, transaction, replaced):
        raise OSError(ENOTEMPTY, "the directory to be replaced is not empty")


def _drop_link(filesystem: FileSystem, transaction: Transaction, inode: Inode) -> None:
    """One name less; without any, the inode becomes an orphan. A directory has no other name than the one it loses."""
    if not inode.i_links_count:
        raise CorruptFilesystem(f"inode {inode.ino} had no links, but a name")
    links = 0 if inode.is_directory else inode.i_links_count - 1
    inode = inode._replace(i_links_count=links, ctime_ns=transaction.now_ns)
    filesystem.inode_table.write(transaction, inode)
    if not links:
        transaction.orphaned.add(inode.ino)


def _write_directory(filesystem: FileSystem, transaction: Transaction, directory: Inode, links: int = 0) -> None:
    """Write a directory in which a name has come, gone or changed."""
    now = transaction.now_ns
    count = directory.i_links_count + links
    if count < 0:
        raise CorruptFilesystem(f"directory inode {directory.ino} would have {count} links")
    filesystem.inode_table.write(transaction, directory._replace(i_links_count=count, mtime_ns=now, ctime_ns=now))


def _first_block(
    filesystem: FileSystem, transaction: Transaction, inode: Inode, caller: Caller
) -> tuple[Inode, bytearray]:
    """Give a new inode one block; returns it and the block, to be filled."""
    transaction.budget = max(transaction.budget, 1)
    inode, pointers, _ = map_for_writing(filesystem.superblock, filesystem.allocator, transaction, inode, 0, 1, caller)
    if not pointers:
        raise OSError(ENOSPC, "no free block")
    return inode, transaction.create(pointers[0])


def _with_target(
    filesystem: FileSystem, transaction: Transaction, inode: Inode, target: bytes, caller: Caller
) -> Inode:
    """Put a symbolic link's target into i_block, or if it is too long into a block (fs/ext4/namei.c, ext4_symlink)."""
    if not target:
        raise OSError(ENOENT, "a symbolic link needs a target")
    if len(target) >= min(filesystem.superblock.block_size, PATH_MAX):
        raise OSError(ENAMETOOLONG, f"a symbolic link's target of {len(target)} bytes")
    if len(target) < len(inode.i_block):
        return inode._replace(i_block=target.ljust(len(inode.i_block), b"\0"), size=len(target))
    inode, block = _first_block(filesystem, transaction, inode, caller)
    block[: len(target)] = target
    return inode._replace(size=len(target))


def _device_block(rdev: int) -> bytes:
    """i_block of a device: the old 8:8 encoding where it fits, else the new one (include/linux/kdev_t.h)."""
    major, minor = os.major(rdev), os.minor(rdev)
    if major < 256 and minor < 256:
        old, new = major << 8 | minor, 0
    else:
        old, new = 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    return struct.pack("<II", old, new & 0xFFFFFFFF).ljust(4 * EXT2_N_BLOCKS, b"\0")


def _inherit_acl(
    filesystem: FileSystem, transaction: Transaction, directory: Inode, inode: Inode, caller: Caller
) -> Inode:
    """Give a new inode what its directory's default ACL says (fs/posix_acl.c, posix_acl_create)."""
    if inode.is_symlink:
        return inode
    attributes = read_body(directory) + read_block(filesystem.superblock, transaction, directory)
    stored = next((attribute.value for attribute in attributes if attribute.name_index == INDEX_ACL_DEFAULT), None)
    if stored is None:
        return inode
    try:
        default = Acl.parse(acl_to_xattr(stored, directory.ino))
    except OSError as error:
        raise CorruptFilesystem(f"directory inode {directory.ino}: its default ACL is not valid") from error
    access = default.inherited(inode.i_mode)
    inode = inode._replace(i_mode=inode.i_mode & ~0o777 | access.mode)
    wanted = [(POSIX_ACL_DEFAULT, default)] if inode.is_directory else []
    if not access.is_minimal:
        wanted.append((POSIX_ACL_ACCESS, access))
    for name, acl in wanted:
        inode = set_attribute(
            filesystem.superblock, filesystem.allocator, transaction, inode, name, acl.stored(), caller
        )
    return inode
