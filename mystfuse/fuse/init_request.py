"""INIT, the first request of a mount: the kernel offers capabilities, and libfuse accepts those that it knows.

Neither pyfuse3 nor libfuse's mount options can decline what libfuse accepts by itself. So we read INIT, clear the flags
that we decline, and hand the request to libfuse.

Sources: the kernel's include/uapi/linux/fuse.h; libfuse's lib/fuse_lowlevel.c, do_init.
"""

from __future__ import annotations

import os
import socket
import struct

from mystfuse.errors import MountError
from mystfuse.system.wait_readable import wait_readable

_FUSE_INIT = 26
_FUSE_ASYNC_DIO = 1 << 15
"""With it, the kernel sends O_DIRECT writes of libaio and io_uring without waiting for them: it drops the file's cached
pages and attributes before the write, and not again after it, so that stale pages read meanwhile stay (fs/fuse/file.c,
fuse_direct_IO; docs/adr/0013)."""
_FUSE_AUTO_INVAL_DATA = 1 << 12
"""With it, the kernel drops a file's cached pages when attributes that it gets show another modification time: also
those of a write(2) that waits for its answer. A read that is answered before that write brings the old bytes back, and
they stay (fs/fuse/inode.c, fuse_change_attributes_i). Our files change through the kernel alone: its pages are right.
"""
_FUSE_EXPORT_SUPPORT = 1 << 4
_DECLINED = _FUSE_ASYNC_DIO | _FUSE_AUTO_INVAL_DATA
_HEADER = struct.Struct("=IIQQIIII")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, extensions."""
_OFFER = struct.Struct("=IIII")
"""The beginning of fuse_init_in: major, minor, max_readahead, flags."""
_NO_INIT = "cannot mount: the kernel does not begin with INIT"
_MAX_REQUEST = 64 << 10
"""Bytes; the kernel wants room for 8192 (FUSE_MIN_READ_BUFFER)."""


class InitRequest:
    """INIT of a new mount, on its way to libfuse.

    Args:
        device: descriptor of /dev/fuse; it is closed by ``finish``.
        handles: whether the kernel may make file handles.

    Raises:
        MountError: there is no INIT to read: it is unmounted already, or not mounted yet.
    """

    def __init__(self, device: int, handles: bool = True) -> None:
        self._device = device
        request = bytearray(_read(device))
        if len(request) < _HEADER.size + _OFFER.size or _HEADER.unpack_from(request)[:2] != (len(request), _FUSE_INIT):
            raise MountError(_NO_INIT)
        major, minor, max_readahead, flags = _OFFER.unpack_from(request, _HEADER.size)
        declined = _DECLINED if handles else _DECLINED | _FUSE_EXPORT_SUPPORT
        _OFFER.pack_into(request, _HEADER.size, major, minor, max_readahead, flags & ~declined)
        self.offered = flags
        """The capabilities that the kernel offers."""
        offered, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sender.send(request)
        self.descriptor = offered.detach()
        """The descriptor that libfuse uses as /dev/fuse. Its first request is INIT; call ``finish``, or have somebody
        serve the other end, before libfuse answers."""

    @property
    def device(self) -> int:
        """The descriptor of /dev/fuse."""
        return self._device

    @property
    def other_end(self) -> int:
        """The descriptor through which libfuse gets requests, and answers them, unless ``finish`` is called."""
        return self._sender.fileno()

    def finish(self) -> None:
        """Put /dev/fuse itself in its place: the answer to INIT goes there, and all that follows."""
        os.dup2(self._device, self.descriptor, inheritable=False)
        os.close(self._device)
        self._sender.close()

    def close(self) -> None:
        """At the end, if somebody else has served it."""
        os.close(self._device)
        self._sender.close()


def _read(device: int) -> bytes:
    try:
        # mount(2) queues INIT before it returns.
        if not wait_readable([device], 0):
            raise MountError(_NO_INIT)
        return os.read(device, _MAX_REQUEST)
    except OSError as error:
        raise MountError(f"cannot mount: {error.strerror} (unmounted meanwhile?)") from error
