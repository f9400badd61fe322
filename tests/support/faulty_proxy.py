"""A web server (or a proxy before one) that does to its clients what networks and servers do: it delays, resets,
truncates, flips, lies about ranges, goes silent. What it does when, a caller decides: one ``Fault`` a request."""

from __future__ import annotations

import gzip
import math
import random
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NoReturn

import trio

from tests.support.http_objects import Handler, Request, Response

MAX_REQUEST = 1 << 16
"""Bytes of a request's head."""
_PART = 1 << 15
"""Bytes that are sent at once."""
_GRAIN = 4096
_REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request, or, of the kinds in ``AT_ACCEPT``, to one connection."""

    kind: str
    amount: float = 0.0
    """Seconds of a delay; the status of ``status``; else how far into the body it happens (0 to 1)."""
    retry_after: str | None = None
    """The header that comes with ``status``."""


AT_ACCEPT = ("reset at accept", "silent at accept", "not HTTP", "TLS breaks off", "other certificate")
BEFORE_BODY = ("delay", "reset", "closed", "silent", "status", "redirected in circles", "endless header")
WRONG_ANSWER = ("whole", "gzip", "HTML", "HTML with range", "other range", "other size", "no range", "short", "long")
IN_BODY = ("truncated", "reset inside", "silent inside", "drip", "paused", "endless", "flip")
KINDS = (*AT_ACCEPT, *BEFORE_BODY, *WRONG_ANSWER, *IN_BODY)

_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Welcome to our Wi-Fi</body></html>\n" * 5


class _Closed(Exception):
    """The connection ends here."""


class FaultyServer:
    """Serves on a port of 127.0.0.1 that the kernel chooses, until ``serve`` is cancelled.

    Args:
        handler: what answers requests that have no fault; its answers are what faults change.
        choose: the fault of a request, or None.
        accept: the fault of a new connection, or None.
        tls: serves https.
        other_tls: what "other certificate" shows.
        seed: for what is random within a fault.
    """

    def __init__(
        self,
        handler: Handler,
        choose: Callable[[Request], Fault | None] = lambda request: None,
        accept: Callable[[], Fault | None] = lambda: None,
        *,
        tls: ssl.SSLContext | None = None,
        other_tls: ssl.SSLContext | None = None,
        seed: int = 0,
    ) -> None:
        self.handler = handler
        self.choose = choose
        self.accept = accept
        self.requests: list[Request] = []
        self.done: Counter[str] = Counter()
        """The faults that have happened, by kind."""
        self.bytes_sent = 0
        """Of bodies."""
        self._tls, self._other_tls = tls, other_tls
        self._dice = random.Random(seed)
        # Holds the port, and does not listen: while nobody else does, connections are refused.
        self._holder = _bound(0)
        self.port: int = self._holder.getsockname()[1]
        self._scope: trio.CancelScope | None = None
        self._accepts = trio.Event()
        self._is_refusing = False

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    def refuse(self) -> None:
        """Refuse new connections from now on."""
        self._is_refusing = True
        if self._scope is not None:
            self._scope.cancel()

    def stop_refusing(self) -> None:
        self._is_refusing = False
        self._accepts.set()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    if self._is_refusing:
                        self._accepts = trio.Event()
                        await self._accepts.wait()
                    with trio.CancelScope() as self._scope:
                        await self._accept_connections(nursery, task_status)
                    task_status = trio.TASK_STATUS_IGNORED
        finally:
            self._holder.close()

    async def _accept_connections(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        listener = trio.socket.from_stdlib_socket(_bound(self.port))
        with listener:
            listener.listen(200)
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(self._serve_connection, trio.SocketStream(connection))

    async def _serve_connection(self, connection: trio.SocketStream) -> None:
        with suppress(_Closed, trio.BrokenResourceError, trio.ClosedResourceError, OSError, ssl.SSLError):
            async with connection:
                fault = self.accept()
                if fault is not None:
                    self.done[fault.kind] += 1
                stream = await self._begin(connection, fault)
                while (request := await self._receive_request(stream)) is not None:
                    self.requests.append(request)
                    await _Answer(self, connection, stream, request).send()

    async def _begin(self, connection: trio.SocketStream, fault: Fault | None) -> trio.abc.Stream:
        kind = fault.kind if fault is not None else ""
        if kind == "reset at accept":
            await reset(connection)
        if kind == "silent at accept":
            await stay_silent(connection)
        if kind == "not HTTP":
            await connection.send_all(b"220 mail.example.org ESMTP\r\n" * 3)
            raise _Closed
        if kind == "TLS breaks off":
            await connection.receive_some()
            await reset(connection)
        if self._tls is None:
            return connection
        context = self._other_tls if kind == "other certificate" and self._other_tls is not None else self._tls
        stream = trio.SSLStream(connection, context, server_side=True, https_compatible=True)
        await stream.do_handshake()
        return stream

    async def _receive_request(self, stream: trio.abc.Stream) -> Request | None:
        data = bytearray()
        while b"\r\n\r\n" not in data:
            part = await stream.receive_some(MAX_REQUEST)
            data += part
            if not part or len(data) > MAX_REQUEST:
                return None
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += await stream.receive_some(MAX_REQUEST)
        return Request(method, target, headers, body)


class _Answer:
    """The answer to one request."""

    def __init__(
        self, server: FaultyServer, connection: trio.SocketStream, stream: trio.abc.Stream, request: Request
    ) -> None:
        self._server, self._connection, self._stream, self._request = server, connection, stream, request
        self._fault = server.choose(request) or Fault("")

    async def send(self) -> None:
        fault = self._fault
        if fault.kind:
            self._server.done[fault.kind] += 1
        match fault.kind:
            case "delay":
                await trio.sleep(fault.amount)
            case "reset":
                await reset(self._connection)
            case "closed":
                raise _Closed
            case "silent":
                await stay_silent(self._stream)
            case "endless header":
                await self._stream.send_all(b"HTTP/1.1 206 Partial Content\r\n")
                while True:
                    await self._stream.send_all(b"X-More: " + b"x" * 1000 + b"\r\n")
                    await trio.sleep(0.01)
        request = self._request
        if fault.kind == "whole":
            # As a server that has no ranges.
            request = replace(request, headers={k: v for k, v in request.headers.items() if k != "range"})
        response = self._change(await self._server.handler(request))
        length = math.inf if fault.kind == "endless" else len(response.body)
        if fault.kind == "long":
            response.body += self._server._dice.randbytes(5000)
            length = len(response.body)
        reason = _REASONS.get(response.status, "Whatever")
        lines = [f"HTTP/1.1 {response.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        if length != math.inf:
            lines.append(f"Content-Length: {length}")
        else:
            lines.append("Transfer-Encoding: chunked")
        await self._stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if self._request.method != "HEAD":
            await self._send_body(response.body)

    def _change(self, response: Response) -> Response:
        """The faults that are another answer."""
        fault, headers = self._fault, response.headers
        match fault.kind:
            case "status":
                extra = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
                return Response(int(fault.amount), {"Content-Type": "text/html", **extra}, _PAGE)
            case "redirected in circles":
                return Response(302, {"Location": self._request.target}, b"")
            case "HTML":
                return Response(200, {"Content-Type": "text/html"}, _PAGE)
        if response.status != 206:
            return response
        start, end, size = _parse_range(headers["Content-Range"])
        body = response.body
        match fault.kind:
            case "gzip":
                return Response(206, {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, 1))
            case "HTML with range":
                return Response(
                    206, {**headers, "Content-Type": "text/html"}, (_PAGE * (len(body) // len(_PAGE) + 1))[: len(body)]
                )
            case "other range":
                by = -4096 if start >= 4096 else 4096
                headers["Content-Range"] = f"bytes {start + by}-{end + by}/{max(size, end + by + 1)}"
            case "other size":
                headers["Content-Range"] = f"bytes {start}-{end}/{size - 1 if size > end + 1 else size + 4096}"
            case "no range":
                headers.pop("Content-Range")
            case "short":
                return Response(206, headers, body[: int(len(body) * min(fault.amount, 0.99))])
            case "flip":
                return Response(206, headers, _flipped(body, fault.amount))
        return response

    async def _send_body(self, body: bytes) -> None:
        kind, stop = self._fault.kind, int(len(body) * min(self._fault.amount, 1.0))
        if kind == "endless":
            await self._send_for_ever(body)
        elif kind == "drip":
            for position in range(len(body)):
                await self._send(body[position : position + 1])
                await trio.sleep(1.0)
        elif kind in ("truncated", "reset inside", "silent inside", "paused"):
            await self._send(body[:stop])
            if kind == "truncated":
                raise _Closed
            if kind == "reset inside":
                await reset(self._connection)
            if kind == "silent inside":
                await stay_silent(self._stream)
            await trio.sleep(2.0)
            await self._send(body[stop:])
        else:
            await self._send(body)

    async def _send_for_ever(self, body: bytes) -> NoReturn:
        while True:
            for part in (body, self._server._dice.randbytes(_PART)):
                if part:
                    await self._stream.send_all(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    self._server.bytes_sent += len(part)

    async def _send(self, body: bytes) -> None:
        for offset in range(0, len(body), _PART):
            part = body[offset : offset + _PART]
            await self._stream.send_all(part)
            self._server.bytes_sent += len(part)


def _flipped(body: bytes, where: float) -> bytes:
    """A bit of each 4096 bytes is another."""
    data = bytearray(body)
    for start in range(0, len(data), _GRAIN):
        data[min(start + int(where * (_GRAIN - 1)), len(data) - 1)] ^= 0x40
    return bytes(data)


def _parse_range(text: str) -> tuple[int, int, int]:
    span, _, size = text.removeprefix("bytes ").partition("/")
    start, _, end = span.partition("-")
    return int(start), int(end), int(size)


def _bound(port: int) -> socket.socket:
    found = socket.socket()
    # Several at one port: one holds it, one listens.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", port))
    return found


async def reset(connection: trio.SocketStream) -> NoReturn:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(connection)
    raise _Closed


async def stay_silent(stream: trio.abc.Stream) -> NoReturn:
    """Say nothing, until the other side closes."""
    while await stream.receive_some():
        pass
    raise _Closed
