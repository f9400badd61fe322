"""The check against a hash tree: ``TreeVerifier``, ``TreePaths``, of the kernels that were chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mystfuse import kernels

if TYPE_CHECKING or not kernels.IS_NATIVE:
    from mystfuse.kernels.pure.hash_tree import TreePaths, TreeVerifier
else:
    from mystfuse.kernels.native.hash_tree import TreePaths, TreeVerifier

__all__ = ["TreePaths", "TreeVerifier"]
