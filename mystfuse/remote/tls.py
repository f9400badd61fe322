"""TLS: whom the fetcher trusts, the certificate that it shows, and what a failure means to people."""

from __future__ import annotations

import functools
import os
import re
import ssl
from contextlib import suppress

import httpx2

from mystfuse.remote.origin import Failure, FetchError


@functools.lru_cache(4)
def tls_context(ca_certificates: str | None, client_certificate: str | None, stamp: float = 0.0) -> ssl.SSLContext:
    """What verifies servers: by the system's authorities, or those in ``$SSL_CERT_FILE`` or ``$SSL_CERT_DIR``. Making
    one takes 40 ms, so there is one for all who ask for the same.

    Args:
        ca_certificates: the path of a PEM file with authorities, instead.
        client_certificate: the path of a PEM file with a certificate and its key, without a passphrase.

        stamp: of the files, which are read again when it is another (``stamp_of``).

    Raises:
        FetchError: UNTRUSTED: a file is missing, or is not what it should be.
    """
    try:
        if ca_certificates is None:
            # The system's store as truststore finds it, without what that leaks at each handshake with OpenSSL < 3.4.
            context = httpx2.create_ssl_context()
        else:
            context = ssl.create_default_context(cafile=ca_certificates)
    except OSError as error:
        where = ca_certificates or os.environ.get("SSL_CERT_FILE") or "the system's store"
        raise _unusable_file(where, "with certificates of authorities", error) from error
    if client_certificate is not None:
        try:
            # Without the function, OpenSSL would ask for a passphrase at the terminal.
            context.load_cert_chain(client_certificate, password=lambda: "")
        except OSError as error:
            raise _unusable_file(client_certificate, "with a certificate and its key, unencrypted", error) from error
    return context


_OTHER_NAME = "the address must have a name that is in the certificate"
_OTHER_TIME = "the server needs another one, or the clock here is wrong"
_ADVICE = {9: _OTHER_TIME, 10: _OTHER_TIME, 62: _OTHER_NAME, 64: _OTHER_NAME}
"""By X509_V_ERR_CERT_NOT_YET_VALID, CERT_HAS_EXPIRED, HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH (openssl/x509_vfy.h)."""


def stamp_of(*paths: str | None) -> float:
    """Changes when one of the files does, as short-lived certificates do."""
    stamp = 0.0
    for path in paths:
        with suppress(OSError):
            stamp += os.stat(path).st_mtime if path is not None else 0.0
    return stamp


def no_tls_context() -> ssl.SSLContext:
    """For connections without TLS: made at once, and trusts nobody."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's words, in small letters."""
    # Python does not know the names of all reasons.
    words = error.reason or re.sub(r"^\[[^]]*\]\s*|\s*\(_ssl\.c:\d+\)$", "", str(error))
    return words.replace("_", " ").lower()


def tls_failure(name: str, error: ssl.SSLError) -> FetchError:
    """What a failed handshake is: UNTRUSTED or DENIED if the user must do something, else UNREACHABLE."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = (error.verify_message or "unknown reason").rstrip(".")
        what = _ADVICE.get(
            error.verify_code,
            "if that is as it should be, give its authority's PEM file with --ca-certificates or SSL_CERT_FILE",
        )
        return FetchError(Failure.UNTRUSTED, f"{name}: its TLS certificate is not trusted: {said}; {what}")
    reason = reason_of(error)
    if reason in ("wrong version number", "http request", "record layer failure"):
        why = f"{name}: what answers there does not speak TLS"
        return FetchError(Failure.UNTRUSTED, f"{why}; is it http://, or another port?")
    if "certificate" in reason or "unknown ca" in reason:
        why = f"{name}: the server refuses our TLS certificate, or wants one ({reason})"
        what = "give a PEM file with certificate and key with --client-certificate"
        return FetchError(Failure.DENIED, f"{why}; {what}")
    return FetchError(Failure.UNREACHABLE, f"{name}: TLS failed: {reason}")


def _unusable_file(path: str, what: str, error: OSError) -> FetchError:
    why = error.strerror if not isinstance(error, ssl.SSLError) and error.strerror else "that is not in it"
    return FetchError(Failure.UNTRUSTED, f"{path}: not a PEM file {what}: {why}")
