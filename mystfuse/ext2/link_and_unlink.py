"""Giving an inode another name, and removing names: link(2), unlink(2), rmdir(2). Sources: fs/namei.c, fs/ext4/namei.c.

What the kernel's VFS checks before it asks a file system (types, sticky directories, permissions) is checked again here
and in ``rename`` as far as the file system's own order depends on it.
"""

from __future__ import annotations

from collections.abc import Container
from errno import EISDIR, EMLINK, ENOENT, ENOTDIR, ENOTEMPTY, EPERM

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.change import Change
from mystfuse.ext2.constants import EXT2_ROOT_INO
from mystfuse.ext2.directory_changes import (
    Place,
    changeable_directory,
    directory_for_new_name,
    find_place,
    insert_entry,
    max_links,
    remove_entry,
    write_directory,
)
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.projects import check_project


def link(change: Change, ino: int, parent: int, name: bytes, nameless: Container[int] = ()) -> Inode:
    """Give inode ``ino`` another name; returns the inode.

    Args:
        nameless: inodes that were made without a name, and may get their first one.

    Raises:
        OSError: EEXIST, ENOENT (no name is left, or the directory is removed), EMLINK, EPERM (a directory, immutable or
            append-only), ENAMETOOLONG, ENOSPC.
        BlocksMissing, MystfuseError
    """
    inode = change.inode(ino)
    directory = directory_for_new_name(change, parent, name)
    if inode.is_directory or inode.is_immutable or inode.is_append_only:
        raise OSError(EPERM, f"inode {ino} is a directory, immutable or append-only")
    if not inode.i_links_count and ino not in nameless:
        raise OSError(ENOENT, f"inode {ino} has been removed")
    if inode.i_links_count >= max_links(change):
        raise OSError(EMLINK, f"inode {ino} has {inode.i_links_count} links")
    check_project(change, directory, inode)
    inode = inode._replace(i_links_count=inode.i_links_count + 1, ctime_ns=change.now_ns)
    change.write_inode(inode)
    change.transaction.released.add(ino)
    write_directory(change, insert_entry(change, directory, name, inode))
    return change.read_back(ino)


def remove(change: Change, parent: int, name: bytes, is_rmdir: bool) -> Inode:
    """Remove a name: unlink(2), or rmdir(2). Returns the inode it referred to, an orphan if that was its last name.

    Raises:
        OSError: ENOENT, ENOTDIR or EISDIR (the other is wanted), ENOTEMPTY, EPERM (immutable or append-only).
        BlocksMissing, MystfuseError
    """
    change.transaction.gives_back = True
    directory = changeable_directory(change, parent)
    place = existing_place(change, directory, name)
    inode = referred_inode(change, directory, place)
    check_removable(directory, inode)
    if is_rmdir != inode.is_directory:
        raise OSError(ENOTDIR if is_rmdir else EISDIR, f"{name!r} is {'not ' if is_rmdir else ''}a directory")
    if is_rmdir and not change.filesystem.name_indexes.is_empty(change.transaction, inode):
        raise OSError(ENOTEMPTY, f"{name!r} is not empty")
    directory = remove_entry(change, directory, name, place)
    drop_link(change, inode)
    write_directory(change, directory, links=-int(is_rmdir))
    return change.read_back(inode.ino)


def existing_place(change: Change, directory: Inode, name: bytes) -> Place:
    """Where ``name`` is in ``directory``; OSError (ENOENT) if there is no such name."""
    place = find_place(change, directory, name)
    if place is None:
        raise OSError(ENOENT, f"there is no {name!r}")
    return place


def referred_inode(change: Change, directory: Inode, place: Place) -> Inode:
    """The inode that an entry refers to; CorruptFilesystem if it is the root."""
    if place.ino == EXT2_ROOT_INO:
        raise CorruptFilesystem(f"directory inode {directory.ino}: an entry refers to the root directory")
    return change.inode(place.ino)


def check_removable(directory: Inode, inode: Inode) -> None:
    """OSError (EPERM) if a name of ``inode`` cannot be removed from ``directory`` (fs/namei.c, may_delete)."""
    if directory.is_append_only or inode.is_append_only or inode.is_immutable:
        raise OSError(EPERM, f"inode {inode.ino} or its directory {directory.ino} is immutable or append-only")


def drop_link(change: Change, inode: Inode) -> None:
    """Remove one name; without any, the inode becomes an orphan. A directory has no other name than this one."""
    if not inode.i_links_count:
        raise CorruptFilesystem(f"inode {inode.ino} had no links, but a name")
    links = 0 if inode.is_directory else inode.i_links_count - 1
    change.write_inode(inode._replace(i_links_count=links, ctime_ns=change.now_ns))
    if not links:
        change.transaction.orphaned.add(inode.ino)
