"""Hashes of names in directories, and blocks of them, one call of C for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from mystfuse.kernels.interface import UNUSUAL, Bytes
from mystfuse.kernels.native._kernel import ffi, lib

_MIN_REC_LEN = 12


@lru_cache(maxsize=16)
def _words(seed: Sequence[int]) -> Any:
    return ffi.new("uint32_t[4]", seed)


def name_hash(version: int, seed: tuple[int, int, int, int], name: bytes) -> int:
    """See ``pure.directory_hash.name_hash``."""
    return int(lib.dx_hash(version, _words(seed), name, len(name)))


def find_room(block: Bytes, end: int, has_filetype: bool, needed: int) -> int:
    """See ``pure.directory_hash.find_room``."""
    return int(lib.directory_room(ffi.from_buffer("uint8_t[]", block), end, has_filetype, needed))


def hashed_entries(
    block: Bytes, end: int, has_filetype: bool, version: int, seed: tuple[int, int, int, int]
) -> list[int] | None:
    """See ``pure.directory_hash.hashed_entries``."""
    entries = ffi.new("uint64_t[]", end // _MIN_REC_LEN)
    view = ffi.from_buffer("uint8_t[]", block)
    count = lib.directory_hashes(view, end, has_filetype, version, _words(seed), entries)
    return None if count == UNUSUAL else sorted(ffi.unpack(entries, count)) if count else []
