"""Every read that follows a write with O_DIRECT returns the written bytes: through the page cache, through a mapping,
and in the attributes. See direct_writes.c."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mystfuse.errors import MountError
from mystfuse.fuse.init_request import InitRequest
from tests.support.commands import mystfuse, run
from tests.support.mounts import mounted

SOURCE = Path(__file__).parents[1] / "support/direct_writes.c"
CYCLES = 40
"""Of the asynchronous writes that the kernel does not wait for, about one in six leaves old bytes in the page cache."""
SIZE = 655360
ENGINES = ("sync", "aio", "uring")

Writer = Callable[[Path, str, int, int], None]


@pytest.fixture(scope="module")
def write_directly(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """Runs direct_writes on a file; arguments: which call, how many bytes, and the process that serves the file (0:
    none)."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("program") / "direct_writes"
    run(compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o", program, SOURCE)

    def write(file: Path, engine: str, length: int, pid: int) -> None:
        try:
            result = run(program, file, engine, str(length), str(CYCLES), str(pid), check=False)
        finally:
            if pid:
                os.kill(pid, signal.SIGCONT)
        if result.returncode == 77:
            pytest.skip(result.stderr.strip())
        assert result.returncode == 0, result.stdout + result.stderr

    return write


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("direct")
    (directory / "tree").mkdir()
    (directory / "tree/file").write_bytes(bytes(SIZE))
    assert mystfuse("mkext2", "--free=8M", directory / "tree", directory / "image").returncode == 0
    return directory / "image"


@pytest.mark.parametrize("length", [4096, SIZE])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_reader_gets_old_bytes(
    write_directly: Writer, image: Path, tmp_path: Path, engine: str, length: int
) -> None:
    with mounted(image, tmp_path / "mount", "-o", "trust_self") as mountpoint:
        pid = json.loads(mystfuse("status", "--json", mountpoint).stdout)["pid"]
        write_directly(mountpoint / "file", engine, length, pid)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_the_kernels_ext2_does_the_same(write_directly: Writer, tmp_path: Path, engine: str) -> None:
    image, mountpoint = tmp_path / "image", tmp_path / "mount"
    mountpoint.mkdir()
    run("mke2fs", "-q", "-t", "ext2", image, "16M")
    if run("mount", "-o", "loop", image, mountpoint, check=False).returncode:
        pytest.skip("no loop device")
    try:
        (mountpoint / "file").write_bytes(bytes(SIZE))
        write_directly(mountpoint / "file", engine, SIZE, 0)
    finally:
        run("umount", mountpoint)


def _request(opcode: int, flags: int) -> bytes:
    body = struct.pack("=IIII", 7, 45, 131072, flags) + bytes(48)
    return struct.pack("=IIQQIIII", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0) + body


def _device(*requests: bytes) -> tuple[int, int]:
    """A descriptor that gives requests as /dev/fuse does, and its other end."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for request in requests:
        kernels.send(request)
    return ours.detach(), kernels.detach()


@pytest.mark.parametrize(("handles", "declined"), [(True, 0), (False, 1 << 4)])
def test_asynchronous_direct_writes_and_checks_of_pages_by_time_are_declined_and_nothing_else(
    handles: bool, declined: int
) -> None:
    everything = 0xFFFFFFFF
    device, kernel = _device(_request(26, everything))
    try:
        init = InitRequest(device, handles)
        try:
            request = os.read(init.descriptor, 4096)
            assert request == _request(26, everything & ~(1 << 15 | 1 << 12 | declined))
            init.finish()
            os.write(init.descriptor, b"the answer")
            assert os.read(kernel, 4096) == b"the answer"
        finally:
            os.close(init.descriptor)
    finally:
        os.close(kernel)


@pytest.mark.parametrize("requests", [[], [_request(1, 0)], [b"short"], [_request(26, 0)[:-1]]])
def test_a_device_that_does_not_begin_with_init_is_refused(requests: list[bytes]) -> None:
    device, kernel = _device(*requests)
    try:
        with pytest.raises(MountError, match="INIT"):
            InitRequest(device)
    finally:
        os.close(kernel)
        os.close(device)
