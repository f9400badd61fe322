"""Damage by seed: 1 to 4 damages in a base, each in a known structure, with the values that break parsers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests.corruption.bases import DEEP, HTREE_NAMES, Layout
from tests.support.ext2_editor import ROOT

Damage = Callable[[Layout, random.Random], str]
_SUPER = (
    ("s_inodes_count", "<I", 0), ("s_blocks_count", "<I", 4), ("s_r_blocks_count", "<I", 8),
    ("s_free_blocks_count", "<I", 12), ("s_free_inodes_count", "<I", 16), ("s_first_data_block", "<I", 20),
    ("s_log_block_size", "<I", 24), ("s_log_frag_size", "<I", 28), ("s_blocks_per_group", "<I", 32),
    ("s_frags_per_group", "<I", 36), ("s_inodes_per_group", "<I", 40), ("s_state", "<H", 58), ("s_errors", "<H", 60),
    ("s_minor_rev_level", "<H", 62), ("s_creator_os", "<I", 72), ("s_rev_level", "<I", 76),
    ("s_def_resuid", "<H", 80), ("s_first_ino", "<I", 84), ("s_inode_size", "<H", 88), ("s_block_group_nr", "<H", 90),
    ("s_feature_compat", "<I", 92), ("s_feature_incompat", "<I", 96), ("s_feature_ro_compat", "<I", 100),
    ("s_reserved_gdt_blocks", "<H", 206), ("s_last_orphan", "<I", 232), ("s_hash_seed", "<I", 236),
    ("s_def_hash_version", "<B", 252), ("s_jnl_backup_type", "<B", 253), ("s_desc_size", "<H", 254),
    ("s_first_meta_bg", "<I", 260), ("s_flags", "<I", 352), ("s_blocks_count_hi", "<I", 336),
    ("s_min_extra_isize", "<H", 348), ("s_log_groups_per_flex", "<B", 372),
)  # fmt: skip
_HARMLESS_SUPER = ("s_free_blocks_count", "s_free_inodes_count", "s_r_blocks_count", "s_last_orphan", "s_state",
                   "s_desc_size", "s_def_hash_version", "s_reserved_gdt_blocks", "s_first_ino")  # fmt: skip
"""Fields that leave most images mountable."""
_GROUP = (
    ("bg_block_bitmap", "<I", 0), ("bg_inode_bitmap", "<I", 4), ("bg_inode_table", "<I", 8),
    ("bg_free_blocks_count", "<H", 12), ("bg_free_inodes_count", "<H", 14), ("bg_used_dirs_count", "<H", 16),
    ("bg_flags", "<H", 18), ("bg_itable_unused", "<H", 28),
)  # fmt: skip
_INODE = (
    ("i_mode", "<H", 0), ("i_uid", "<H", 2), ("i_size", "<I", 4), ("i_atime", "<I", 8), ("i_ctime", "<I", 12),
    ("i_mtime", "<I", 16), ("i_dtime", "<I", 20), ("i_gid", "<H", 24), ("i_links_count", "<H", 26),
    ("i_blocks", "<I", 28), ("i_flags", "<I", 32), ("i_version", "<I", 36), ("i_generation", "<I", 100),
    ("i_file_acl", "<I", 104), ("i_size_high", "<I", 108), ("i_faddr", "<I", 112), ("i_file_acl_high", "<H", 118),
    ("i_uid_high", "<H", 120),
)  # fmt: skip
_LARGE_INODE = (
    ("i_extra_isize", "<H", 128), ("i_ctime_extra", "<I", 132), ("i_mtime_extra", "<I", 136),
    ("i_atime_extra", "<I", 140), ("i_crtime", "<I", 144),
)  # fmt: skip
FILES = ("plain", "empty", "direct", "single", "double", "huge", "sparse", "dir/first", f"{DEEP}/bottom",
         "shared-one", "shared-two", "attributes", "acl/file")  # fmt: skip
DIRECTORIES = ("", "dir", "hollow", "htree", "acl", "lost+found", *(DEEP[: 2 * depth + 1] for depth in range(6)))
OTHERS = ("fast", "slow", "fifo", "char", "block")
MAPPED = ("single", "double", "huge", "sparse", "lost+found")
"""Files with indirect blocks, in some base at least."""


def spoil(base: bytes, seed: int) -> tuple[bytes, list[str]]:
    """A base with the damage of a seed, and a description of that damage."""
    layout = Layout(base)
    source = random.Random(seed)
    done: list[str] = []
    for _ in range(source.choice((1, 1, 2, 3, 4))):
        damage = source.choice(DAMAGES)
        try:
            done.append(damage(layout, source))
        except (AssertionError, struct.error, IndexError) as error:
            # An earlier damage has removed the structure that this one changes.
            done.append(f"(not {damage.__name__}: {error})")
    return bytes(layout.data), done


def odd_value(layout: Layout, source: random.Random, form: str, now: int) -> int:
    """A value that is worth trying in place of ``now``."""
    limit = 1 << 8 * struct.calcsize(form)
    size, blocks = layout.block_size, layout.blocks_count
    value = source.choice(
        (0, 1, 2, limit - 1, limit // 2, limit // 2 - 1, now + 1, now - 1, now ^ 1 << source.randrange(31), now * 2,
         size, size - 1, size + 1, 60, 59, 61, 4096, 65536, 65535, blocks, blocks - 1, blocks + 1, layout.inodes_count,
         layout.inodes_count + 1, 11, 10, source.randrange(limit), source.randrange(blocks))
    )  # fmt: skip
    return value % limit


def _set_odd(layout: Layout, source: random.Random, name: str, form: str, position: int) -> str:
    now = layout.get(form, position)
    value = odd_value(layout, source, form, now)
    layout.put(form, position, value)
    return f"{name} {now} -> {value}"


def any_path(source: random.Random) -> str:
    return source.choice((*FILES, *DIRECTORIES, *OTHERS))


def odd_block(layout: Layout, source: random.Random) -> int:
    """A block number that a pointer should not have: outside the file system, of metadata, of another file, or free."""
    group = source.randrange(layout.groups)
    metadata = layout.descriptor(group)
    other = source.choice(("empty", "direct", "dir", "htree", "plain", "shared-one"))
    return source.choice(
        (1, layout.first_data_block, layout.blocks_count, layout.blocks_count - 1, 0xFFFFFFFF, 0x80000000,
         layout.get("<I", metadata), layout.get("<I", metadata + 4), layout.get("<I", metadata + 8),
         layout.get("<I", metadata + 8) + source.randrange(4), layout.first_data_block + 1,
         layout.pointer_of(other), layout.pointer_of(other), source.randrange(layout.blocks_count))
    )  # fmt: skip


def superblock_field(layout: Layout, source: random.Random) -> str:
    fields = _SUPER if source.random() < 0.3 else [field for field in _SUPER if field[0] in _HARMLESS_SUPER]
    name, form, offset = source.choice(fields)
    return _set_odd(layout, source, name, form, 1024 + offset)


def descriptor_field(layout: Layout, source: random.Random) -> str:
    group = source.randrange(layout.groups)
    # Without the first group's inode table there is no root.
    name, form, offset = source.choice(_GROUP if group or source.random() < 0.2 else _GROUP[3:])
    return _set_odd(layout, source, f"group {group}: {name}", form, layout.descriptor(group) + offset)


def bitmap(layout: Layout, source: random.Random) -> str:
    group, which = source.randrange(layout.groups), source.randrange(2)
    start = layout.bitmap(group, which)
    kind = source.choice(("full", "free", "noise", "inverted"))
    size = layout.block_size
    old = bytes(layout.data[start : start + size])
    layout.data[start : start + size] = {
        "full": b"\xff" * size,
        "free": bytes(size),
        "noise": source.randbytes(size),
        "inverted": bytes(byte ^ 0xFF for byte in old),
    }[kind]
    return f"group {group}: {('block', 'inode')[which]} bitmap {kind}"


def inode_field(layout: Layout, source: random.Random) -> str:
    path = any_path(source)
    fields = (*_INODE, *(_LARGE_INODE if layout.inode_size > 128 else ()))
    name, form, offset = source.choice(fields)
    return _set_odd(layout, source, f"{path!r}: {name}", form, layout.at(path) + offset)


def inode_size_field(layout: Layout, source: random.Random) -> str:
    path = any_path(source)
    name, form, offset = source.choice((_INODE[2], _INODE[2], _INODE[14]))
    return _set_odd(layout, source, f"{path!r}: {name}", form, layout.at(path) + offset)


def inode_type(layout: Layout, source: random.Random) -> str:
    path = any_path(source)
    mode = source.randrange(16) << 12 | source.choice((0o644, 0o777, 0o7777, 0))
    layout.set_inode(path, "<H", 0, mode)
    return f"{path!r}: i_mode {mode:#o}"


def inode_noise(layout: Layout, source: random.Random) -> str:
    position = layout.at(source.choice((*FILES, *OTHERS)))
    layout.data[position : position + layout.inode_size] = source.randbytes(layout.inode_size)
    return f"the inode at byte {position} is noise"


def inode_copied(layout: Layout, source: random.Random) -> str:
    one, other = any_path(source), any_path(source)
    first, second, size = layout.at(one), layout.at(other), layout.inode_size
    layout.data[second : second + size] = layout.data[first : first + size]
    return f"{other!r} has a copy of the inode of {one!r}"


def block_pointer(layout: Layout, source: random.Random) -> str:
    path, index = any_path(source), source.choice((0, 0, 1, 2, 11, 12, 13, 14))
    number = odd_block(layout, source)
    layout.set_pointer(path, index, number)
    return f"{path!r}: i_block[{index}] = {number}"


def indirect_block(layout: Layout, source: random.Random) -> str:
    path, index = source.choice((("single", 12), ("double", 13), ("huge", 14), ("huge", 13), ("lost+found", 12)))
    block = layout.data_of(path, index)
    for _ in range(source.choice((1, 3, 50))):
        layout.put("<I", block + 4 * source.randrange(layout.block_size // 4), odd_block(layout, source))
    return f"{path!r}: pointers in the block of i_block[{index}]"


def indirect_cycle(layout: Layout, source: random.Random) -> str:
    path, index = source.choice((("single", 12), ("double", 13), ("huge", 14), ("huge", 13)))
    block = layout.data_of(path, index)
    number = block // layout.block_size
    layout.put(f"<{layout.block_size // 4}I", block, *[number] * (layout.block_size // 4))
    roots = source.sample((12, 13, 14), source.randrange(1, 4))
    for root in roots:
        layout.set_pointer(path, root, number)
    layout.set_inode(path, "<I", 4, source.choice((1 << 20, 1 << 28, 0xFFFFFC00)))
    return f"{path!r}: the block of i_block[{index}] is its own child, and in {roots}"


def shared_map(layout: Layout, source: random.Random) -> str:
    one, other = source.sample(FILES, 2)
    first, second = layout.at(one) + 40, layout.at(other) + 40
    layout.data[second : second + 60] = layout.data[first : first + 60]
    size = layout.get("<I", first - 36)
    layout.set_inode(other, "<I", 4, size)
    return f"{other!r} has the blocks of {one!r}"


def directory_loop(layout: Layout, source: random.Random) -> str:
    path = source.choice(("dir/first", "dir/second", f"{DEEP}/bottom", "acl/file"))
    target = source.choice(DIRECTORIES)
    layout.put("<I", layout.entry(path), layout.number(target))
    layout.put("<B", layout.entry(path) + 7, 2)
    return f"{path!r} is another name of directory {target!r}"


def dotdot(layout: Layout, source: random.Random) -> str:
    path, target = source.choice(DIRECTORIES), any_path(source)
    offset = source.choice((0, 12, 12))
    number = source.choice((layout.number(target), layout.number(path), 0, layout.inodes_count + 1, 1))
    layout.put("<I", layout.data_of(path) + offset, number)
    return f"{path!r}: {'..' if offset else '.'} is inode {number}"


def no_dots(layout: Layout, source: random.Random) -> str:
    path, offset = source.choice(DIRECTORIES), source.choice((0, 12))
    name = source.choice((b"x", b"..", b".", b"/", b"\0\0"))
    layout.put(f"<B1x{len(name)}s", layout.data_of(path) + offset + 6, len(name), name)
    return f"{path!r}: the entry at {offset} is called {name!r}"


def _any_entry(layout: Layout, source: random.Random) -> tuple[str, int]:
    if source.random() < 0.3:
        path = f"htree/{source.choice(HTREE_NAMES)}"
    else:
        path = source.choice((*FILES, *OTHERS, "dir", "hollow", "htree", "a", "a/b", DEEP))
    return path, layout.entry(path)


def entry_length(layout: Layout, source: random.Random) -> str:
    path, position = _any_entry(layout, source)
    size = layout.block_size
    rec_len = source.choice((0, 1, 3, 4, 8, 11, 12, 13, 14, 16, 24, size, size - 4, 32768, 65532, 65535))
    layout.put("<H", position + 4, rec_len)
    return f"{path!r}: rec_len {rec_len}"


def entry_name(layout: Layout, source: random.Random) -> str:
    path, position = _any_entry(layout, source)
    name_len = layout.get("<B", position + 6)
    choice = source.choice(("length", "slash", "nul", "dot", "dotdot", "bytes", "control"))
    if choice == "length":
        layout.put("<B", position + 6, source.choice((0, 1, name_len + 1, 255, max(name_len - 1, 0))))
    elif choice in ("dot", "dotdot"):
        layout.put("<B1x2s", position + 6, len(choice) // 3, b"..")
    elif choice == "control" and name_len >= 9:
        layout.put("<B1x9s", position + 6, 9, b".mystfuse")
    else:
        byte = {"slash": b"/", "nul": b"\0"}.get(choice, source.randbytes(1))
        layout.put("<c", position + 8 + source.randrange(max(name_len, 1)), byte)
    return f"{path!r}: name {choice}"


def entry_inode(layout: Layout, source: random.Random) -> str:
    path, position = _any_entry(layout, source)
    number = source.choice(
        (0, 1, 3, 5, 7, 8, 10, ROOT, layout.inodes_count, layout.inodes_count + 1, 0xFFFFFFFF, 0x80000000,
         layout.number(any_path(source)), layout.number(any_path(source)), source.randrange(1, layout.inodes_count))
    )  # fmt: skip
    layout.put("<I", position, number)
    return f"{path!r}: inode {number}"


def entry_type(layout: Layout, source: random.Random) -> str:
    path, position = _any_entry(layout, source)
    kind = source.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7F, 0xDE, 0xFF))
    layout.put("<B", position + 7, kind)
    return f"{path!r}: file_type {kind}"


def duplicate_name(layout: Layout, source: random.Random) -> str:
    one, other = source.sample(("dir/first", "dir/third", "plain", "empty", "single", "sparse", "char"), 2)
    from_entry, to_entry = layout.entry(one), layout.entry(other)
    length = min(layout.get("<B", from_entry + 6), layout.get("<H", to_entry + 4) - 8)
    layout.put("<B", to_entry + 6, length)
    layout.data[to_entry + 8 : to_entry + 8 + length] = layout.data[from_entry + 8 : from_entry + 8 + length]
    return f"{other!r} is called as {one!r} is"


def directory_noise(layout: Layout, source: random.Random) -> str:
    path = source.choice(DIRECTORIES)
    start = layout.data_of(path)
    for _ in range(source.choice((1, 4, 64))):
        layout.data[start + source.randrange(24 if path == "" else 0, layout.block_size)] = source.randrange(256)
    return f"{path!r}: noise in its first block"


def directory_block_zeroed(layout: Layout, source: random.Random) -> str:
    path = source.choice(DIRECTORIES[1:])
    start = layout.data_of(path, source.choice((0, 0, 1)))
    layout.data[start : start + layout.block_size] = bytes(layout.block_size)
    return f"{path!r}: a block of zeros"


def htree_index(layout: Layout, source: random.Random) -> str:
    start = layout.data_of("htree")
    form, offset = source.choice(
        (("<B", 28), ("<B", 29), ("<B", 30), ("<H", 32), ("<H", 34), ("<I", 24), ("<I", 36), ("<I", 44), ("<I", 52),
         ("<I", 40), ("<I", 48))
    )  # fmt: skip
    if source.random() < 0.2:
        layout.put("<I", layout.data_of("htree", 1), 0)
    return _set_odd(layout, source, f"htree index, byte {offset}", form, start + offset)


def index_flag(layout: Layout, source: random.Random) -> str:
    path = source.choice(DIRECTORIES)
    layout.set_inode(path, "<I", 32, 0x1000)
    return f"{path!r}: EXT2_INDEX_FL without an index"


def deleted_but_named(layout: Layout, source: random.Random) -> str:
    path = any_path(source)
    layout.set_inode(path, "<I", 20, source.choice((1, 1_500_000_000, 0xFFFFFFFF, layout.number("plain"))))
    if source.random() < 0.5:
        layout.set_inode(path, "<H", 26, 0)
    return f"{path!r}: has been deleted"


def link_count(layout: Layout, source: random.Random) -> str:
    path = any_path(source)
    count = source.choice((0, 1, 2, 3, 31999, 32000, 65000, 65535))
    layout.set_inode(path, "<H", 26, count)
    return f"{path!r}: i_links_count {count}"


def xattr_block(layout: Layout, source: random.Random) -> str:
    path = source.choice(("shared-one", "attributes"))
    start = layout.xattr_block(path)
    form, offset = source.choice(
        (("<I", 0), ("<I", 4), ("<I", 4), ("<I", 8), ("<I", 12), ("<I", 16), ("<B", 32), ("<B", 33), ("<H", 34),
         ("<I", 36), ("<I", 40), ("<I", 44), ("<B", 48), ("<I", 60))
    )  # fmt: skip
    return _set_odd(layout, source, f"attribute block of {path!r}, byte {offset}", form, start + offset)


def xattr_elsewhere(layout: Layout, source: random.Random) -> str:
    path = any_path(source)
    number = source.choice(
        (layout.pointer_of("direct"), layout.pointer_of("dir"), layout.get("<I", layout.at("shared-one") + 104),
         layout.pointer_of("single", 12), odd_block(layout, source))
    )  # fmt: skip
    layout.set_inode(path, "<I", 104, number)
    return f"{path!r}: i_file_acl {number}"


def xattr_data_shared(layout: Layout, source: random.Random) -> str:
    number = layout.get("<I", layout.at("shared-one") + 104)
    path = source.choice(("direct", "shared-one", "dir", "slow"))
    layout.set_pointer(path, source.choice((0, 1)), number)
    return f"{path!r}: has the attribute block as data"


def xattr_body(layout: Layout, source: random.Random) -> str:
    path = source.choice(("attributes", "plain", "acl", "acl/file", "dir", "char"))
    start = layout.at(path) + 128 + 32
    assert layout.inode_size > 128, "no attributes in the inode"
    if layout.get("<I", start) != 0xEA020000:
        layout.put("<I", start, 0xEA020000)
    form, offset = source.choice((("<B", 4), ("<B", 5), ("<H", 6), ("<I", 8), ("<I", 12), ("<I", 16), ("<I", 0)))
    return _set_odd(layout, source, f"attributes in the inode of {path!r}, byte {offset}", form, start + offset)


def symlink(layout: Layout, source: random.Random) -> str:
    path = source.choice(("fast", "slow"))
    kind = source.choice(("size", "blocks", "nul", "pointer", "no end"))
    if kind == "size":
        layout.set_inode(path, "<I", 4, source.choice((0, 1, 59, 60, 61, layout.block_size - 1, layout.block_size,
                                                       4095, 4096, 65535, 65536, 0x7FFFFFFF, 0xFFFFFFFF)))  # fmt: skip
    elif kind == "blocks":
        layout.set_inode(path, "<I", 28, source.choice((0, 2, 8, 0xFFFFFFFF)))
    elif kind == "nul":
        position = layout.data_of("slow") if path == "slow" else layout.at("fast") + 40
        layout.data[position + source.choice((0, 2))] = 0
    elif kind == "pointer":
        layout.set_pointer(path, 0, odd_block(layout, source))
    else:
        position = layout.data_of("slow")
        layout.data[position : position + layout.block_size] = b"/" * layout.block_size
        layout.set_inode("slow", "<I", 4, layout.block_size - 1)
    return f"{path!r}: symlink {kind}"


def special_with_blocks(layout: Layout, source: random.Random) -> str:
    path = source.choice(("fifo", "char", "block"))
    layout.set_inode(path, "<I", 28, 8)
    for index in range(15):
        layout.set_pointer(path, index, odd_block(layout, source))
    return f"{path!r}: has blocks"


def orphan_list(layout: Layout, source: random.Random) -> str:
    path = source.choice(FILES)
    layout.set_super("<I", 232, layout.number(path))
    layout.set_inode(path, "<I", 20, source.choice((0, layout.number(path), layout.inodes_count + 1, 1)))
    return f"{path!r} is on the orphan list"


def group_table_shifted(layout: Layout, source: random.Random) -> str:
    group = source.randrange(layout.groups)
    table = layout.get("<I", layout.descriptor(group) + 8)
    number = source.choice((table + 1, layout.get("<I", layout.descriptor(group)), table - 1, table + 7))
    layout.set_group(group, "<I", 8, number)
    return f"group {group}: bg_inode_table {table} -> {number}"


def block_noise(layout: Layout, source: random.Random) -> str:
    number = source.randrange(layout.first_data_block + 1, layout.blocks_count)
    start = number * layout.block_size
    layout.data[start : start + layout.block_size] = source.randbytes(layout.block_size)
    return f"block {number} is noise"


DAMAGES: tuple[Damage, ...] = (
    superblock_field, descriptor_field, bitmap, inode_field, inode_field, inode_field, inode_size_field, inode_type,
    inode_noise, inode_copied, block_pointer, block_pointer, indirect_block, indirect_cycle, shared_map,
    directory_loop, dotdot, no_dots, entry_length, entry_name, entry_inode, entry_inode, entry_type, duplicate_name,
    directory_noise, directory_block_zeroed, htree_index, index_flag, deleted_but_named, link_count, xattr_block,
    xattr_block, xattr_elsewhere, xattr_data_shared, xattr_body, symlink, special_with_blocks, orphan_list,
    group_table_shifted, block_noise,
)  # fmt: skip
