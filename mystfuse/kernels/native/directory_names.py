"""Names in blocks of directories, one call of C for each block."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence

from mystfuse.kernels.interface import UNUSUAL, Bytes
from mystfuse.kernels.native._kernel import ffi, lib

_SECRET = os.urandom(16)
_MIN_REC_LEN = 12


def find_entry(block: Bytes, has_filetype: bool, name: bytes) -> int:
    """See ``pure.directory.find_entry``."""
    return int(lib.directory_find(ffi.from_buffer("uint8_t[]", block), len(block), has_filetype, name, len(name)))


def name_key(name: bytes) -> int:
    """See ``pure.directory.name_key``."""
    return int(lib.directory_hash(_SECRET, name, len(name))) << 32


def block_keys(
    blocks: Sequence[Bytes], first: int, has_filetype: bool, bits: int
) -> tuple[list[array[int]], list[int]]:
    """See ``pure.directory.block_keys``."""
    keys = ffi.new("uint64_t[]", sum(len(block) // _MIN_REC_LEN for block in blocks))
    count = 0
    unusual: list[int] = []
    for index, block in enumerate(blocks):
        view = ffi.from_buffer("uint8_t[]", block)
        found = lib.directory_keys(_SECRET, view, len(block), has_filetype, first + index, keys + count)
        if found == UNUSUAL:
            unusual.append(index)
        else:
            count += found
    divided, ends = ffi.new("uint64_t[]", count), ffi.new("uint32_t[]", 1 << bits)
    lib.directory_divide(keys, count, bits, divided, ends)
    arrays: list[array[int]] = []
    begin = 0
    with memoryview(ffi.buffer(divided)) as view:
        for end in ends:
            arrays.append(array("Q", view[begin * 8 : end * 8].tobytes()))
            begin = end
    return arrays, unusual
