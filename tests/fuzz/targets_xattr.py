"""Fuzzed: extended attributes and ACLs of EXT2."""

from __future__ import annotations

import struct
from contextlib import suppress

from mystfuse.errors import CorruptFilesystem
from mystfuse.ext2.acl import ACL_GROUP, ACL_USER, Acl, acl_to_text, acl_to_xattr
from mystfuse.ext2.xattr_changes import remove_xattr, set_xattr
from tests.fuzz.ext2_memory import Memory, change, numbers
from tests.fuzz.harness import Choices, Target, ensure
from tests.fuzz.images import load


def xattr(data: bytes) -> None:
    """Attributes are refused or change exactly as requested: in the inode's body, in its block, in both."""
    choices = Choices(data)
    image = choices.pick(("small", "small", "large", "old"))
    memory = Memory(load(image).copy())
    superblock = memory.superblock
    ino = numbers(image)[b"large" if choices.below(2) else b"file"]
    at = memory.inode_offset(ino)
    inode = memory.filesystem.inode(memory.blocks(), ino)
    if choices.below(2) and superblock.s_inode_size > 128:
        # Behind the usual extra fields, at the magic number.
        memory.image.put(at + 160 + choices.pick((0, 4, 20)), choices.take(choices.below(96)))
    if choices.below(2) and inode.i_file_acl:
        position = inode.i_file_acl * superblock.block_size + choices.pick((0, 32, 48, 256))
        memory.image.put(position, choices.take(choices.below(200)))
    before = xattrs(memory, ino)
    for _ in range(3):
        name = choices.pick((b"user.big", b"user.small", b"user.x", b"trusted.t", b"security.s", b"user." + b"n" * 255,
                             b"user.", b"system.posix_acl_access", b"nothing.x"))  # fmt: skip
        if choices.below(3):
            value = choices.take(choices.below(64)) * (1 + choices.below(12))
            is_done = change(memory, set_xattr, ino, name, value)
            after = xattrs(memory, ino)
            if not is_done:
                ensure(after == before, "a change that failed has changed something")
            elif before is not None and not name.startswith(b"system."):
                ensure(after == {**before, name: value}, f"{name!r} was set to {value!r}")
        else:
            is_done = change(memory, remove_xattr, ino, name)
            after = xattrs(memory, ino)
            if not is_done:
                ensure(after == before, "a change that failed has changed something")
            elif before is not None:
                ensure(after == {other: value for other, value in before.items() if other != name}, f"{name!r} removed")
        before = after


def xattrs(memory: Memory, ino: int) -> dict[bytes, bytes] | None:
    try:
        return memory.filesystem.xattrs(memory.blocks(), memory.filesystem.inode(memory.blocks(), ino))
    except CorruptFilesystem:
        return None


def acl(data: bytes) -> None:
    """An ACL is refused, or reads back as written, on disk and as an attribute; and a mode can be merged into it."""
    with suppress(CorruptFilesystem):
        value = acl_to_xattr(data, 12)
        ensure(len(value) <= 4 + 2 * len(data), "an ACL that grows")
        ensure(acl_to_text(value).count(",") < len(data), "a text that grows")
        with suppress(OSError):
            ensure(Acl.parse(value).stored() == data, "not stored as it was")
    try:
        parsed = Acl.parse(data)
    except OSError:
        return
    again = Acl.parse(acl_to_xattr(parsed.stored(), 12))
    named = [entry for entry in parsed.entries if entry.tag in (ACL_USER, ACL_GROUP)]
    ensure([entry[:2] for entry in again.entries] == [entry[:2] for entry in parsed.entries], "not read back")
    ensure([entry for entry in again.entries if entry.tag in (ACL_USER, ACL_GROUP)] == named, "not read back")
    ensure(parsed.after_chmod(0o750).mode == 0o750 and 0 <= parsed.mode <= 0o777, f"mode {parsed.mode:o}")
    ensure(parsed.inherited(0o640).mode & ~0o640 == 0, "more is inherited than asked for")
    ensure(Acl.parse(acl_to_xattr(parsed.after_chmod(0o421).stored(), 12)) is not None, "not valid any more")


def acl_seeds() -> list[bytes]:
    entries = [(1, 7, None), (2, 5, 1000), (4, 5, None), (8, 4, 77), (16, 7, None), (32, 0, None)]
    stored, value = b"\1\0\0\0", b"\2\0\0\0"
    for tag, permissions, identifier in entries:
        stored += struct.pack("<HH", tag, permissions) + (b"" if identifier is None else struct.pack("<I", identifier))
        value += struct.pack("<HHI", tag, permissions, 0xFFFFFFFF if identifier is None else identifier)
    return [stored, value, stored[:8], value[:12]]


TARGETS = [
    Target("xattr", xattr, lambda: [
        b"\0", b"\0\1",
        b"\0\0\1\0\x60" + load("small").get(Memory(load("small")).inode_offset(numbers("small")[b"file"]) + 160, 96),
        b"\0\1\0\1\0\xc0" + bytes.fromhex("000002ea0100000001000000") + bytes(20), b"\2\1", b"\3\1",
    ], 500),
    Target("acl", acl, acl_seeds, 300),
]  # fmt: skip
