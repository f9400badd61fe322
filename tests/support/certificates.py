"""Certificates for servers of tests, by an authority of the test's own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import run


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority, with one certificate for ``localhost`` and 127.0.0.1."""

    ca: Path
    """Its own certificate (PEM), which clients are to trust."""
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


def make_authority(directory: Path, names: str = "DNS:localhost,DNS:images.test,IP:127.0.0.1") -> Authority:
    """Make one in an empty directory.

    Args:
        names: what the server's certificate is for, as openssl's subjectAltName.
    """
    made = Authority(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("openssl", "req", "-x509", *key, "-keyout", directory / "ca.key", "-out", made.ca, "-days", "2",
        "-subj", f"/CN=authority of {directory.name}")  # fmt: skip
    run("openssl", "req", "-x509", *key, "-keyout", made.key, "-out", made.certificate, "-days", "2",
        "-CA", made.ca, "-CAkey", directory / "ca.key", "-subj", "/CN=localhost",
        "-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE")  # fmt: skip
    return made
