"""Which code runs the hot loops: C over libcrypto (``native/``), or the fallback in Python
(``pure/``), which is the reference implementation too.

The native kernels are missing if libcrypto's headers or a compiler were missing at installation. The environment
variable ``MYSTFUSE_PURE_PYTHON=1`` selects the fallback; it is read once, here.
"""

from __future__ import annotations

import os

PURE_PYTHON_VARIABLE = "MYSTFUSE_PURE_PYTHON"


def _is_native() -> bool:
    if os.environ.get(PURE_PYTHON_VARIABLE) == "1":
        return False
    try:
        import mystfuse.kernels.native  # noqa: F401  # loads the C module
    except ImportError:
        return False
    return True


IS_NATIVE = _is_native()


def name() -> str:
    """The choice, as text: "native (libcrypto 3.0.19, SHA instructions over 3 blocks)", or "pure Python"."""
    if not IS_NATIVE:
        return "pure Python"
    from mystfuse.kernels.native import description

    return f"native ({description()})"
