"""The keeper's protocol: it answers five requests, each a fixed message, and no other message."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from mystfuse.fuse.mount_options import MountOptions
from mystfuse.mounting.keeper_server import KeeperServer, Request, parse_request, run_server


def test_only_whole_messages_are_requests() -> None:
    assert [parse_request(request.value) for request in Request] == list(Request)
    for message in (request.value for request in Request):
        assert parse_request(message[:-1]) is None and parse_request(message + b"\n") is None
        assert parse_request(message[1:]) is None and parse_request(message[1:] + b"\0") is None
        assert parse_request(message[1:-1]) is None, "text, as a library writes it to stderr"
    for text in (b"", b"\0", b"unmount", b"unmount lazily", b"mystfuse: ", b"x" * 1000):
        assert parse_request(text) is None


def test_the_keeper_answers_no_other_message(tmp_path: Path) -> None:
    """Not even with an error, which the daemon would take for the answer to its next request."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        run_server(KeeperServer(MountOptions(str(tmp_path), "none")), its)
    its.close()
    try:
        with ours:
            ours.settimeout(20)
            for stray in (b"unmount", b"mystfuse: a message\n" * 1000, Request.MOUNT.value + b"\n"):
                ours.send(stray)
            ours.send(Request.RAISE_READ_AHEAD.value)
            assert ours.recv(1000) == b"{}", "the answer to the request, and to nothing before it"
    finally:
        os.waitpid(pid, 0)
