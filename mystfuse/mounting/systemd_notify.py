"""sd_notify(3): the state of a mount for the service manager, by NOTIFY_SOCKET.

Not by a library: the socket has to be connected before the daemon is confined, and used after that.
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds."""


class Notifier:
    """Sends to the service manager's socket; without one, does nothing.

    Args:
        address: path of a datagram socket; ``@`` in front means an abstract name.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._failure: OSError | None = None
        if not address:
            return
        name = f"\0{address[1:]}" if address.startswith("@") else address
        # Now: a confined process has no access to abstract names.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # So that a manager that hangs does not delay us.
        self._socket.settimeout(_PATIENCE)
        try:
            self._socket.connect(os.fsencode(name))
        except OSError as error:
            # send() logs it later: the log is not set up yet.
            self._failure = error

    @classmethod
    def from_environment(cls) -> Notifier:
        """The socket that ``NOTIFY_SOCKET`` names; takes it out of the environment, which is fusermount3's too."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def send(self, *assignments: str) -> None:
        """Send assignments such as ``READY=1``, one line each. A failure is logged, and ends nothing."""
        if self._socket is None:
            return
        try:
            if self._failure is not None:
                raise self._failure
            self._socket.send(os.fsencode("\n".join(assignments)))
        except OSError as error:
            log.warning("NOTIFY_SOCKET %s: %s", self._address, error.strerror or error)
