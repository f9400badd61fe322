"""Names in order of their hashes, by the kernels that were chosen: ``name_hash``, ``find_room``, ``hashed_entries``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mystfuse import kernels

if TYPE_CHECKING or not kernels.IS_NATIVE:
    from mystfuse.kernels.pure.directory_hash import find_room, hashed_entries, name_hash
else:
    from mystfuse.kernels.native.directory_hash import find_room, hashed_entries, name_hash

__all__ = ["find_room", "hashed_entries", "name_hash"]
