"""Damage to ext4 by seed: 1 to 3 damages in a base, each in a known structure, behind fresh checksums or not."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from mystfuse.kernels.checksums import crc32c
from tests.corruption.ext4_bases import NAMES, Base
from tests.corruption.ext4_fields import (
    BITS,
    DIRECTORIES,
    FILES,
    FLAGS,
    GROUP,
    GROUP_64,
    HEADER,
    INODE,
    INODE_EXTRA,
    LENGTHS,
    OTHERS,
    SUPER,
    TREES,
    XATTR_ENTRY,
    Field,
    any_path,
)
from tests.corruption.ext4_layout import EXTENTS, INLINE, Ext4Layout, a_block
from tests.corruption.scattered import odd_value

Damage = Callable[[Ext4Layout, random.Random], str]


def spoil_ext4(base: Base, seed: int) -> tuple[Ext4Layout, list[str]]:
    """A base with the damage of a seed, and a description of that damage."""
    layout = Ext4Layout(base.data, base.name == "recovering")
    source = random.Random(f"ext4 {seed}")
    done: list[str] = []
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        damage = source.choice(DAMAGES)
        try:
            done.append(damage(layout, source))
        except (AssertionError, struct.error, IndexError) as error:
            # This base has no such structure, or an earlier damage has removed it.
            done.append(f"(not {damage.__name__}: {error})")
    if source.random() < 0.65:
        layout.seal()
        done.append("sealed")
    return layout, done


def _odd(layout: Ext4Layout, source: random.Random, fields: tuple[Field, ...], at: int, others: tuple[int, ...]) -> str:
    """Give one of the fields of the structure at a byte offset a value that breaks parsers."""
    name, form, offset = source.choice(fields)
    now = layout.get(form, at + offset)
    limit = 1 << 8 * struct.calcsize(form)
    value = source.choice(others) % limit if others and source.random() < 0.3 else odd_value(layout, source, form, now)
    layout.put(form, at + offset, value)
    return f"{name} {now} -> {value}"


# -- Superblock and groups.


def superblock_field(layout: Ext4Layout, source: random.Random) -> str:
    return _odd(layout, source, SUPER, 1024, (layout.number(any_path(source)), 8, 2, layout.inode_size))


def feature_bit(layout: Ext4Layout, source: random.Random) -> str:
    offset = source.choice(tuple(BITS))
    bit = source.choice(BITS[offset])
    layout.put("<I", 1024 + offset, layout.get("<I", 1024 + offset) ^ bit)
    return f"feature bit {bit:#x} at byte {offset} turned over"


def descriptor_field(layout: Ext4Layout, source: random.Random) -> str:
    group = source.randrange(layout.groups)
    fields = GROUP + (GROUP_64 if layout.descriptor_size > 32 else ())
    if not group:
        # Without the first group's inode table there is no root.
        fields = tuple(field for field in fields if "inode_table" not in field[0])
    others = (a_block(layout, source), 1, 2, 3, 4, 7, layout.inodes_per_group)
    return f"group {group}: {_odd(layout, source, fields, layout.descriptor(group), others)}"


def descriptor_copied(layout: Ext4Layout, source: random.Random) -> str:
    one, other = source.randrange(layout.groups), source.randrange(layout.groups)
    first, second, size = layout.descriptor(one), layout.descriptor(other), layout.descriptor_size
    layout.data[second : second + size] = layout.data[first : first + size]
    return f"group {other} has the descriptor of group {one}"


def metadata_elsewhere(layout: Ext4Layout, source: random.Random) -> str:
    """flex_bg lets a group's metadata be anywhere: in another group's, too."""
    group, which = source.randrange(layout.groups), source.randrange(3)
    number = a_block(layout, source)
    layout.set_group(group, "<I", 4 * which, number & 0xFFFFFFFF)
    return f"group {group}: metadata {which} in block {number}"


def bitmap(layout: Ext4Layout, source: random.Random) -> str:
    group, which, size = source.randrange(layout.groups), source.randrange(2), layout.block_size
    start = layout.bitmap(group, which)
    fill = source.choice((b"\xff" * size, bytes(size), source.randbytes(size)))
    layout.data[start : start + size] = fill
    return f"group {group}: {('block', 'inode')[which]} bitmap of {fill[:2].hex()}"


# -- Inodes.


def inode_field(layout: Ext4Layout, source: random.Random) -> str:
    path = any_path(source)
    fields = INODE + (INODE_EXTRA if layout.inode_size > 128 else ())
    return f"{path!r}: {_odd(layout, source, fields, layout.at(path), (a_block(layout, source), 60, 4096))}"


def inode_flags(layout: Ext4Layout, source: random.Random) -> str:
    path = any_path(source)
    flags = layout.flags(layout.number(path))
    for flag in source.sample(FLAGS, source.choice((1, 1, 2, 4))):
        flags ^= flag
    layout.set_inode(path, "<I", 32, flags)
    return f"{path!r}: i_flags {flags:#x}"


def own_inode_field(layout: Ext4Layout, source: random.Random) -> str:
    """An inode of the file system's own: of the journal, of resizing, of quotas, of orphans."""
    ino = source.choice((2, 3, 4, 7, 7, 8, 8, 8, 9, layout.get("<I", 1024 + 0x280) or 10))
    return f"inode {ino}: {_odd(layout, source, INODE, layout.inode(ino), (a_block(layout, source),))}"


