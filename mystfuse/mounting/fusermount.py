"""fusermount3, which is set-user-ID root, and mounts and unmounts for users without the privilege."""

from __future__ import annotations

import os
import socket
import subprocess

from mystfuse.errors import MountError

_PATIENCE = 30.0
"""Seconds."""


def run_fusermount(arguments: list[str], sender: socket.socket | None = None) -> subprocess.CompletedProcess[str]:
    """Run fusermount3 to its end.

    Args:
        sender: the socket to which it sends the descriptor of /dev/fuse when it mounts.

    Raises:
        MountError: it is not installed, or does not end.
    """
    passed = [] if sender is None else [sender.fileno()]
    environment = os.environ if sender is None else {**os.environ, "_FUSE_COMMFD": str(sender.fileno())}
    try:
        return subprocess.run(
            ["fusermount3", *arguments],
            env=environment,
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
        )
    except FileNotFoundError as error:
        raise MountError("fusermount3 is not installed (apt install fuse3)") from error
    except subprocess.TimeoutExpired as error:
        raise MountError(f"fusermount3 has not ended after {_PATIENCE:g} s") from error
