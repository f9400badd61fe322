"""A network of two hosts and a slow link between them, each host a network namespace: for a block.

The link is a program of ours (``link.c``) between two TUN devices, since many kernels lack tc's netem: every packet is
delayed, and waits for the wire, as there; so TCP does all that it does on such a link.

    python -m benchmarks.link PROGRAM SERVER-PID CLIENT-PID DELAY RATE QUEUE

makes the devices, and becomes the program.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tools import BenchmarkError, LeftOut, StrPath, run
from mystfuse.system import libc

SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
"""Their addresses, in namespaces of their own."""
ROUND_TRIP = 0.02
"""Seconds,"""
RATE = 100_000_000
"""and bits a second, of the link."""
QUEUE = 1000
"""Packets that wait for the wire, each way; as netem's limit."""
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
"""<linux/if_tun.h>"""
_CLONE_NEWNET = 0x40000000
"""<linux/sched.h>"""
_DEVICE = "link0"


@dataclass(frozen=True, slots=True)
class Network:
    """Two hosts and their link."""

    server: int
    client: int
    """Processes in their namespaces."""
    link: subprocess.Popen[str]

    def on_server(self, *command: StrPath) -> list[str]:
        return _inside(self.server, command)

    def on_client(self, *command: StrPath) -> list[str]:
        return _inside(self.client, command)

    def bytes_to_client(self) -> int:
        """All bytes of all packets that have left for the client, headers included."""
        self.link.send_signal(signal.SIGUSR1)
        assert self.link.stdout is not None
        return int(self.link.stdout.readline().split()[1])


def compile_link(directory: Path) -> Path:
    """The program.

    Raises:
        LeftOut: there is no C compiler, or no TUN device.
    """
    if not Path("/dev/net/tun").exists():
        raise LeftOut("/dev/net/tun is missing")
    program = directory / "link"
    if not program.exists():
        options = "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"
        try:
            run("cc", *options, "-o", program, Path(__file__).with_name("link.c"))
        except BenchmarkError as error:
            raise LeftOut(f"the link does not compile: {error}") from error
    return program


@contextmanager
def network(program: Path, round_trip: float = ROUND_TRIP, rate: int = RATE) -> Iterator[Network]:
    """Two hosts, a round trip apart.

    Args:
        round_trip: seconds.
        rate: bits a second, each way.
    """
    server, client = _namespace(), _namespace()
    link = None
    try:
        words = [sys.executable, "-m", "benchmarks.link", program, server.pid, client.pid]
        words += [int(round_trip / 2 * 1e6), rate, QUEUE]
        link = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, text=True)
        assert link.stdout is not None
        if link.stdout.readline() != "ready\n":
            raise BenchmarkError("the link between the namespaces did not start")
        for host, address in (server, SERVER), (client, CLIENT):
            ip = _inside(host.pid, ["ip"])
            run(*ip, "link", "set", "lo", "up")
            run(*ip, "address", "add", f"{address}/30", "dev", _DEVICE)
            run(*ip, "link", "set", _DEVICE, "up")
        yield Network(server.pid, client.pid, link)
    finally:
        for process in (link, server, client):
            if process is not None:
                process.kill()
                process.wait()
        if link is not None and link.stdout is not None:
            link.stdout.close()


def _namespace() -> subprocess.Popen[bytes]:
    """A process that holds a network namespace."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    with suppress(OSError):
        ours = os.stat("/proc/self/ns/net").st_ino
        while process.poll() is None and os.stat(f"/proc/{process.pid}/ns/net").st_ino == ours:
            os.sched_yield()
    if process.poll() is not None:
        raise LeftOut("no network namespaces")
    return process


def _inside(pid: int, command: list[StrPath] | tuple[StrPath, ...]) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net", *(os.fspath(word) for word in command)]


def _open_device(pid: str) -> int:
    """A new TUN device in a process's network namespace."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    libc.call("setns", namespace, _CLONE_NEWNET)
    os.close(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    os.set_inheritable(device, True)
    return device


def main(program: str, server: str, client: str, *words: str) -> None:
    """Make the devices, and become the link."""
    # By descriptors: /proc/PID is that of our own pid namespace, which does not change.
    first, second = _open_device(server), _open_device(client)
    os.execv(program, [program, str(first), str(second), *words])  # nosec B606


if __name__ == "__main__":
    main(*sys.argv[1:])