def inode_copied(layout: Ext4Layout, source: random.Random) -> str:
    one, other = any_path(source), any_path(source)
    first, second, size = layout.at(one), layout.at(other), layout.inode_size
    layout.data[second : second + size] = layout.data[first : first + size]
    return f"{other!r} has a copy of the inode of {one!r}"


def inode_noise(layout: Ext4Layout, source: random.Random) -> str:
    path = source.choice((*FILES, *OTHERS))
    start, size = layout.at(path), layout.inode_size
    for _ in range(source.choice((1, 3, 100))):
        layout.data[start + source.randrange(size)] = source.randrange(256)
    return f"{path!r}: noise in its inode"


# -- Extents.


def _node(layout: Ext4Layout, source: random.Random) -> tuple[str, int, int]:
    """A node of an extent tree: its name, its byte offset, its depth."""
    path = source.choice(TREES)
    ino = layout.number(path)
    assert layout.flags(ino) & EXTENTS, f"{path!r} has no extents"
    at = layout.inode(ino) + 40
    nodes = [(f"i_block of {path!r}", at, layout.get("<H", at + 6))]
    nodes += [
        (f"extent block {number} of {path!r}", number * layout.block_size, depth)
        for number, depth in layout.tree_blocks.get(ino, ())
    ]
    return source.choice(nodes)


def _entry_of(layout: Ext4Layout, source: random.Random, at: int) -> int:
    count = min(layout.get("<H", at + 2), 84)
    assert count, "a node without entries"
    return at + 12 + 12 * source.choice((0, count - 1, source.randrange(count)))


def extent_header(layout: Ext4Layout, source: random.Random) -> str:
    name, at, _ = _node(layout, source)
    return f"{name}: {_odd(layout, source, HEADER, at, (0, 1, 4, 5, 6, 84, 340, 341))}"


def extent_entry(layout: Ext4Layout, source: random.Random) -> str:
    name, at, depth = _node(layout, source)
    entry = _entry_of(layout, source, at)
    kind = source.choice(("logical", "length", "physical", "physical"))
    if kind == "logical":
        value = source.choice((0, 1, 0xFFFFFFFF, 0x80000000, layout.get("<I", entry) + 1, layout.get("<I", entry) - 1))
        layout.put("<I", entry, value & 0xFFFFFFFF)
    elif kind == "length" and not depth:
        value = source.choice((*LENGTHS, layout.get("<H", entry + 4) ^ 0x8000, layout.get("<H", entry + 4) + 1))
        layout.put("<H", entry + 4, value & 0xFFFF)
    else:
        value = a_block(layout, source)
        low, high = (4, 8) if depth else (8, 6)
        layout.put("<I", entry + low, value & 0xFFFFFFFF)
        layout.put("<H", entry + high, value >> 32 & 0xFFFF)
    return f"{name}, depth {depth}: {kind} {value}"


