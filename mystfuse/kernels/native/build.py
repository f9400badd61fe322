"""Builds the native kernels, run by setup.py; what cannot be built is left out, and its twin in Python is used."""

from __future__ import annotations

import os
import re

from cffi import FFI

HERE = os.path.relpath(os.path.dirname(os.path.abspath(__file__)))
SOURCES = [os.path.join(HERE, name) for name in ("directory.c", "hashing.c", "sectors.c")]
COMPILE_ARGS = ["-std=c11", "-O3", "-Wall", "-Wextra"]


def declarations() -> str:
    """What kernel.h declares, in the part of C that cffi reads."""
    with open(os.path.join(HERE, "kernel.h"), encoding="ascii") as file:
        header = file.read()
    return re.sub(r"^#.*$", "", header, flags=re.MULTILINE)


ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "mystfuse.kernels.native._kernel",
    '#include "kernel.h"',
    sources=SOURCES,
    include_dirs=[HERE],
    depends=[os.path.join(HERE, "kernel.h")],
    libraries=["crypto"],
    extra_compile_args=COMPILE_ARGS,
    optional=True,
)
