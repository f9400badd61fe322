"""nginx and squid as tests need them: in the foreground, on ports that the kernel chose, with all their files in a
directory of the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.support.commands import SBIN

_PATIENCE = 30.0
"""Seconds in which a server must listen."""
_NGINX = """
daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 200; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    sendfile on; tcp_nopush on; keepalive_requests 100000;
    {servers}
}}
"""
_SQUID = """
http_port 127.0.0.1:{port}
acl plain src 127.0.0.1
acl CONNECT method CONNECT
{rules}
http_access allow plain
http_access deny all
cache_mem 64 MB
maximum_object_size_in_memory 8 MB
pid_filename none
cache_log {directory}/cache.log
access_log stdio:{directory}/access.log
coredump_dir {directory}
netdb_filename none
visible_hostname squid.test
shutdown_lifetime 0 seconds
"""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for holder in sockets:
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in sockets]
    finally:
        for holder in sockets:
            holder.close()


@contextmanager
def nginx(directory: Path, servers: str, ports: Sequence[int]) -> Iterator[None]:
    """nginx with these ``server`` blocks; its ``access.log`` and ``error.log`` are in the directory."""
    directory.mkdir()
    configuration = directory / "nginx.conf"
    configuration.write_text(_NGINX.format(directory=directory, servers=servers))
    with _running(["nginx", "-c", str(configuration), "-p", str(directory)], ports, directory / "error.log"):
        yield


@contextmanager
def squid(directory: Path, rules: str = "") -> Iterator[int]:
    """squid, a caching forward proxy; yields its port. ``access.log`` is in the directory."""
    (port,) = free_ports(1)
    directory.mkdir()
    configuration = directory / "squid.conf"
    configuration.write_text(_SQUID.format(directory=directory, port=port, rules=rules))
    if os.geteuid() == 0:
        # It becomes this user, who must get there as well.
        shutil.chown(directory, "proxy", "proxy")
    with _running(["squid", "-N", "-f", str(configuration)], [port], directory / "cache.log"):
        yield port


@asynccontextmanager
async def http2_alone(port: int) -> AsyncIterator[int]:
    """Before an nginx with HTTP/2: refuses whoever does not offer that, as servers do that speak nothing else."""

    async def serve(client: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with client, await trio.open_tcp_stream("127.0.0.1", port) as server:
                hello = await client.receive_some()
                if b"\x02h2" not in hello:
                    # RFC 8446, 6: a fatal alert, no_application_protocol.
                    await client.send_all(b"\x15\x03\x03\x00\x02\x02\x78")
                    return
                await server.send_all(hello)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, client, server)
                    await _copy(server, client)
                    nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)


@contextmanager
def _running(command: list[str], ports: Sequence[int], log: Path) -> Iterator[None]:
    process = subprocess.Popen(command, env={**os.environ, "PATH": SBIN}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        end = time.monotonic() + _PATIENCE
        while not all(map(_is_listening, ports)):
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{command[0]} does not start:\n{log.read_text() if log.exists() else ''}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        finally:
            process.kill()


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
