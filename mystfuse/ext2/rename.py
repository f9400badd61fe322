"""Renaming, with replacement and exchange: renameat2(2). Sources: fs/namei.c, fs/ext4/namei.c."""

from __future__ import annotations

import stat
from errno import EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY
from typing import NamedTuple

from mystfuse.ext2.block_map import check_not_encrypted
from mystfuse.ext2.change import Change
from mystfuse.ext2.create import new_inode
from mystfuse.ext2.directory import read_parent
from mystfuse.ext2.directory_changes import (
    Place,
    changeable_directory,
    check_can_grow,
    check_links,
    check_name,
    find_place,
    find_place_again,
    insert_entry,
    point_entry,
    remove_entry,
    set_parent,
    write_directory,
)
from mystfuse.ext2.inode import Inode
from mystfuse.ext2.link_and_unlink import check_removable, drop_link, existing_place, referred_inode
from mystfuse.ext2.projects import check_project

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
"""Flags of renameat2(2)."""
_ALLOWED = {
    0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_NOREPLACE | RENAME_WHITEOUT
}  # fmt: skip


class DirectoryName(NamedTuple):
    """A name in directory ``parent``."""

    parent: int
    name: bytes
    ancestors: frozenset[int] = frozenset()
    """The directories above ``parent``, itself included, up to the root; not needed for a rename within one
    directory."""


def rename(change: Change, old: DirectoryName, new: DirectoryName, flags: int) -> Inode | None:
    """Rename, replacing an existing new name; with RENAME_EXCHANGE the two names change places; with RENAME_WHITEOUT,
    the old name is a whiteout afterwards: a character device 0:0, by which overlayfs hides a name of a lower layer.

    Returns:
        The inode that was replaced, or None.

    Raises:
        OSError: EINVAL (a directory into itself, or unknown flags), ENOENT, EEXIST, ENOTEMPTY, ENOTDIR, EISDIR, EMLINK,
            EPERM, ENAMETOOLONG, ENOSPC.
        BlocksMissing, MystfuseError
    """
    if flags not in _ALLOWED:
        raise OSError(EINVAL, f"rename flags {flags:#x}")
    old_directory = changeable_directory(change, old.parent)
    new_directory = changeable_directory(change, new.parent)
    check_name(new.name)
    old_place = existing_place(change, old_directory, old.name)
    inode = referred_inode(change, old_directory, old_place)
    if inode.ino in new.ancestors:
        raise OSError(EINVAL, f"directory inode {inode.ino} cannot be moved into itself")
    new_place = find_place(change, new_directory, new.name)
    check_removable(old_directory, inode)
    if flags & RENAME_EXCHANGE:
        if new_place is None:
            raise OSError(ENOENT, f"there is no {new.name!r}")
        if new_place.ino in old.ancestors:
            raise OSError(EINVAL, f"directory inode {new_place.ino} cannot be moved into itself")
        _check_not_encrypted(old_directory, new_directory)
        _exchange(change, old_directory, old_place, new_directory, new_place)
        return None
    if new_place is not None and new_place.ino in old.ancestors:
        raise OSError(ENOTEMPTY, f"directory inode {new_place.ino} holds what is to replace it")
    if new_place is not None and flags & RENAME_NOREPLACE:
        raise OSError(EEXIST, f"{new.name!r} exists already")
    if new_place is not None and new_place.ino == inode.ino:
        return None
    _check_not_encrypted(old_directory, new_directory)
    check_project(change, new_directory, inode)
    moves = inode.is_directory and old.parent != new.parent
    replaced = None
    if new_place is not None:
        replaced = referred_inode(change, new_directory, new_place)
        _check_replaceable(change, new_directory, inode, replaced)
    else:
        check_can_grow(new_directory)
        if moves:
            check_links(change, new_directory)
    if moves:
        read_parent(change.superblock, change.transaction, inode)
    if new_place is not None and replaced is not None:
        new_directory = point_entry(change, new_directory, new_place, inode)
        drop_link(change, replaced)
    else:
        new_directory = insert_entry(change, new_directory, new.name, inode)
    if old.parent == new.parent:
        old_directory = new_directory
    # The new entry may have been put between the old one and the one in front of it.
    old_place = find_place_again(change, old_directory, old.name, old_place)
    if flags & RENAME_WHITEOUT:
        whiteout = new_inode(change, old_directory, stat.S_IFCHR, 1)
        old_directory = point_entry(change, old_directory, old_place, whiteout)
    else:
        old_directory = remove_entry(change, old_directory, old.name, old_place)
    if moves:
        inode = set_parent(change, inode, new.parent)
    change.write_inode(inode._replace(ctime_ns=change.now_ns))
    lost = int(replaced is not None and replaced.is_directory)
    if old.parent == new.parent:
        write_directory(change, old_directory, links=-lost)
    else:
        write_directory(change, old_directory, links=-int(moves))
        write_directory(change, new_directory, links=int(moves) - lost)
    return None if replaced is None else change.read_back(replaced.ino)


def _exchange(change: Change, old_directory: Inode, old_place: Place, new_directory: Inode, new_place: Place) -> None:
    inode = referred_inode(change, old_directory, old_place)
    other = referred_inode(change, new_directory, new_place)
    check_removable(new_directory, other)
    if inode.ino == other.ino:
        return
    check_project(change, new_directory, inode)
    check_project(change, old_directory, other)
    same_directory = old_directory.ino == new_directory.ino
    links = 0
    if not same_directory:
        inode = _moved(change, inode, new_directory)
        other = _moved(change, other, old_directory)
        links = int(inode.is_directory) - int(other.is_directory)
        for directory, gained in ((new_directory, links), (old_directory, -links)):
            if gained > 0:
                check_links(change, directory)
    old_directory = point_entry(change, old_directory, old_place, other)
    new_directory = point_entry(change, old_directory if same_directory else new_directory, new_place, inode)
    for moved in (inode, other):
        change.write_inode(moved._replace(ctime_ns=change.now_ns))
    write_directory(change, new_directory, links=links)
    if not same_directory:
        write_directory(change, old_directory, links=-links)


def _moved(change: Change, inode: Inode, directory: Inode) -> Inode:
    """The inode, not written, in another directory."""
    if not inode.is_directory:
        return inode
    read_parent(change.superblock, change.transaction, inode)
    return set_parent(change, inode, directory.ino)


def _check_not_encrypted(*directories: Inode) -> None:
    """Raise EncryptedContents if names of one of the directories are encrypted (fs/crypto/hooks.c,
    __fscrypt_prepare_rename)."""
    for directory in directories:
        check_not_encrypted(directory)


def _check_replaceable(change: Change, directory: Inode, inode: Inode, replaced: Inode) -> None:
    check_removable(directory, replaced)
    if inode.is_directory and not replaced.is_directory:
        raise OSError(ENOTDIR, "a directory cannot replace something else")
    if replaced.is_directory and not inode.is_directory:
        raise OSError(EISDIR, "only a directory can replace a directory")
    if replaced.is_directory and not change.filesystem.name_indexes.is_empty(change.transaction, replaced):
        raise OSError(ENOTEMPTY, "the directory to be replaced is not empty")
