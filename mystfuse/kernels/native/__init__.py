"""The kernels in C over libcrypto. Importing it raises ImportError if they were not built."""

from __future__ import annotations

from mystfuse.kernels.native._kernel import ffi, lib

__all__ = ["allow_sha_instructions", "description", "ffi", "lib"]


def allow_sha_instructions(allowed: bool) -> None:
    """Whether hashers made from now on may use the processor's SHA instructions; for comparing, and for tests."""
    lib.hasher_allow_instructions(allowed)


def description() -> str:
    """What they are built on: "libcrypto 3.0.19, SHA instructions over 3 blocks"."""
    lanes = lib.hasher_lanes()
    instructions = f", SHA instructions over {lanes} blocks" if lanes else ""
    return f"libcrypto {ffi.string(lib.libcrypto_version()).decode()}{instructions}"
