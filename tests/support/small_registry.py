"""A registry of the test's own, for what docker-registry does not do: it goes on with an upload that broke off within
a request, as the distribution specification has it; and it breaks uploads off, and sends readers elsewhere, as told."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class SmallRegistry:
    """What it has, what it has been asked, and what it is told."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path with query, and headers."""
    break_after: list[int] = field(default_factory=list)
    """One by one: how many bytes of a PATCH are taken until the connection is closed."""
    refuse: list[int] = field(default_factory=list)
    """One by one: HTTP statuses that PATCHes are answered with."""
    forget: bool = False
    """Broken uploads are dropped."""
    password: str = ""
    """The header Authorization that it wants, if any."""
    lead_to: str = ""
    """The beginning of URLs to which it sends who wants a blob."""
    location: str = ""
    """Where it sends who wants to upload, instead of to itself."""
    is_silent: bool = False
    """It does not answer."""
    lies: str = ""
    """What it says that it has kept of an upload."""
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def small_registry() -> Iterator[SmallRegistry]:
    """Run it."""
    registry = SmallRegistry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(registry))
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(registry: SmallRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            registry.requests.append((self.command, self.path, dict(self.headers)))
            while registry.is_silent:
                time.sleep(0.05)
            parts = urlsplit(self.path)
            match = re.fullmatch(r"/v2/(.+?)/(blobs/uploads|blobs|manifests)/([^/]*)", parts.path)
            assert match is not None, self.path
            if registry.password and self.headers.get("Authorization") != registry.password:
                self._answer(401, {"WWW-Authenticate": 'Basic realm="test"'})
                return
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            {"blobs/uploads": self._upload, "blobs": self._blob, "manifests": self._manifest}[match[2]](match[3], query)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _handle

        def _upload(self, name: str, query: dict[str, str]) -> None:
            if self.command == "POST":
                name = uuid.uuid4().hex
                registry.uploads[name] = bytearray()
                self._answer(202, self._place(name))
                return
            length = int(self.headers.get("Content-Length", 0))
            data = registry.uploads.get(name)
            if data is None:
                self.close_connection = True
                self._answer(404)
            elif self.command == "GET":
                self._answer(204, self._place(name))
            elif self.command == "PATCH":
                self._take(name, data, length)
            else:
                digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                del registry.uploads[name]
                if digest == query["digest"]:
                    registry.blobs[digest] = bytes(data)
                self._answer(201 if digest == query["digest"] else 400)

        def _take(self, name: str, data: bytearray, length: int) -> None:
            if registry.refuse:
                self.rfile.read(length)
                self._answer(registry.refuse.pop(0))
                return
            assert registry.lies or self.headers["Content-Range"] == f"{len(data)}-{len(data) + length - 1}"
            if registry.break_after and registry.break_after[0] < length:
                data += self.rfile.read(registry.break_after.pop(0))
                if registry.forget:
                    del registry.uploads[name]
                self.close_connection = True
                return
            data += self.rfile.read(length)
            self._answer(202, self._place(name))

        def _place(self, name: str) -> dict[str, str]:
            size = len(registry.uploads[name])
            kept = registry.lies or f"0-{max(0, size - 1)}"
            return {"Location": registry.location or f"/v2/app/blobs/uploads/{name}", "Range": kept}

        def _blob(self, digest: str, query: dict[str, str]) -> None:
            data = registry.blobs.get(digest)
            if data is None:
                self._answer(404)
            elif registry.lead_to:
                self._answer(307, {"Location": f"{registry.lead_to}/{digest}?signature=secret"})
            elif found := re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", self.headers.get("Range", "")):
                start = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
                end = min(int(found[2]) + 1, len(data)) if found[1] else len(data)
                self._answer(206, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end])
            else:
                self._answer(200, {}, data)

        def _manifest(self, reference: str, query: dict[str, str]) -> None:
            if self.command == "PUT":
                data = self.rfile.read(int(self.headers["Content-Length"]))
                json.loads(data)
                registry.manifests[reference] = registry.manifests[f"sha256:{hashlib.sha256(data).hexdigest()}"] = data
                self._answer(201)
            else:
                data = registry.manifests.get(reference, b"")
                self._answer(200 if data else 404, {}, data)

        def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    return Handler
