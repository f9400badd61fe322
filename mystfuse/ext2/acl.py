"""POSIX ACLs: on disk in ext2's own compact form, to programs in the form of the ``system.posix_acl_*`` attributes.

Sources: fs/ext2/acl.h (``ext2_acl_entry``, ``ext2_acl_entry_short``), include/uapi/linux/posix_acl_xattr.h; for the
rules of chmod and inheritance fs/posix_acl.c and acl(5).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import EINVAL, EOPNOTSUPP
from typing import NamedTuple

from mystfuse.errors import CorruptFilesystem, FormatError

EXT2_ACL_VERSION = 1
POSIX_ACL_XATTR_VERSION = 2
ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_GROUP, ACL_MASK, ACL_OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ACL_UNDEFINED_ID = 0xFFFFFFFF
_TAG_NAMES = {
    ACL_USER_OBJ: "user",
    ACL_USER: "user",
    ACL_GROUP_OBJ: "group",
    ACL_GROUP: "group",
    ACL_MASK: "mask",
    ACL_OTHER: "other",
}
_BASE_TAGS = (ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER)


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


def acl_to_text(value: bytes) -> str:
    """The value of an ACL attribute in the short text form of acl(5), with numbers for users and groups."""
    parts = []
    for tag, permissions, identifier in struct.iter_unpack("<HHI", value[4:]):
        who = str(identifier) if tag in (ACL_USER, ACL_GROUP) else ""
        may = "".join(letter if permissions & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        parts.append(f"{_TAG_NAMES[tag]}:{who}:{may}")
    return ",".join(parts)


def acl_from_text(text: str, user: Callable[[str], int], group: Callable[[str], int]) -> Acl:
    """An ACL from the long or short text form of acl(5), as archives have it: entries between commas or newlines, with
    names or numbers, the number perhaps in a fourth field.

    Args:
        user, group: give the number of a name; KeyError: it has none.

    Raises:
        FormatError: not a valid ACL, or a name without a number.
    """
    tags = {"user": (ACL_USER_OBJ, ACL_USER), "group": (ACL_GROUP_OBJ, ACL_GROUP), "mask": (ACL_MASK, ACL_MASK),
            "other": (ACL_OTHER, ACL_OTHER)}  # fmt: skip
    short = {"u": "user", "g": "group", "m": "mask", "o": "other"}
    entries = []
    for line in re.split(r"[,\n]", text):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([a-z]+):([^:]*):([-rwx]{1,3})(?::([0-9]{1,10}))?", line)
        kind = match and short.get(match[1], match[1])
        if match is None or kind not in tags:
            # Solaris separates mask and other from their permissions by one colon.
            match = re.fullmatch(r"(mask|other|m|o)():([-rwx]{1,3})()", line)
            kind = match and short.get(match[1], match[1])
        if match is None or kind not in tags:
            raise FormatError(f"ACL entry {line!r} is not one of acl(5)")
        permissions = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in match[3])
        name, number = match[2], match[4]
        identifier = ACL_UNDEFINED_ID
        if name and kind in ("user", "group"):
            try:
                identifier = int(number or name) if number or name.isdecimal() else (user, group)[kind == "group"](name)
            except (KeyError, ValueError):
                raise FormatError(
                    f"ACL entry {line!r}: no {kind} of that name here (make the archive with --numeric-owner)"
                ) from None
        entries.append(AclEntry(tags[kind][bool(name)], permissions, min(identifier, ACL_UNDEFINED_ID)))
    try:
        return Acl.parse(Acl(tuple(sorted(entries, key=lambda entry: (entry.tag, entry.identifier)))).pack())
    except OSError as error:
        raise FormatError(f"ACL {text!r:.200}: {error.strerror}") from None


class AclEntry(NamedTuple):
    """A user or group (a tag, and an id where it is named) and its three permission bits."""

    tag: int
    permissions: int
    identifier: int


@dataclass(frozen=True, slots=True)
class Acl:
    """A valid ACL: entries sorted as POSIX.1e wants, each needed one present once."""

    entries: tuple[AclEntry, ...]

    @classmethod
    def parse(cls, value: bytes) -> Acl:
        """Parse the value of a ``system.posix_acl_*`` attribute.

        Raises:
            OSError: EINVAL, not a valid ACL; EOPNOTSUPP, of an unknown version (fs/posix_acl.c, posix_acl_from_xattr).
        """
        if len(value) < 4 or (len(value) - 4) % 8:
            raise OSError(EINVAL, "not an ACL")
        if int.from_bytes(value[:4], "little") != POSIX_ACL_XATTR_VERSION:
            raise OSError(EOPNOTSUPP, "an ACL of unknown version")
        entries = tuple(AclEntry(*entry) for entry in struct.iter_unpack("<HHI", value[4:]))
        tags = [entry.tag for entry in entries]
        named = [(entry.tag, entry.identifier) for entry in entries if entry.tag in (ACL_USER, ACL_GROUP)]
        if (
            tags != sorted(tags)
            or any(tags.count(tag) != 1 for tag in (ACL_USER_OBJ, ACL_GROUP_OBJ, ACL_OTHER))
            or tags.count(ACL_MASK) > 1
            or (named and ACL_MASK not in tags)
            or any(tag not in (*_BASE_TAGS, ACL_USER, ACL_GROUP, ACL_MASK) for tag in tags)
            or any(entry.permissions > 7 for entry in entries)
            or any(identifier == ACL_UNDEFINED_ID for _, identifier in named)
        ):
            raise OSError(EINVAL, "not a valid ACL")
        return cls(entries)

    def pack(self) -> bytes:
        """The value of a ``system.posix_acl_*`` attribute."""
        return struct.pack("<I", POSIX_ACL_XATTR_VERSION) + b"".join(
            struct.pack("<HHI", *entry) for entry in self.entries
        )

    def stored(self) -> bytes:
        """The ACL as ext2 stores it."""
        parts = [struct.pack("<I", EXT2_ACL_VERSION)]
        for tag, permissions, identifier in self.entries:
            has_id = tag in (ACL_USER, ACL_GROUP)
            parts.append(
                struct.pack("<HHI", tag, permissions, identifier) if has_id else struct.pack("<HH", tag, permissions)
            )
        return b"".join(parts)

    @property
    def is_minimal(self) -> bool:
        """Whether mode bits express all of it, so that it need not be stored."""
        return all(entry.tag in _BASE_TAGS for entry in self.entries)

    @property
    def mode(self) -> int:
        """The nine mode bits of the ACL: the group's are the mask's, if there is one."""
        permissions = {entry.tag: entry.permissions for entry in self.entries if entry.tag not in (ACL_USER, ACL_GROUP)}
        group = permissions.get(ACL_MASK, permissions[ACL_GROUP_OBJ])
        return permissions[ACL_USER_OBJ] << 6 | group << 3 | permissions[ACL_OTHER]

    def after_chmod(self, mode: int) -> Acl:
        """The ACL after chmod(2) (fs/posix_acl.c, __posix_acl_chmod_masq)."""
        return self._with(
            {
                ACL_USER_OBJ: mode >> 6 & 7,
                ACL_MASK if self._has_mask else ACL_GROUP_OBJ: mode >> 3 & 7,
                ACL_OTHER: mode & 7,
            }
        )

    def inherited(self, mode: int) -> Acl:
        """The access ACL of a file made with ``mode`` where this is the default ACL: permissions in both
        (fs/posix_acl.c, posix_acl_create_masq)."""
        limits = {ACL_USER_OBJ: mode >> 6, ACL_MASK if self._has_mask else ACL_GROUP_OBJ: mode >> 3, ACL_OTHER: mode}
        return self._with(
            {entry.tag: entry.permissions & limits[entry.tag] for entry in self.entries if entry.tag in limits}
        )

    @property
    def _has_mask(self) -> bool:
        return any(entry.tag == ACL_MASK for entry in self.entries)

    def _with(self, permissions: dict[int, int]) -> Acl:
        return Acl(
            tuple(entry._replace(permissions=permissions.get(entry.tag, entry.permissions)) for entry in self.entries)
        )