def extent_order(layout: Ext4Layout, source: random.Random) -> str:
    name, at, depth = _node(layout, source)
    one, other = _entry_of(layout, source, at), _entry_of(layout, source, at)
    first, second = layout.data[one : one + 12], layout.data[other : other + 12]
    layout.data[other : other + 12] = first
    if source.random() < 0.5:
        layout.data[one : one + 12] = second
    return f"{name}, depth {depth}: entries changed about"


def extent_noise(layout: Ext4Layout, source: random.Random) -> str:
    name, at, _ = _node(layout, source)
    for _ in range(source.choice((1, 3, 20))):
        layout.data[at + source.randrange(60)] = source.randrange(256)
    return f"{name}: noise"


def extent_cycle(layout: Ext4Layout, source: random.Random) -> str:
    """A tree whose blocks lead to themselves, as deep as its root says."""
    path = source.choice(("pieces", "few", "direct", "htree"))
    ino = layout.number(path)
    block = source.choice(layout.tree_blocks.get(ino) or [(layout.blocks_in(ino)[0], 0)])[0]
    depth = source.choice((1, 2, 4, 5, 6, 0xFFFF))
    size = layout.block_size
    count = source.choice((1, 2, (size - 16) // 12))
    start = block * size
    layout.put("<HHHHI", start, 0xF30A, count, (size - 16) // 12, max(depth - 1, 0) & 0xFFFF, 0)
    for index in range(count):
        layout.put("<IIHH", start + 12 + 12 * index, index * source.choice((0, 1, 1000)), block, 0, 0)
    layout.put("<HHHHIIIHH", layout.at(path) + 40, 0xF30A, 1, 4, depth, 0, 0, block, 0, 0)
    layout.set_inode(path, "<I", 32, layout.flags(ino) & ~INLINE | EXTENTS)
    layout.seal_as(ino, block)
    return f"{path!r}: a tree of depth {depth}, whose block {block} is its own child {count} times"


def extent_chain(layout: Ext4Layout, source: random.Random) -> str:
    """A tree as deep as there are blocks for, each with one entry or with several for the same child."""
    path, size = "pieces", layout.block_size
    ino = layout.number(path)
    depth = source.choice((1, 2, 3, 4, 5, 5, 6))
    blocks = layout.blocks_in(ino)[-depth:]
    count = source.choice((1, 1, 2, 50))
    layout.put("<HHHHIIIHH", layout.at(path) + 40, 0xF30A, 1, 4, depth, 0, 0, blocks[0], 0, 0)
    for level, block in enumerate(blocks):
        below = depth - 1 - level
        layout.put("<HHHHI", block * size, 0xF30A, count, (size - 16) // 12, below, 0)
        for index in range(count):
            logical = index * source.choice((1, 1, 7))
            if below:
                layout.put("<IIHH", block * size + 12 + 12 * index, logical, blocks[level + 1], 0, 0)
            else:
                length = source.choice((1, 1, *LENGTHS))
                layout.put("<IHHI", block * size + 12 + 12 * index, logical, length, 0, blocks[0])
        layout.seal_as(ino, block)
    return f"{path!r}: a tree of depth {depth}, {count} entries a block"


def extent_length(layout: Ext4Layout, source: random.Random) -> str:
    """Every extent of a node made unwritten, or as long as can be."""
    name, at, depth = _node(layout, source)
    assert not depth, "an index"
    value = source.choice(LENGTHS)
    for index in range(min(layout.get("<H", at + 2), 84)):
        layout.put("<H", at + 16 + 12 * index, value)
    return f"{name}: ee_len {value} everywhere"


def shared_map(layout: Ext4Layout, source: random.Random) -> str:
    one, other = source.sample((*FILES, *DIRECTORIES), 2)
    first, second = layout.at(one) + 40, layout.at(other) + 40
    layout.data[second : second + 60] = layout.data[first : first + 60]
    if source.random() < 0.7:
        layout.set_inode(other, "<I", 32, layout.flags(layout.number(one)))
        layout.set_inode(other, "<I", 4, layout.get("<I", first - 36))
    return f"{other!r} has the i_block of {one!r}"


# -- Contents in inodes, attributes.


def inline(layout: Ext4Layout, source: random.Random) -> str:
    """An inode with its contents in it: size, the first entry, the attribute with the rest."""
    path = source.choice(("tiny", "small", "small", "dir", "dir", "a", "acl", "hollow", "middle"))
    ino = layout.number(path)
    assert layout.flags(ino) & INLINE, f"{path!r} is not inline"
    at = layout.inode(ino)
    kind = source.choice(("size", "entry", "entry", "attribute", "attribute", "parent"))
    if kind == "size":
        what = _odd(layout, source, (("i_size", "<I", 4),), at, (0, 1, 3, 4, 56, 60, 61, 64, 100, 160, 4096))
    elif kind == "entry":
        start, end = source.choice(layout.inline_areas(ino))
        fields = (
            ("inode", "<I", 0),
            ("rec_len", "<H", 4),
            ("rec_len", "<H", 4),
            ("name_len", "<B", 6),
            ("name", "<B", 8),
        )
        others = (0, 4, 8, 12, end - start, end - start + 4, end - start - 4, ord("/"), ino)
        what = _odd(layout, source, fields, start, others)
    elif kind == "attribute":
        what = _odd(layout, source, XATTR_ENTRY, _body_entry(layout, ino), (0, 4, 100, 1000, 7, ino))
    else:
        what = _odd(layout, source, (("parent", "<I", 40),), at, (0, 1, 2, ino, layout.inodes_count + 1))
    return f"{path!r}, inline: {what}"


def _body_entry(layout: Ext4Layout, ino: int) -> int:
    at = layout.inode(ino)
    assert layout.inode_size > 128, "no attributes in inodes"
    extra = at + 128 + layout.get("<H", at + 128)
    assert layout.get("<I", extra) == 0xEA020000, "no attributes in the inode"
    return extra + 4


def xattr_body(layout: Ext4Layout, source: random.Random) -> str:
    path = source.choice(("attributes", "acl", "acl/file", "small", "shared-one", "dir"))
    ino = layout.number(path)
    entry = _body_entry(layout, ino)
    if source.random() < 0.4:
        entry += 16 + (layout.get("<B", entry) + 3 & ~3)
    return f"attributes of {path!r}: {_odd(layout, source, XATTR_ENTRY, entry, (ino, 2, 8, 11, 60_000))}"


def xattr_block(layout: Ext4Layout, source: random.Random) -> str:
    path = source.choice(("shared-one", "attributes"))
    start = layout.xattr_block(path)
    header = (("h_magic", "<I", 0), ("h_refcount", "<I", 4), ("h_blocks", "<I", 8), ("h_hash", "<I", 12))
    if source.random() < 0.3:
        what = _odd(layout, source, header, start, (0, 1, 1025))
    else:
        what = _odd(layout, source, XATTR_ENTRY, start + 32, (layout.number(path), 12, 1000, 1024))
    return f"attribute block of {path!r}: {what}"


def value_inode(layout: Ext4Layout, source: random.Random) -> str:
    """The inode that an attribute's value is in, or what refers to it."""
    start = layout.xattr_block("attributes")
    position, referring = start + 32, []
    while layout.get("<I", position):
        if layout.get("<I", position + 4):
            referring.append(position)
        position += 16 + (layout.get("<B", position) + 3 & ~3)
    assert referring, "no value in an inode"
    entry = source.choice(referring)
    ino = layout.get("<I", entry + 4)
    if source.random() < 0.4:
        value = source.choice((layout.number("attributes"), 2, 8, 1, layout.inodes_count, layout.inodes_count + 1,
                               layout.number("huge"), layout.number("dir"), 0xFFFFFFFF))  # fmt: skip
        layout.put("<I", entry + 4, value)
        return f"e_value_inum {ino} -> {value}"
    fields = (("i_mode", "<H", 0), ("i_size", "<I", 4), ("i_atime", "<I", 8), ("i_ctime", "<I", 12),
              ("i_links_count", "<H", 26), ("i_flags", "<I", 32), ("i_version", "<I", 36), ("i_generation", "<I", 100),
              ("ee_len", "<H", 56), ("ee_start", "<I", 60), ("i_size_high", "<I", 108))  # fmt: skip
    return f"inode {ino} of a value: {_odd(layout, source, fields, layout.inode(ino), (0, 65536, 65537, 9000))}"


def xattr_elsewhere(layout: Ext4Layout, source: random.Random) -> str:
    path, number = any_path(source), a_block(layout, source)
    layout.set_inode(path, "<I", 104, number & 0xFFFFFFFF)
    layout.set_inode(path, "<H", 118, number >> 32 & 0xFFFF)
    return f"{path!r}: i_file_acl {number}"


# -- Directories.


def index_block(layout: Ext4Layout, source: random.Random) -> str:
    """The root of an index, or a block below it."""
    root = (("hash_version", "<B", 28), ("info_length", "<B", 29), ("indirect_levels", "<B", 30), ("limit", "<H", 32),
            ("count", "<H", 34), ("block", "<I", 36), ("hash", "<I", 40), ("block", "<I", 44), ("rec_len", "<H", 4),
            (".. rec_len", "<H", 16), ("reserved_zero", "<I", 24))  # fmt: skip
    node = (("rec_len", "<H", 4), ("limit", "<H", 8), ("count", "<H", 10), ("block", "<I", 12), ("hash", "<I", 16),
            ("block", "<I", 20), ("inode", "<I", 0))  # fmt: skip
    blocks = layout.blocks_in(layout.number("htree"))
    nodes = [number for number in blocks[1:] if layout.get("<I", number * layout.block_size) == 0
             and layout.get("<H", number * layout.block_size + 4) == layout.block_size]  # fmt: skip
    if nodes and source.random() < 0.5:
        number, fields = source.choice(nodes), node
    else:
        number, fields = blocks[0], root
    others = (0, 1, 2, 3, 5, 6, len(blocks), len(blocks) - 1, 0x0FFFFFFF, 124, 508)
    return f"index, block {number}: {_odd(layout, source, fields, number * layout.block_size, others)}"


def directory_entry(layout: Ext4Layout, source: random.Random) -> str:
    path = source.choice(("plain", "dir", "dir/first", "htree", "a/b", f"htree/{source.choice(NAMES)}", "acl/file"))
    fields = (("inode", "<I", 0), ("inode", "<I", 0), ("rec_len", "<H", 4), ("rec_len", "<H", 4), ("name_len", "<B", 6),
              ("file_type", "<B", 7), ("name", "<B", 8))  # fmt: skip
    others = (layout.number(any_path(source)), layout.number(any_path(source)), 8, 2, ord("/"), 0, ord("."), 3, 7)
    return f"entry of {path!r}: {_odd(layout, source, fields, layout.entry(path), others)}"


def directory_tail(layout: Ext4Layout, source: random.Random) -> str:
    path = source.choice(("", "htree", "dir", "acl", "lost+found"))
    number = source.choice(layout.blocks_in(layout.number(path)))
    fields = (("det_reserved_zero1", "<I", 0), ("det_rec_len", "<H", 4), ("det_reserved_zero2", "<B", 6),
              ("det_reserved_ft", "<B", 7), ("det_checksum", "<I", 8))  # fmt: skip
    at = (number + 1) * layout.block_size - 12
    return f"tail of block {number} of {path!r}: {_odd(layout, source, fields, at, (0, 12, 0xDE))}"


def directory_noise(layout: Ext4Layout, source: random.Random) -> str:
    path = source.choice(DIRECTORIES)
    number = source.choice(layout.blocks_in(layout.number(path)))
    start = number * layout.block_size
    for _ in range(source.choice((1, 4, 64))):
        layout.data[start + source.randrange(24 if path == "" else 0, layout.block_size)] = source.randrange(256)
    return f"{path!r}: noise in block {number}"


# -- Journal and orphans.


def _journal_blocks(layout: Ext4Layout) -> list[int]:
    blocks = layout.blocks_in(8)
    assert blocks, "no journal"
    return blocks


def journal_superblock(layout: Ext4Layout, source: random.Random) -> str:
    start = _journal_blocks(layout)[0] * layout.block_size
    fields = (("h_magic", ">I", 0), ("h_blocktype", ">I", 4), ("s_blocksize", ">I", 12), ("s_maxlen", ">I", 16),
              ("s_first", ">I", 20), ("s_sequence", ">I", 24), ("s_start", ">I", 28), ("s_start", ">I", 28),
              ("s_errno", ">I", 32), ("s_feature_compat", ">I", 36), ("s_feature_incompat", ">I", 40),
              ("s_nr_users", ">I", 64), ("s_checksum_type", ">B", 80), ("s_num_fc_blks", ">I", 84),
              ("s_head", ">I", 88))  # fmt: skip
    what = _odd(layout, source, fields, start, (0, 1, 2, 8, 16, 32, 64, 1024, 4096))
    if source.random() < 0.8:
        layout.put(">I", start + 0xFC, 0)
        layout.put(">I", start + 0xFC, crc32c(bytes(layout.data[start : start + 1024]), 0xFFFFFFFF))
    return f"journal superblock: {what}"


def journal_log(layout: Ext4Layout, source: random.Random) -> str:
    """A field of a block of the log that is one of the journal's own, or noise in any."""
    blocks, size = _journal_blocks(layout), layout.block_size
    own = [number for number in blocks[1:] if layout.get(">I", number * size) == 0xC03B3998]
    number = source.choice(own if own and source.random() < 0.8 else blocks[1:200])
    fields = (
        ("h_magic", ">I", 0),
        ("h_blocktype", ">I", 4),
        ("h_sequence", ">I", 8),
        ("t_blocknr", ">I", 12),
        ("t_flags", ">I", 16),
        ("t_blocknr_high", ">I", 20),
        ("t_checksum", ">I", 24),
        ("h_chksum", ">I", 16),
    )
    others = (1, 2, 3, 4, 5, 8, 10, a_block(layout, source))
    return f"journal, block {number}: {_odd(layout, source, fields, number * size, others)}"


def orphans(layout: Ext4Layout, source: random.Random) -> str:
    """A list through i_dtime, perhaps in a circle; or the orphan file's blocks."""
    if layout.compat & 0x1000 and source.random() < 0.6:
        ino = layout.get("<I", 1024 + 0x280)
        number = source.choice(layout.blocks_in(ino)[:4])
        at = number * layout.block_size
        value = source.choice((layout.number(source.choice(FILES)), 1, 2, 8, ino, layout.inodes_count + 1, 0xFFFFFFFF))
        layout.put("<I", at + 4 * source.choice((0, 1, layout.block_size // 4 - 3)), value)
        layout.put("<I", 1024 + 100, layout.get("<I", 1024 + 100) | 0x10000)
        if source.random() < 0.3:
            layout.put("<I", at + layout.block_size - 8, source.choice((0, 1, 0x0B10CA05)))
        return f"orphan file: inode {value}"
    paths = source.sample(FILES, source.choice((1, 2, 3)))
    numbers = [layout.number(path) for path in paths]
    layout.set_super("<I", 232, numbers[0])
    ends = (0, numbers[0], layout.inodes_count + 1, 1, 2, 8)
    for path, following in zip(paths, [*numbers[1:], source.choice(ends)], strict=True):
        layout.set_inode(path, "<I", 20, following)
        if source.random() < 0.5:
            layout.set_inode(path, "<H", 26, 0)
    return f"orphans {paths}"


def block_noise(layout: Ext4Layout, source: random.Random) -> str:
    number = source.randrange(layout.first_data_block + 1, layout.blocks_count)
    start = number * layout.block_size
    layout.data[start : start + layout.block_size] = source.randbytes(layout.block_size)
    return f"block {number} is noise"


DAMAGES: tuple[Damage, ...] = (
    superblock_field, superblock_field, feature_bit, descriptor_field, descriptor_field, descriptor_copied,
    metadata_elsewhere, bitmap, inode_field, inode_field, inode_field, inode_flags, inode_flags, own_inode_field,
    inode_copied, inode_noise, extent_header, extent_header, extent_entry, extent_entry, extent_entry, extent_order,
    extent_noise, extent_cycle, extent_cycle, extent_chain, extent_chain, extent_length, shared_map, inline, inline,
    inline, xattr_body, xattr_body, xattr_block, value_inode, value_inode, xattr_elsewhere, index_block, index_block,
    directory_entry, directory_entry, directory_tail, directory_noise, journal_superblock, journal_log, journal_log,
    orphans, orphans, block_noise,
)  # fmt: skip
