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
_PRIVATE_LABELS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY")
_ENCRYPTED_LABEL = "ENCRYPTED PRIVATE KEY"
PSS_FAULT = "an RSA-PSS key, which may make no signatures of the kind that images have (PKCS #1 v1.5)"
"""Why such a key is refused."""
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

    @property
    def is_private(self) -> bool:
        return self.label.endswith("PRIVATE KEY")


def public_key_blocks(data: bytes, name: str) -> list[PemBlock]:
    """The public keys in a PEM file, one at least, and nothing else but text between them.

    Raises:
        UsageError: it contains none, or something else; the message says what it is, and which command converts it.
    """
    return _blocks(data, name, "a PEM public key", _PUBLIC_LABELS)


def key_blocks(data: bytes, name: str) -> list[PemBlock]:
    """The same of public and private keys, the latter unencrypted.

    Raises:
        UsageError: as ``public_key_blocks``; a private key is encrypted.
    """
    blocks = _blocks(data, name, "a PEM key", (*_PUBLIC_LABELS, *_PRIVATE_LABELS, _ENCRYPTED_LABEL))
    for block in blocks:
        # RFC 1421, section 4.6.1.1, as OpenSSL's traditional format has it.
        if block.label == _ENCRYPTED_LABEL or b"\nProc-Type: 4,ENCRYPTED" in block.text[:512]:
            raise UsageError(
                f"{name}: the private key is encrypted: take its public key, which has the same fingerprint "
                f"(openssl pkey -in {name} -pubout -out KEY.pem asks for the passphrase)"
            )
    return blocks


def _blocks(data: bytes, name: str, what: str, labels: tuple[str, ...]) -> list[PemBlock]:
    blocks = [PemBlock(match[1].decode(), match[0] + b"\n") for match in _BLOCK.finditer(data)]
    for block in blocks:
        if block.label not in labels:
            raise UsageError(f"{name}: not {what} but {_describe_label(block.label, name)}")
    if not blocks or b"-----BEGIN" in _BLOCK.sub(b"", data):
        raise UsageError(f"{name}: not {what}{_describe_file(data, name)}")
    return blocks


def check_not_pss(block: bytes | memoryview, name: str) -> None:
    """Raise UsageError for the PEM block of an RSA-PSS key, which cryptography accepts as a plain RSA key."""
    if is_pss(block):
        raise UsageError(f"{name}: {PSS_FAULT}: make a plain RSA key (openssl genrsa -out PRIVATE.pem 3072)")


def is_pss(block: bytes | memoryview) -> bool:
    """Whether a PEM block is that of an RSA-PSS key."""
    match = _BLOCK.search(block)
    try:
        der = a2b_base64(match[2]) if match else b""
    except Error:
        return False
    # Its algorithm comes before the numbers of the key, which could hold the same bytes: openssl writes it within 64.
    return _RSASSA_PSS in der[:64]


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
