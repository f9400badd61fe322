"""Digests of many equal blocks at once, as dm-verity wants them: ``BlockHasher``, of the kernels that were chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mystfuse import kernels

# To the type checker both implementations are one; a test compares their interfaces.
if TYPE_CHECKING or not kernels.IS_NATIVE:
    from mystfuse.kernels.pure.hashing import BlockHasher
else:
    from mystfuse.kernels.native.hashing import BlockHasher

__all__ = ["BlockHasher"]
