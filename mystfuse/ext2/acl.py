"""POSIX ACLs: on disk in ext2's own compact form, to programs in the form of the ``system.posix_acl_*`` attributes.

Sources: fs/ext2/acl.h (``ext2_acl_entry``, ``ext2_acl_entry_short``), include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import struct

from mystfuse.errors import CorruptFilesystem

EXT2_ACL_VERSION = 1
POSIX_ACL_XATTR_VERSION = 2
ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_GROUP, ACL_MASK, ACL_OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ACL_UNDEFINED_ID = 0xFFFFFFFF


def acl_to_xattr(stored: bytes, ino: int) -> bytes:
    """The attribute's value for an ACL as stored in inode ``ino``.

    Raises:
        CorruptFilesystem: not an ACL.
    """
    if len(stored) < 4 or int.from_bytes(stored[:4], "little") != EXT2_ACL_VERSION:
        raise CorruptFilesystem(f"inode {ino}: an ACL of unknown version")
    entries = [struct.pack("<I", POSIX_ACL_XATTR_VERSION)]
    position = 4
    while position < len(stored):
        if position + 4 > len(stored):
            raise CorruptFilesystem(f"inode {ino}: an ACL is cut short")
        tag, permissions = struct.unpack_from("<HH", stored, position)
        position += 4
        identifier = ACL_UNDEFINED_ID
        if tag in (ACL_USER, ACL_GROUP):
            if position + 4 > len(stored):
                raise CorruptFilesystem(f"inode {ino}: an ACL is cut short")
            (identifier,) = struct.unpack_from("<I", stored, position)
            position += 4
        elif tag not in (ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER):
            raise CorruptFilesystem(f"inode {ino}: an ACL entry has unknown tag {tag:#x}")
        entries.append(struct.pack("<HHI", tag, permissions, identifier))
    return b"".join(entries)
