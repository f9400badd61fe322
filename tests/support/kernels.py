"""The kernels in C and their fallbacks in Python, to be tested alike."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from mystfuse.kernels.pure import hash_tree as pure_hash_tree
from mystfuse.kernels.pure import hashing as pure_hashing
from mystfuse.kernels.pure import sectors as pure_sectors

native: ModuleType | None
try:
    from mystfuse.kernels import native
    from mystfuse.kernels.native import directory_names as native_directory  # noqa: F401
    from mystfuse.kernels.native import hash_tree as native_hash_tree
    from mystfuse.kernels.native import hashing as native_hashing
    from mystfuse.kernels.native import sectors as native_sectors
except ImportError:
    native = native_directory = native_hash_tree = native_hashing = native_sectors = None


Hasher = Callable[..., pure_hashing.BlockHasher]


def without_instructions(*args: object) -> object:
    """A native hasher that does not use the processor's SHA instructions."""
    assert native is not None
    native.allow_sha_instructions(False)
    try:
        return native_hashing.BlockHasher(*args)
    finally:
        native.allow_sha_instructions(True)


HASHERS: dict[str, Hasher] = {"pure": pure_hashing.BlockHasher}
TREES: dict[str, Callable[..., pure_hash_tree.TreeVerifier]] = {"pure": pure_hash_tree.TreeVerifier}
SECTORS: dict[str, ModuleType] = {"pure": pure_sectors}
if native is not None:
    HASHERS |= {"native": native_hashing.BlockHasher, "libcrypto": without_instructions}
    TREES["native"] = native_hash_tree.TreeVerifier
    SECTORS["native"] = native_sectors

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")
