"""``mystfuse --version`` says whether the native kernels or the reference implementation hash and decrypt."""

from __future__ import annotations

from mystfuse import __version__, kernels
from tests.support.commands import mystfuse


def test_the_version_names_the_kernel() -> None:
    assert mystfuse("--version").stdout == f"mystfuse, version {__version__}\nkernel: {kernels.name()}\n"
    pure = mystfuse("--version", env={kernels.PURE_PYTHON_VARIABLE: "1"})
    assert pure.stdout == f"mystfuse, version {__version__}\nkernel: pure Python\n"
