"""The native kernels: chosen by the environment, built hardened (and by scripts/sanitize with sanitizers)."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mystfuse import kernels
from mystfuse.kernels.pure import directory_names as pure_directory
from mystfuse.kernels.pure import hash_tree as pure_hash_tree
from mystfuse.kernels.pure import hashing as pure_hashing
from mystfuse.kernels.pure import sectors as pure_sectors
from tests.support.kernels import (
    native,
    native_directory,
    native_hash_tree,
    native_hashing,
    native_sectors,
    needs_native,
)

ROOT = Path(__file__).parents[2]


@needs_native
def test_kernels_and_fallbacks_have_the_same_interface() -> None:
    def interface(of: type) -> dict[str, list[str]]:
        functions = inspect.getmembers(of, inspect.isfunction)
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in functions
            if name == "__init__" or not name.startswith("_")
        }

    for pure, compiled in (
        (pure_hashing.BlockHasher, native_hashing.BlockHasher),
        (pure_hash_tree.TreeVerifier, native_hash_tree.TreeVerifier),
        (pure_hash_tree.TreePaths, native_hash_tree.TreePaths),
        (pure_sectors.XtsCipher, native_sectors.XtsCipher),
        (pure_sectors.CbcCipher, native_sectors.CbcCipher),
        (pure_sectors.EcbCipher, native_sectors.EcbCipher),
    ):
        assert interface(pure) == interface(compiled)
    for name in ("find_entry", "name_key", "block_keys"):
        functions = getattr(pure_directory, name), getattr(native_directory, name)
        assert inspect.signature(functions[0]) == inspect.signature(functions[1])


@pytest.mark.parametrize("value, pure", [("1", True), ("0", False), ("", False), (None, False)])
def test_the_environment_chooses(value: str | None, pure: bool) -> None:
    script = """
from mystfuse import kernels
from mystfuse.crypto import hash_tree, hashing
from mystfuse.crypto import sector_ciphers as sectors
chosen = hash_tree.TreeVerifier, hashing.BlockHasher, sectors.XtsCipher
print(kernels.name(), *(each.__module__ for each in chosen), sep="|")
"""
    environment = {name: text for name, text in os.environ.items() if name != kernels.PURE_PYTHON_VARIABLE}
    if value is not None:
        environment[kernels.PURE_PYTHON_VARIABLE] = value
    shown = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, env=environment, text=True).strip()
    name, *modules = shown.split("|")
    if pure or native is None:
        assert name == "pure Python"
        assert modules == [f"mystfuse.kernels.pure.{name}" for name in ("hash_tree", "hashing", "sectors")]
    else:
        assert name.startswith("native (libcrypto 3.")
        assert modules == [f"mystfuse.kernels.native.{name}" for name in ("hash_tree", "hashing", "sectors")]


def test_the_native_kernels_are_built_where_a_compiler_is() -> None:
    """scripts/prepare.sh installs a compiler: without the kernels, runs would be slow, and the kernels untested."""
    assert native is not None


@needs_native
def test_the_sha_instructions_are_used_where_they_are() -> None:
    assert native is not None
    flags = Path("/proc/cpuinfo").read_text().split()
    assert ("SHA instructions" in native.description()) == ("sha_ni" in flags)
    native.allow_sha_instructions(False)
    try:
        assert "SHA instructions" not in native.description()
    finally:
        native.allow_sha_instructions(True)


@needs_native
def test_the_module_is_built_hardened() -> None:
    """The compiled module shows that compiler and linker followed the flags in build.py."""
    assert native is not None
    module = native._kernel.__file__

    def shown(option: str) -> str:
        return subprocess.check_output(["readelf", "-W", option, module], text=True)

    assert "BIND_NOW" in shown("--dynamic")
    segments = shown("--segments")
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK .* RW ", segments)
    symbols = shown("--dyn-syms")
    assert "__stack_chk_fail" in symbols
    assert "__memcpy_chk" in symbols
