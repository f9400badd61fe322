"""A web server in a thread that serves files of a directory by ranges; what it sends can be spoiled."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.http_objects import etag_of


class RangeServer(ThreadingHTTPServer):
    """The address is ``url``, without a slash at its end."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.ranges: list[tuple[int, int]] = []
        """Offsets and lengths that were sent."""
        self.authorizations: set[str] = set()
        self.spoil: Callable[[int, bytes, bool], bytes] = lambda offset, data, is_direct: data
        """Changes what is sent: offset, bytes, and whether it was asked for past caches."""
        self.gate = threading.Event()
        """Cleared, answers wait for it."""
        self.gate.set()

    @property
    def bytes_sent(self) -> int:
        return sum(length for _, length in self.ranges)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away when they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        server = self.server
        server.gate.wait(60)
        server.authorizations.add(self.headers.get("Authorization", ""))
        path = server.directory / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start, end, status = 0, len(content), 200
        if found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            status = 206
            if found[1]:
                start, end = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
            else:
                start = max(0, len(content) - int(found[2]))
        is_direct = "no-cache" in self.headers.get("Cache-Control", "")
        body = server.spoil(start, content[start:end], is_direct)
        server.ranges.append((start, len(body)))
        self.send_response(status)
        self.send_header("ETag", etag_of(content[-4096:]))
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def range_server(directory: Path) -> Iterator[RangeServer]:
    with RangeServer(directory) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()
