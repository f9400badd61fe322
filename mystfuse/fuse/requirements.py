"""Requirements of a mount: /dev/fuse and pyfuse3. Commands that mount nothing work without them."""

from __future__ import annotations

import os
from importlib.util import find_spec

from mystfuse.errors import MountError


def require_fuse(by_pyfuse3: bool = True) -> None:
    """Raise an error where mounting is impossible, before asking for a key or making a file. Imports nothing.

    Args:
        by_pyfuse3: whether pyfuse3 is to serve the mount.

    Raises:
        MountError: there is no /dev/fuse, or pyfuse3 (an extra: it has no wheels) is not installed.
    """
    if not os.path.exists("/dev/fuse"):
        raise MountError("/dev/fuse is missing: this kernel or container has no FUSE (modprobe fuse?)")
    if by_pyfuse3 and find_spec("pyfuse3") is None:
        raise MountError(
            "mounting needs pyfuse3, which is not installed: "
            "apt install fuse3 libfuse3-dev pkg-config gcc python3-dev; then pip install 'mystfuse[mount]'"
        )
