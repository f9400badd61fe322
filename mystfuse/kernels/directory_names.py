"""Names in blocks of directories, by the kernels that were chosen: ``find_entry``, ``name_key``, ``block_keys``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mystfuse import kernels

if TYPE_CHECKING or not kernels.IS_NATIVE:
    from mystfuse.kernels.pure.directory_names import block_keys, find_entry, name_key
else:
    from mystfuse.kernels.native.directory_names import block_keys, find_entry, name_key

__all__ = ["block_keys", "find_entry", "name_key"]
