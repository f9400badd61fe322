"""A copy of the project whose C code is built with a sanitizer: ``python -m tests.support.sanitized_copy KIND DIR``.

KIND is ``address`` (and undefined behaviour) or ``thread``. Run from the project, it prints the libraries to preload.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

FLAGS = ["-std=c11", "-O1", "-g", "-fno-omit-frame-pointer", "-Wno-error", "-U_FORTIFY_SOURCE"]
KINDS = {
    "address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], ("asan", "ubsan")),
    "thread": (["-fsanitize=thread"], ("tsan",)),
}
"""By name: options of the compiler, and the names of the libraries."""
START = """
import os, sys
if "LD_PRELOAD" not in os.environ:
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "LD_PRELOAD": os.environ["MYSTFUSE_PRELOAD"]})
os.environ.pop("LD_PRELOAD")
"""
"""Has each process of Python preload the libraries, and no other program, which may crash with them."""


def copy(directory: Path) -> None:
    """Copy what tests run."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "corpus")
    for name in ("mystfuse", "tests", "scripts", "bin"):
        shutil.copytree(name, directory / name, ignore=ignored, dirs_exist_ok=True)
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(name, directory / name)
    (directory / "sitecustomize.py").write_text(START)


def build(kind: str, directory: Path) -> None:
    """Compile the kernels and the fast path into a copy."""
    from cffi import FFI

    from mystfuse.kernels.native import build as usual

    options, _ = KINDS[kind]
    ffi = FFI()
    ffi.cdef(usual.declarations())
    ffi.set_source(
        "mystfuse.kernels.native._kernel",
        '#include "kernel.h"\n#include "fastpath.h"',
        sources=[os.path.abspath(source) for source in usual.SOURCES],
        include_dirs=[os.path.abspath(usual.HERE), os.path.abspath(usual.FASTPATH)],
        libraries=["crypto"],
        extra_compile_args=[*FLAGS, *options],
        extra_link_args=options,
    )
    ffi.compile(tmpdir=str(directory))


def libraries(kind: str) -> list[str]:
    """The sanitizer's libraries; SystemExit if the compiler has none."""
    names = [f"lib{name}.so" for name in KINDS[kind][1]]
    paths = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip() for name in names]
    if not all(map(os.path.isabs, paths)):
        sys.exit(f"gcc has no {' and '.join(names)}")
    return paths


if __name__ == "__main__":
    chosen, target = sys.argv[1], Path(sys.argv[2])
    print(*libraries(chosen))
    sys.stdout.flush()
    with open(target / "build.log", "w") as log:
        os.dup2(log.fileno(), 1)
        # Before pyproject.toml is there, which setuptools would follow.
        build(chosen, target)
    copy(target)
