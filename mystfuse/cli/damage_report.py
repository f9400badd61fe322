"""The words, and the JSON, for what ``image.damage`` has found."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mystfuse.errors import one_line
from mystfuse.ext2.fixed_blocks import (
    BLOCK_BITMAP,
    DESCRIPTORS,
    INODE_BITMAP,
    INODE_TABLE,
    SUPERBLOCK,
    describe_fixed,
    numbers,
)
from mystfuse.ext2.inode_blocks import DIRECTORY, FILE, RESERVED_INODE, RESERVED_INODES, SYMLINK, UNKNOWN_KIND
from mystfuse.image.affected import ATTRIBUTES, EXTENT_BLOCK, INDIRECT, INODE, NAME, AffectedInode, Part
from mystfuse.image.block_owners import FixedDamage
from mystfuse.image.damage import Damage

MAX_SHOWN = 1000
"""Files to name, and as many other places; the rest is counted."""
_NOTHING = "nothing is lost"
_PLURALS = {DIRECTORY: "directories"}


class DamageReport:
    """What to say about damage."""

    def __init__(self, damage: Damage) -> None:
        self._damage = damage
        owners, names = damage.owners, damage.names
        recorded = owners.affected.recorded.values() if owners else ()
        self._kinds = Counter(_kind(inode) for inode in recorded)
        self._count = len(recorded) + (owners.affected.left_out if owners else 0)
        self._shown: list[tuple[list[str], AffectedInode]] = []
        if names is not None:
            first = heapq.nsmallest(MAX_SHOWN, ((names.paths_of(inode) or [b"\xff"], inode.ino) for inode in recorded))
            for paths, ino in first:
                assert owners is not None
                found = [os.fsdecode(path) for path in paths if path != b"\xff"]
                self._shown.append((found, owners.affected.recorded[ino]))
        self._fixed = owners.fixed[:MAX_SHOWN] if owners else []

    def lines(self) -> Iterator[str]:
        """One line for each file, then one for each other place, and a summary at the end."""
        damage, owners = self._damage, self._damage.owners
        for paths, inode in self._shown:
            yield one_line(f"damaged: {_name(paths, inode)}: {'; '.join(_parts(inode))}")
        yield from _rest(self._count - len(self._shown), "inode")
        for fixed in self._fixed:
            assert owners is not None
            what = describe_fixed(owners.superblock, fixed.run, fixed.first, fixed.length)
            yield f"damaged: {what} ({_blocks(fixed.first, fixed.length)}): {_loss(fixed)}{_why(fixed.unverifiable)}"
        if owners:
            yield from _rest(len(owners.fixed) - len(self._fixed), "place")
            for first, count in owners.unowned[:MAX_SHOWN]:
                yield f"damaged: {_blocks(first, count)}: in use by what is lost, or by nothing"
            yield from _rest(len(owners.unowned) - MAX_SHOWN, "place")
        for area in damage.areas:
            yield f"damaged: {area.what} (bytes {area.offset}-{area.offset + area.length - 1}): {area.loss}"
        yield from _rest(damage.areas_count - len(damage.areas), "place")
        if damage.unnamed:
            yield one_line(f"files are not named: {damage.unnamed}")
        if damage.data.left_out:
            yield f"{damage.data.left_out} bytes are in so many ranges that it was not looked for what they belong to"
        yield self.summary()

    def summary(self) -> str:
        """All of it in one line."""
        damage, owners = self._damage, self._damage.owners
        counts = [_plural(count, kind) for kind, count in sorted(self._kinds.items())]
        if owners and owners.affected.left_out:
            counts.append(f"up to {owners.affected.left_out} other inodes")
        if owners and owners.fixed_count:
            counts.append(_plural(owners.fixed_count, "metadata block"))
        if owners and owners.unowned_bytes:
            counts.append(f"{owners.unowned_bytes} bytes of unknown owners")
        if damage.areas_count:
            counts.append(_plural(damage.areas_count, "range") + " outside the file system")
        verb = "is" if len(counts) == 1 and counts[0].startswith("1 ") else "are"
        said = f"{', '.join(counts)} {verb} damaged" if counts else "nothing that is in use is damaged"
        spare = (owners.free_bytes + owners.spare_bytes if owners else 0) + damage.padding_bytes
        return f"{said}; {spare} bytes of free space ({_NOTHING})" if spare else said

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        damage, owners = self._damage, self._damage.owners
        block_size = owners.superblock.block_size if owners else 0
        return {
            "named": not damage.unnamed,
            "unnamed_reason": damage.unnamed or None,
            "inodes": [
                {
                    "inode": inode.ino,
                    "kind": inode.kind,
                    "size": inode.size,
                    "paths": paths,
                    "paths_left_out": inode.names_left_out,
                    "lost": [
                        {
                            "what": part.what,
                            "offset": part.start,
                            "length": part.end - part.start,
                            "unverifiable": part.unverifiable,
                        }
                        for part in inode.parts
                    ],
                    "lost_left_out": inode.parts_left_out,
                    "lost_bytes": inode.lost_bytes,
                }
                for paths, inode in self._shown
            ],
            "inodes_count": self._count,
            "kinds": dict(sorted(self._kinds.items())),
            "metadata": [
                {
                    "what": fixed.run.what,
                    "group": fixed.run.group,
                    "block": fixed.first,
                    "blocks": fixed.length,
                    "offset": damage.payload_offset + fixed.first * block_size,
                    "first_inode": fixed.inodes.start if fixed.inodes else None,
                    "inodes": len(fixed.inodes),
                    "inodes_in_use": fixed.in_use,
                    "loss": _loss(fixed),
                    "unverifiable": fixed.unverifiable,
                }
                for fixed in self._fixed
            ],
            "metadata_blocks": owners.fixed_count if owners else 0,
            "unowned": [
                {"block": first, "blocks": count, "offset": damage.payload_offset + first * block_size}
                for first, count in (owners.unowned[:MAX_SHOWN] if owners else ())
            ],
            "unowned_bytes": owners.unowned_bytes if owners else 0,
            "outside": [
                {"what": area.what, "offset": area.offset, "length": area.length, "loss": area.loss}
                for area in damage.areas
            ],
            "outside_count": damage.areas_count,
            "free_bytes": owners.free_bytes if owners else 0,
            "behind_files_bytes": owners.spare_bytes if owners else 0,
            "behind_file_system_bytes": damage.padding_bytes,
            "left_out_bytes": damage.data.left_out,
            "summary": self.summary(),
        }


def _kind(inode: AffectedInode) -> str:
    return inode.kind if inode.parts and inode.parts[0].what != NAME else f"{inode.kind} without a name"


def _name(paths: list[str], inode: AffectedInode) -> str:
    shown = ", ".join(paths)
    if inode.names_left_out:
        shown += f" and {inode.names_left_out} more names"
    number = f"inode {inode.ino}"
    if inode.kind == RESERVED_INODE:
        purpose = RESERVED_INODES.get(inode.ino)
        return f"{number} ({RESERVED_INODE}{f': {purpose}' if purpose else ''})"
    if inode.kind not in (FILE, UNKNOWN_KIND):
        number = f"{inode.kind}, {number}"
    if shown:
        return f"{shown} ({number})"
    size = "" if inode.size is None else f", {inode.size} bytes"
    return f"<inode {inode.ino}> ({inode.kind}{size})"


def _parts(inode: AffectedInode) -> Iterator[str]:
    """The parts of an inode that are lost."""
    for part in inode.parts:
        yield _part(inode, part) + _why(part.unverifiable)
    if inode.parts_left_out:
        yield f"and {inode.parts_left_out} more; {inode.lost_bytes} bytes in all"


def _part(inode: AffectedInode, part: Part) -> str:
    where = f"bytes {part.start}-{part.end - 1}"
    if part.what == ATTRIBUTES:
        return "its extended attributes"
    if part.what == INODE:
        below = " and, if it is a directory, the way to everything below it" if inode.kind == UNKNOWN_KIND else ""
        return "all of it" + (" and the way to everything below it" if inode.kind == DIRECTORY else below)
    if part.what == NAME:
        return "its name" + (" and the way to everything below it" if inode.kind == DIRECTORY else "")
    if inode.kind == RESERVED_INODE:
        return f"{where}; no file is lost"
    if inode.kind == SYMLINK:
        return "its target"
    of = "the names in " if inode.kind == DIRECTORY else ""
    return f"{of}{where}{f', to which an {part.what} leads' if part.what in (INDIRECT, EXTENT_BLOCK) else ''}"


def _loss(fixed: FixedDamage) -> str:
    """What is lost with blocks in a fixed place."""
    what = fixed.run.what
    if what == INODE_TABLE:
        if fixed.in_use is None:
            return "how many of these inodes are in use is not known"
        return f"{fixed.in_use} of these inodes are in use" if fixed.in_use else f"none is in use, {_NOTHING}"
    if what == SUPERBLOCK:
        return "the image cannot be mounted"
    if what == DESCRIPTORS:
        return f"a mount does not find inodes {numbers(fixed.inodes)}"
    if what in (BLOCK_BITMAP, INODE_BITMAP):
        return "no file is lost; a mount uses no free space of that group"
    return _NOTHING


def _why(unverifiable: bool) -> str:
    return " (cannot be verified)" if unverifiable else ""


def _blocks(first: int, count: int) -> str:
    return f"block{'s' * (count > 1)} {numbers(range(first, first + count))}"


def _plural(count: int, what: str) -> str:
    if count == 1:
        return f"1 {what}"
    head, _, tail = what.partition(" without")
    plural = _PLURALS.get(head, f"{head}s")
    return f"{count} {plural}{tail and f' without{tail}'}"


def _rest(count: int, what: str) -> Iterator[str]:
    if count > 0:
        yield f"and {_plural(count, f'more {what}')}"
