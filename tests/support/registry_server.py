"""Debian's docker-registry on loopback: open to all, with passwords, or with the tokens of a token server of ours."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from tests.support.certificates import Authority

USER, PASSWORD = "tester", "secret-of-the-test"
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuu2hir4hxhqSzdkW1wYaCdjOyk2x8X6Wm"
"""PASSWORD, by bcrypt (crypt(3))."""
_ISSUER, _SERVICE = "token server of the test", "registry of the test"
_PATIENCE = 60.0


@dataclass
class RegistryServer:
    """A registry that runs."""

    port: int
    directory: Path
    log: Path
    tokens: TokenServer | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def auth_file(self, path: Path, user: str = USER, password: str = PASSWORD, registry: str = "") -> Path:
        """Write a file with credentials for it, as skopeo login does; ``registry`` is another name of it."""
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        path.write_text(json.dumps({"auths": {registry or self.host: {"auth": auth}}}))
        return path

    def requests(self, method: str = "") -> list[str]:
        """Method and path of each request until now, by its log."""
        found = re.findall(r'] "([A-Z]+ [^ ?]*)[^"]* HTTP', self.log.read_text())
        return [request for request in found if request.startswith(method)]


@contextmanager
def registry_server(
    directory: Path, auth: str = "none", token_life: int = 300, certificate: Authority | None = None
) -> Iterator[RegistryServer]:
    """Run it.

    Args:
        directory: for its data.
        auth: ``none``, ``basic`` or ``token``.
        token_life: seconds.
        certificate: TLS, with this one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokens = TokenServer(token_life) if auth == "token" else None
    lines = ["version: 0.1", "log: {level: info}", "storage:", "  filesystem:", f"    rootdirectory: {directory}/data"]
    lines += ["http:", "  addr: 127.0.0.1:0", "  secret: of the test"]
    if certificate is not None:
        lines += [f"  tls: {{certificate: {certificate.certificate}, key: {certificate.key}}}"]
    if auth == "basic":
        (directory / "htpasswd").write_text(_HTPASSWD + "\n")
        lines += ["auth:", "  htpasswd:", "    realm: test", f"    path: {directory}/htpasswd"]
    if tokens is not None:
        (directory / "certificate.pem").write_bytes(tokens.certificate)
        lines += ["auth:", "  token:", f"    realm: {tokens.url}", f"    service: {_SERVICE}", f"    issuer: {_ISSUER}"]
        lines += [f"    rootcertbundle: {directory}/certificate.pem"]
    configuration, log = directory / "config.yml", directory / "log"
    configuration.write_text("\n".join(lines) + "\n")
    # Variables of such names change its configuration.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    with open(log, "ab") as output, _running(tokens):
        process = subprocess.Popen(
            ["docker-registry", "serve", configuration],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield RegistryServer(_wait_for_port(process, log), directory, log, tokens)
        finally:
            process.kill()
            process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if found := re.findall(r"listening on 127\.0\.0\.1:([0-9]+)", log.read_text()):
            return int(found[-1])
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise TimeoutError("docker-registry")


@contextmanager
def _running(tokens: TokenServer | None) -> Iterator[None]:
    """Run the token server, if there is one."""
    if tokens is None:
        yield
        return
    with tokens.running():
        yield


@dataclass
class TokenServer:
    """Gives tokens: to USER for what they ask, to others for pulling from repositories below ``public/``."""

    life: int
    """Seconds."""
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    """The queries, or forms, of all requests."""
    identity_token: str = "identity-of-the-test"
    refuses: bool = False

    def __post_init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ISSUER)])
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    @property
    def certificate(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def answer(self, authorization: str, asked: dict[str, list[str]]) -> dict[str, Any] | None:
        """The token document, or None for somebody who gives a wrong password."""
        self.asked.append(asked)
        is_user = authorization == "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        is_user |= asked.get("refresh_token") == [self.identity_token]
        if self.refuses or ((authorization or "refresh_token" in asked) and not is_user):
            return None
        access = []
        for scope in " ".join(asked.get("scope", [])).split():
            kind, name, actions = scope.split(":")
            if is_user or name.startswith("public/"):
                allowed = actions.split(",") if is_user else ["pull"]
                access.append({"type": kind, "name": name, "actions": allowed})
        return {"access_token" if "refresh_token" in asked else "token": self._token(access), "expires_in": self.life}

    def _token(self, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": _ISSUER,
            "sub": USER,
            "aud": _SERVICE,
            "exp": now + self.life,
            "nbf": now - 10,
            "iat": now,
            "jti": str(time.monotonic_ns()),
            "access": access,
        }
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + _base64url(signature)).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _handler(tokens: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(parse_qs(urlsplit(self.path).query))

        def do_POST(self) -> None:
            self._answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

        def _answer(self, asked: dict[str, list[str]]) -> None:
            document = tokens.answer(self.headers.get("Authorization", ""), asked)
            body = json.dumps(document or {"details": "no"}).encode()
            self.send_response(200 if document else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    return Handler
