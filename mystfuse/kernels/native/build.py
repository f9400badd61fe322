"""Builds the native kernels, run by setup.py; if that fails, the fallback in Python is used."""

from __future__ import annotations

import glob
import os
import platform
import re
import subprocess
import sysconfig
import tempfile

from cffi import FFI

HERE = os.path.relpath(os.path.dirname(os.path.abspath(__file__)))
FASTPATH = os.path.join(os.path.dirname(os.path.dirname(HERE)), "fastpath")
_NAMES = (
    "cache.c", "checksums.c", "directory_hash.c", "directory_names.c", "hash_tree.c", "hashing.c", "sectors.c",
    "touched.c", "tree_paths.c",
)  # fmt: skip
SOURCES = [
    *(os.path.join(HERE, name) for name in _NAMES),
    *sorted(glob.glob(os.path.join(FASTPATH, "*.c"))),
]
HEADERS = [os.path.join(HERE, "kernel.h"), os.path.join(FASTPATH, "fastpath.h")]
COMPILE_ARGS = ["-std=c11", "-O3", "-Wall", "-Wextra"]

# What the OpenSSF's "Compiler Options Hardening Guide for C and C++" lists for a shared library at run time.
# _FORTIFY_SOURCE is undefined first: some distributions define another level. nodlopen and pie are for programs alone.
HARDENING_COMPILE_ARGS = [
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=3",
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-fstrict-flex-arrays=3",
    "-ftrivial-auto-var-init=zero",
    "-fno-delete-null-pointer-checks",
    "-fno-strict-overflow",
    "-fno-strict-aliasing",
    "-Wformat=2",
    "-Werror=format-security",
    "-Wimplicit-fallthrough",
]
HARDENING_BY_MACHINE = {"x86_64": ["-fcf-protection=full"], "aarch64": ["-mbranch-protection=standard"]}
HARDENING_LINK_ARGS = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,--as-needed"]


def _compiler() -> list[str]:
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def supported(arguments: list[str]) -> list[str]:
    """Those of some arguments that the compiler takes, each tried alone: older ones lack some, and an argument that one
    does not know would leave all of the native kernels out."""

    def is_taken(argument: str, directory: str) -> bool:
        source = os.path.join(directory, "empty.c")
        with open(source, "w", encoding="ascii") as file:
            file.write("int nothing;\n")
        command = [
            *_compiler(),
            "-Werror",
            "-O2",
            argument,
            "-shared",
            "-fPIC",
            source,
            "-o",
            os.path.join(directory, "empty.so"),
        ]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    with tempfile.TemporaryDirectory() as directory:
        return [argument for argument in arguments if is_taken(argument, directory)]


def declarations() -> str:
    """The declarations of the headers, in the subset of C that cffi parses."""
    text = ""
    for path in HEADERS:
        with open(path, encoding="ascii") as file:
            text += re.sub(r"^#.*$", "", file.read(), flags=re.MULTILINE)
    return text


hardening = supported([*HARDENING_COMPILE_ARGS, *HARDENING_BY_MACHINE.get(platform.machine(), [])])
ffi = FFI()
ffi.cdef(declarations())
ffi.set_source(
    "mystfuse.kernels.native._kernel",
    '#include "kernel.h"\n#include "fastpath.h"',
    sources=SOURCES,
    include_dirs=[HERE, FASTPATH],
    depends=[
        *HEADERS,
        os.path.join(HERE, "cache.h"),
        os.path.join(HERE, "touched.h"),
        os.path.join(FASTPATH, "internal.h"),
    ],
    libraries=["crypto"],
    extra_compile_args=[*COMPILE_ARGS, *hardening],
    extra_link_args=supported(HARDENING_LINK_ARGS),
    optional=True,
)
