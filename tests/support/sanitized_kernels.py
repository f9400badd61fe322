"""The native kernels with AddressSanitizer and UndefinedBehaviorSanitizer.

As a script it builds them into a directory; as a plugin of pytest it replaces the usual kernels with those, which it
finds in PYTHONPATH.
"""

from __future__ import annotations

import importlib
import os
import sys

SANITIZE = "-fsanitize=address,undefined"
FLAGS = ["-std=c11", "-O1", "-g", "-fno-omit-frame-pointer", SANITIZE, "-fno-sanitize-recover=all"]


def build(directory: str) -> None:
    """Compile into ``directory``, as the module ``sanitized``."""
    from cffi import FFI

    from mystfuse.kernels.native.build import FASTPATH, HERE, SOURCES, declarations

    ffi = FFI()
    ffi.cdef(declarations())
    ffi.set_source(
        "sanitized",
        '#include "kernel.h"\n#include "fastpath.h"',
        sources=[os.path.abspath(source) for source in SOURCES],
        include_dirs=[os.path.abspath(HERE), os.path.abspath(FASTPATH)],
        libraries=["crypto"],
        extra_compile_args=FLAGS,
        extra_link_args=[SANITIZE],
    )
    ffi.compile(tmpdir=directory)


if __name__ == "__main__":
    build(sys.argv[1])
elif os.environ.get("MYSTFUSE_SANITIZED"):
    sys.modules["mystfuse.kernels.native._kernel"] = importlib.import_module("sanitized")
