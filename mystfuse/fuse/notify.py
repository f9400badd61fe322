"""Telling a service manager how things stand: sd_notify(3), without its library."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


class Notifier:
    """Sends to the manager's socket; without one, nowhere.

    Args:
        address: path of a datagram socket; ``@`` in front means an abstract name.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    @classmethod
    def from_environment(cls) -> Notifier:
        """The socket that ``NOTIFY_SOCKET`` names; takes it out of the environment, which is fusermount3's too."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def send(self, *assignments: str) -> None:
        """Send assignments such as ``READY=1``, one line each. That nobody listens is logged, and does not matter."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.connect(os.fsencode(address))
                sender.send(os.fsencode("\n".join(assignments)))
        except OSError as error:
            log.warning("NOTIFY_SOCKET %s: %s", self._address, error.strerror or error)
