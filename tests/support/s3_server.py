"""moto's S3 in a process of its own, on loopback; in front of it, what moto leaves out: credentials that have expired,
buckets elsewhere, requests without a signature, and a count of requests.

Run as a module it is that process: it prints its port, and is told what to do by POST of JSON to ``/-/rules``.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.certificates import Authority
from tests.support.images import PROJECT


@dataclass
class S3Server:
    """A server that runs."""

    port: int
    certificate: Authority | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """For whoever is to use it, with credentials that work."""

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def _tls(self) -> ssl.SSLContext | None:
        return self.certificate.client_context() if self.certificate else None

    def rule(self, **rules: Any) -> None:
        """``expired``: access keys that are refused; ``region``: where buckets are; ``private``: no unsigned requests;
        ``fail_after``: this number of PUTs succeed, then all fail."""
        request = urllib.request.Request(f"{self.url}/-/rules", json.dumps(rules).encode(), method="POST")
        urllib.request.urlopen(request, timeout=30, context=self._tls).close()

    def requests(self) -> list[str]:
        """Method, path and query of all requests since the last call of this."""
        with urllib.request.urlopen(f"{self.url}/-/requests", timeout=30, context=self._tls) as answer:
            found: list[str] = json.load(answer)
            return found

    def client(self) -> Any:
        """A client of botocore's, for preparing buckets and looking at them."""
        import botocore.session

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.url,
            verify=str(self.certificate.ca) if self.certificate else None,
            region_name="us-east-1",
            aws_access_key_id="admin",
            aws_secret_access_key="secret",
        )


@contextmanager
def s3_server(certificate: Authority | None = None) -> Iterator[S3Server]:
    """Run it; with TLS, if there is a certificate."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, "-m", "tests.support.s3_server"]
    if certificate is not None:
        command += [str(certificate.certificate), str(certificate.key)]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            server = S3Server(port, certificate)
            server.environment = {
                "AWS_ENDPOINT_URL": server.url,
                "AWS_ACCESS_KEY_ID": "good",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            yield server
        finally:
            process.kill()


class _Rules:
    """The application in front of moto's."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._rules: dict[str, Any] = {}
        self._seen: list[str] = []
        self._puts = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path == "/-/rules":
            self._rules, self._puts = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))), 0
            return _answer(start_response, "200 OK", b"")
        if path == "/-/requests":
            seen, self._seen = self._seen, []
            return _answer(start_response, "200 OK", json.dumps(seen).encode())
        self._seen.append(f"{environ['REQUEST_METHOD']} {path}?{query}")
        found = re.search(
            r"Credential=([^/%]+)(?:/|%2F)[0-9]+(?:/|%2F)([a-z0-9-]+)",
            environ.get("HTTP_AUTHORIZATION", "") + query,
        )
        key, region = (found[1], found[2]) if found else ("", "")
        if key == "admin":
            return self._application(environ, start_response)
        if not key and self._rules.get("private"):
            return _error(start_response, "403 Forbidden", "AccessDenied")
        if key in self._rules.get("expired", ()):
            return _error(start_response, "400 Bad Request", "ExpiredToken")
        wanted = self._rules.get("region")
        if wanted and key and region != wanted:
            return _error(start_response, "301 Moved Permanently", "PermanentRedirect", ("x-amz-bucket-region", wanted))
        if environ["REQUEST_METHOD"] == "PUT":
            self._puts += 1
            if self._puts > self._rules.get("fail_after", self._puts):
                return _error(start_response, "403 Forbidden", "AccessDenied")
        return self._application(environ, start_response)


def _error(start_response: Callable[..., Any], status: str, code: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>as told</Message></Error>'.encode()
    return _answer(start_response, status, body, *headers)


def _answer(start_response: Callable[..., Any], status: str, body: bytes, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(status, [("Content-Length", str(len(body))), ("Content-Type", "application/xml"), *headers])
    return [body]


def _serve(certificate: tuple[str, str] | None) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None

    class Handler(MotoRequestHandler):
        """Shakes hands in the connection's own thread: a connection that says nothing holds up no other."""

        def setup(self) -> None:
            if context is not None:
                self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

    application = _Rules(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    if context is not None and certificate is not None:
        context.load_cert_chain(*certificate)
        server.ssl_context = context
    # It ends with whoever has started it.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve((sys.argv[1], sys.argv[2]) if sys.argv[1:] else None)


@contextmanager
def server_with_buckets() -> Iterator[S3Server]:
    """A server with the buckets ``plain`` and ``versions``, the second of which keeps versions."""
    with s3_server() as server:
        client = server.client()
        client.create_bucket(Bucket="plain")
        client.create_bucket(Bucket="versions")
        client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
        yield server
