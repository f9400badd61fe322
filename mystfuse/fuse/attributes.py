"""Attributes of inodes in replies to the kernel."""

from __future__ import annotations

import stat

from pyfuse3 import EntryAttributes

from mystfuse.ext2.inode import Inode
from mystfuse.fuse.mount_options import MountOptions
from mystfuse.fuse.protocol import STATX, STATX_BASIC_STATS, STATX_OUT, pack_attributes, pack_entry, pack_statx

CACHE_SECONDS = 86400
"""How long the kernel may keep names and attributes: the file system changes through the kernel alone."""


class ShownAttributes:
    """Inodes as a mount shows them; options may replace their owners.

    Args:
        block_size: bytes; what st_blksize says.
    """

    def __init__(self, options: MountOptions, block_size: int) -> None:
        self._options = options
        self._own = options.owner
        self._shows_owners = not options.map_root and options.uid is None and options.gid is None
        self._block_size = block_size

    def of(self, inode: Inode) -> EntryAttributes:
        """The attributes of an inode."""
        attributes = EntryAttributes()
        attributes.st_ino = inode.ino
        attributes.generation = inode.i_generation
        attributes.entry_timeout = attributes.attr_timeout = CACHE_SECONDS
        attributes.st_mode = inode.i_mode
        attributes.st_nlink = inode.i_links_count
        attributes.st_uid, attributes.st_gid = self._owner(inode)
        if rdev := inode.rdev:
            attributes.st_rdev = rdev
        attributes.st_size = inode.st_size
        attributes.st_blksize = self._block_size
        attributes.st_blocks = inode.st_blocks
        attributes.st_atime_ns = inode.atime_ns
        attributes.st_mtime_ns = inode.mtime_ns
        attributes.st_ctime_ns = inode.ctime_ns
        return attributes

    def packed(self, inode: Inode) -> bytes:
        """The same as fuse_attr_out."""
        return pack_attributes(inode, self._owner(inode), self._block_size, CACHE_SECONDS)

    def packed_statx(self, inode: Inode, birth_ns: int | None) -> bytes:
        """The same as fuse_statx_out; see ``pack_statx``."""
        return pack_statx(inode, self._owner(inode), self._block_size, CACHE_SECONDS, birth_ns)

    def packed_entry(self, inode: Inode) -> bytes:
        """The same as fuse_entry_out."""
        return pack_entry(inode, self._owner(inode), self._block_size, CACHE_SECONDS)

    def _owner(self, inode: Inode) -> tuple[int, int]:
        uid, gid = inode.uid, inode.gid
        if self._shows_owners:
            return uid, gid
        options = self._options
        if options.map_root:
            uid = self._own[0] if uid == 0 else uid
            gid = self._own[1] if gid == 0 else gid
        return uid if options.uid is None else options.uid, gid if options.gid is None else options.gid

    def stored_uid(self, uid: int) -> int:
        """The image's user ID for a user ID of the system."""
        return 0 if self._options.map_root and uid == self._own[0] else uid

    def stored_gid(self, gid: int) -> int:
        """The image's group ID for a group ID of the system."""
        return 0 if self._options.map_root and gid == self._own[1] else gid


def absent(timeout: float) -> EntryAttributes:
    """The answer "there is no such name", which the kernel may cache."""
    attributes = EntryAttributes()
    attributes.st_ino = 0
    attributes.entry_timeout = timeout
    return attributes


def packed_plain_statx(attributes: EntryAttributes) -> bytes:
    """fuse_statx_out of something that is made up, has no times, and is not to be kept."""
    owner = (attributes.st_uid, attributes.st_gid)
    head = (STATX_BASIC_STATS, 4096, 0, attributes.st_nlink, *owner, attributes.st_mode, attributes.st_ino)
    return STATX_OUT.pack(0, 0, 0) + STATX.pack(*head, attributes.st_size, 0, 0, *bytes(8), *bytes(4))


def dot(ino: int) -> EntryAttributes:
    """For ``.`` and ``..`` the kernel looks at number and type alone."""
    attributes = EntryAttributes()
    attributes.st_ino = ino
    attributes.st_mode = stat.S_IFDIR
    return attributes


def broken(ino: int) -> EntryAttributes:
    """For a name whose inode fails to read: without a type the kernel lists the name and looks it up on use
    (fs/fuse/readdir.c, fuse_direntplus_link); that lookup gets the error."""
    attributes = EntryAttributes()
    attributes.st_ino = ino
    # pyfuse3 would make it a regular file.
    attributes.st_mode = 0
    attributes.entry_timeout = attributes.attr_timeout = 0
    return attributes
