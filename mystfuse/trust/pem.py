"""Public keys in PEM files, and advice for files that users mistake for them."""

from __future__ import annotations

import re
from binascii import Error, a2b_base64
from dataclasses import dataclass

from mystfuse.errors import UsageError

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----[ \t]*\r?\n(.*?)-----END \1-----", re.DOTALL)
_RSASSA_PSS = bytes.fromhex("06092a864886f70d01010a")
"""DER of the object identifier id-RSASSA-PSS: RFC 4055, section 3.1."""
_PUBLIC_LABELS = ("PUBLIC KEY", "RSA PUBLIC KEY")
_ADVICE = (
    (
        re.compile(r".*CERTIFICATE"),
        "a certificate, not a public key (openssl x509 -in {name} -noout -pubkey > KEY.pem)",
    ),
    (re.compile("CERTIFICATE REQUEST"), "a certificate request (openssl req -in {name} -noout -pubkey > KEY.pem)"),
    (
        re.compile("OPENSSH PRIVATE KEY"),
        "a private key of ssh, not a public key (ssh-keygen -y -f {name} > KEY.pub; ssh-keygen -e -m PKCS8 -f KEY.pub)",
    ),
    (re.compile(".*PRIVATE KEY"), "a private key, not a public key (openssl pkey -in {name} -pubout -out KEY.pem)"),
    (re.compile("PGP .*"), "a key or message of PGP, which is not a PEM public key"),
)
_SSH = (b"ssh-", b"ecdsa-sha2-", b"sk-ssh-", b"---- BEGIN SSH2 PUBLIC KEY")


@dataclass(frozen=True, slots=True)
class PemBlock:
    """One ``BEGIN`` to ``END``."""

    label: str
    text: bytes
    """All of it, both lines included."""


def public_key_blocks(data: bytes, name: str) -> list[PemBlock]:
    """The public keys in a PEM file, one at least, and nothing else but text between them.

    Raises:
        UsageError: it contains none, or something else; the message says what it is, and which command converts it.
    """
    blocks = [PemBlock(match[1].decode(), match[0] + b"\n") for match in _BLOCK.finditer(data)]
    for block in blocks:
        if block.label not in _PUBLIC_LABELS:
            raise UsageError(f"{name}: not a PEM public key but {_describe_label(block.label, name)}")
    if not blocks or b"-----BEGIN" in _BLOCK.sub(b"", data):
        raise UsageError(f"{name}: not a PEM public key{_describe_file(data, name)}")
    return blocks


def check_not_pss(block: bytes, name: str) -> None:
    """Raise UsageError for the PEM block of an RSA-PSS key, which cryptography accepts as a plain RSA key."""
    match = _BLOCK.search(block)
    try:
        der = a2b_base64(match[2]) if match else b""
    except Error:
        return
    # Its algorithm comes before the numbers of the key, which could hold the same bytes: openssl writes it within 64.
    if _RSASSA_PSS in der[:64]:
        raise UsageError(
            f"{name}: an RSA-PSS key, which may make no signatures of the kind that images have (PKCS #1 v1.5): "
            "make a plain RSA key (openssl genrsa -out PRIVATE.pem 3072)"
        )


def _describe_label(label: str, name: str) -> str:
    for pattern, advice in _ADVICE:
        if pattern.fullmatch(label):
            return advice.format(name=name)
    return f"{label!r}"


def _describe_file(data: bytes, name: str) -> str:
    """The kind of a file without a public key in PEM, as far as its first bytes tell."""
    start = data.lstrip()
    if start.startswith(_SSH):
        return f" but one of ssh (ssh-keygen -e -m PKCS8 -f {name} > KEY.pem)"
    if data[:1] == b"\x30":
        return f" but DER, it seems (openssl pkey -pubin -inform DER -in {name} -out KEY.pem)"
    return " (openssl rsa -in PRIVATE -pubout makes one)"
