"""What a web server has behind it: an object with its ETag, or another server. Requests and responses as values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import h11
import trio


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes = b""

    @property
    def is_direct(self) -> bool:
        """Whether it asks to be answered past caches."""
        return "no-cache" in self.headers.get("cache-control", "") + self.headers.get("pragma", "")


@dataclass(slots=True)
class Response:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


Handler = Callable[[Request], Awaitable[Response]]


def etag_of(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:20]}"'


class StoredObject:
    """A handler that serves one object, whatever it is asked for, as RFC 9110 says: Range, If-Range, If-Match."""

    def __init__(self, content: bytes) -> None:
        self.replace(content)
        self.bytes_served = 0

    def replace(self, content: bytes) -> None:
        """From now on, this is the object."""
        self.content = content
        self.etag = etag_of(content)

    async def __call__(self, request: Request) -> Response:
        headers = {"ETag": self.etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        size = len(self.content)
        wanted = request.headers.get("if-match")
        if wanted is not None and wanted not in ("*", self.etag):
            return Response(412, headers)
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if request.headers.get("if-range", self.etag) != self.etag:
            found = None
        if found is None or not (found[1] or found[2]):
            self.bytes_served += size
            return Response(200, headers, b"" if request.method == "HEAD" else self.content)
        if found[1]:
            start, end = int(found[1]), min(int(found[2] or size), size - 1) + 1
        else:
            start, end = max(0, size - int(found[2])), size
        if start >= size or end <= start:
            return Response(416, {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.bytes_served += end - start
        return Response(206, headers, self.content[start:end])


class Upstream:
    """A handler that asks a real server on this machine; one connection a request."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port

    async def __call__(self, request: Request) -> Response:
        connection = h11.Connection(h11.CLIENT)
        headers = [(name, value) for name, value in request.headers.items() if name != "connection"]
        head = h11.Request(method=request.method, target=request.target, headers=[*headers, ("connection", "close")])
        stream = await trio.open_tcp_stream(self._host, self._port)
        async with stream:
            await stream.send_all(
                (connection.send(head) or b"")
                + (connection.send(h11.Data(data=request.body)) or b"")
                + (connection.send(h11.EndOfMessage()) or b"")
            )
            response = Response(502)
            body = bytearray()
            while True:
                match connection.next_event():
                    case h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(1 << 16))
                    case h11.Response(status_code=status, headers=found):
                        response = Response(status, {name.decode().title(): value.decode() for name, value in found})
                    case h11.Data(data=data):
                        body += data
                    case h11.EndOfMessage() | h11.ConnectionClosed():
                        break
        for name in ("Connection", "Transfer-Encoding", "Content-Length"):
            response.headers.pop(name, None)
        response.body = bytes(body)
        return response
