"""nginx that serves a directory, for a block; and the requests that it got."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer import SECONDS_TO_END
from benchmarks.tools import BenchmarkError, LeftOut, StrPath, is_installed

SECONDS_TO_START = 30


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was answered."""

    time: float
    """When the answer had been sent: seconds since 1970."""
    seconds: float
    """From the first byte of the request on."""
    offset: int
    length: int
    """Bytes of the body; the range begins at ``offset``."""
    status: int


@dataclass(frozen=True, slots=True)
class WebServer:
    url: str
    log: Path

    def requests(self) -> list[Served]:
        """All so far, in the order in which they were answered."""
        found = []
        for line in self.log.read_text().splitlines():
            moment, seconds, status, length, content_range = line.split(" ", 4)
            start = content_range.removeprefix("bytes ").partition("-")[0]
            offset = int(start) if start.isdigit() else 0
            found.append(Served(float(moment), float(seconds), offset, int(length), int(status)))
        return found

    def forget(self) -> None:
        """Forget the requests so far."""
        self.log.write_text("")


@contextmanager
def web_server(
    directory: Path,
    scratch: Path,
    host: str = "127.0.0.1",
    port: int = 8390,
    words: Callable[..., list[str]] | None = None,
) -> Iterator[WebServer]:
    """Serve the files of ``directory``.

    Args:
        scratch: a directory for nginx's own files.
        words: makes the command that runs a command where the server is to be.

    Raises:
        LeftOut: nginx is not installed.
        BenchmarkError: it did not start.
    """
    if not is_installed("nginx"):
        raise LeftOut("nginx is not installed")
    own = scratch / f"nginx-{port}"
    own.mkdir()
    log, config = own / "requests", own / "nginx.conf"
    config.write_text(f"""
daemon off; master_process off; pid {own}/pid; error_log {own}/errors;
events {{ worker_connections 4096; }}
http {{
    log_format short '$msec $request_time $status $body_bytes_sent $sent_http_content_range';
    access_log {log} short;
    sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000; etag on;
    client_body_temp_path {own}/t1; proxy_temp_path {own}/t2; fastcgi_temp_path {own}/t3; uwsgi_temp_path {own}/t4;
    scgi_temp_path {own}/t5;
    server {{ listen {host}:{port} backlog=1024; root {directory}; }}
}}
""")
    command: list[StrPath] = ["nginx", "-c", config, "-e", own / "errors"]
    with (own / "said").open("w") as said:
        process = subprocess.Popen(words(*command) if words else [str(word) for word in command], stderr=said)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not (own / "pid").exists() or not (own / "pid").read_text().strip():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"nginx did not start: {(own / 'said').read_text().strip()[-200:]}")
            time.sleep(0.01)
        yield WebServer(f"http://{host}:{port}", log)
    finally:
        process.terminate()
        process.wait(SECONDS_TO_END)
