"""Which code runs the hot loops: C over libcrypto (``native/``), or its twin in Python (``pure/``).

The native kernels are missing when libcrypto's headers or a compiler were, at installation. The environment variable
``MYSTFUSE_PURE_PYTHON=1`` has them left alone; it is read once, here.
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
    """What runs them, for people: "native (libcrypto 3.0.19, SHA instructions over 3 blocks)", or "pure Python"."""
    if not IS_NATIVE:
        return "pure Python"
    from mystfuse.kernels.native import description

    return f"native ({description()})"
