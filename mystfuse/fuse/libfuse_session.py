"""libfuse's session on a descriptor of /dev/fuse."""

from __future__ import annotations

import os

import pyfuse3

from mystfuse.errors import MountError


def open_session(operations: pyfuse3.Operations, mountpoint: str, options: set[str]) -> None:
    """Begin to serve a mount; what libfuse writes to stderr becomes the error's message.

    Args:
        mountpoint: ``/dev/fd/N``, N being a descriptor of /dev/fuse that is mounted already.

    Raises:
        MountError: libfuse refuses it.
    """
    with os.fdopen(os.memfd_create("mystfuse"), "w+b") as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            pyfuse3.init(operations, mountpoint, options)
        except RuntimeError as error:
            said.seek(0)
            message = " ".join(said.read(4096).decode(errors="replace").split()) or str(error)
            raise MountError(f"cannot mount on {mountpoint}: {message}") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
