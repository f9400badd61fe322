"""Private keys that do not leave a token, a smart card or a TPM: the ``openssl`` command asks these for signatures.

OpenSSL reaches PKCS #11 modules by its provider ``pkcs11`` or, where that is not installed, by libp11's engine of that
name; a TPM by the provider ``tpm2``.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from mystfuse.crypto.secret import Secret
from mystfuse.errors import MystfuseError, UsageError, WrongKey
from mystfuse.system.program_output import read_output
from mystfuse.trust.key_uri import KeyUri
from mystfuse.trust.signature import PublicKey, SigningKey

TOKEN_TIMEOUT = 120.0
"""Seconds that a token may take: somebody may have to touch it, or to type a PIN on its own keys."""
_MAX_OUTPUT = 64 << 10
_MAX_PIN = 1000
"""Bytes; openssl reads 1024 at most (apps/lib/apps.c, APP_PASS_LEN)."""
_TSS2_KEY = re.compile(rb"-----BEGIN TSS2 PRIVATE KEY-----(.*?)-----END TSS2 PRIVATE KEY-----", re.DOTALL)
_EMPTY_AUTH = re.compile(rb"\x67\x81\x05\x0a\x01\x03\xa0\x03\x01\x01[^\0]", re.DOTALL)
"""In its DER the object identifier id-loadablekey, and behind it emptyAuth, true: the key has no passphrase. Source:
"ASN.1 Specification for TPM 2.0 Key Files", section 3.1."""
_ERROR = re.compile(
    r"^[0-9A-F]+:error:[0-9A-F]+:(?P<library>[^:]*):[^:]*:(?P<reason>[^:]*):[^:]*:-?\d+:?(?P<data>.*)$", re.MULTILINE
)
"""A line of ERR_print_errors(3)."""
_PROMPT = re.compile(r"^(Enter (PKCS#11|pass ?phrase|PIN)|PIN for )", re.MULTILINE | re.IGNORECASE)
"""openssl, its engine or provider asked, for want of a PIN."""
_ABOUT_PINS = re.compile(r"\bPIN\b|\bauthorization|\bauth fail", re.IGNORECASE)
_PROVIDER_CONFIGURATION = """\
openssl_conf = mystfuse
[mystfuse]
providers = mystfuse_providers
[mystfuse_providers]
default = mystfuse_default
pkcs11 = mystfuse_pkcs11
[mystfuse_default]
activate = 1
[mystfuse_pkcs11]
module = {provider}
pkcs11-module-path = {module}
pkcs11-module-load-behavior = early
pkcs11-module-quirks = no-deinit
activate = 1
"""
"""openssl.cnf for a module that the URI names. Two settings are for modules that use OpenSSL themselves, as SoftHSM:
it would hang while a provider is being loaded, and crash when openssl ends (OpenSSL 3.5, pkcs11-provider 1.0)."""
_PACKAGES = {
    "pkcs11": "a key by pkcs11: needs OpenSSL's PKCS #11 provider or engine (Debian: pkcs11-provider, or "
    "libengine-pkcs11-openssl)",
    "tpm2": "a key in a TPM needs OpenSSL's provider tpm2 (Debian: tpm2-openssl)",
}


@dataclass(frozen=True, slots=True)
class Tss2Key:
    """A PEM file with a key that one TPM alone can use, as ``openssl genpkey -provider tpm2`` writes it."""

    wants_passphrase: bool

    @classmethod
    def parse(cls, pem: bytes | memoryview) -> Tss2Key | None:
        """None if it is anything else."""
        match = _TSS2_KEY.search(pem)
        if match is None:
            return None
        try:
            der = binascii.a2b_base64(match[1])
        except binascii.Error:
            der = b""
        return cls(_EMPTY_AUTH.search(der[:64]) is None)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A private key in a token."""

    name: str
    """Its URI without PIN, or the path of its TSS2 file: for openssl, and in messages."""
    kind: str
    """``pkcs11`` or ``tpm2``: the name of the provider."""
    pin: Secret | None = None
    """Its PIN or passphrase; if None, it is used without one."""
    module_path: str | None = None
    """The PKCS #11 module; if None, the one that openssl is configured for."""

    @classmethod
    def of(cls, uri: KeyUri, pin: Secret | None) -> TokenKey:
        """The key that a URI names, with its PIN, wherever that is from."""
        # Without "?pass" the provider ignores the passphrase.
        is_bare = not uri.is_pkcs11 and pin is not None and not uri.wants_passphrase
        name = f"{uri.text}?pass" if is_bare else uri.text
        return cls(name, "pkcs11" if uri.is_pkcs11 else "tpm2", pin, uri.module_path)

    def signing_key(self, public: PublicKey | None) -> SigningKey:
        """The key to sign with. It asks the token for the public key, so that a missing token or key, and with PKCS #11
        a wrong PIN, is found now.

        Args:
            public: the public key that it must have; None: any.

        Raises:
            UsageError: it has another public key, or one that ``PublicKey`` refuses; or its PIN is impossible.
            WrongKey: its PIN is missing or wrong.
            MystfuseError: the token, its key, openssl, or its provider and engine are missing; or they failed.
        """
        access = self._access("-in", "-inform")
        found = PublicKey.from_pem(self._openssl(["pkey", *access, "-pubout"]), self.name)
        if public is not None and not found.is_same_as(public):
            raise UsageError(f"{public.name} is not the public key of {self.name}")
        return SigningKey(found, self._sign)

    def _sign(self, digest: bytes) -> bytes:
        # Not by stdin: openssl without the PIN that it wants would read that as one, and tokens count wrong ones.
        with os.fdopen(os.memfd_create("mystfuse"), "wb", buffering=0) as file:
            file.write(digest)
            given = ["-in", f"/proc/self/fd/{file.fileno()}", "-pkeyopt", "digest:sha256"]
            return self._openssl(["pkeyutl", "-sign", *self._access("-inkey", "-keyform"), *given], [file.fileno()])

    def _access(self, key: str, form: str) -> list[str]:
        """openssl's options for it: ``key`` and ``form`` are the names of two of them."""
        provider, engine = _plugins(self.name, self.kind)
        if provider:
            preferred = ["-propquery", "?provider=tpm2"] if self.kind == "tpm2" else []
            return ["-provider", self.kind, "-provider", "default", *preferred, key, self.name]
        if self.kind == "pkcs11" and engine:
            return ["-engine", "pkcs11", form, "engine", key, self.name]
        raise MystfuseError(f"{self.name}: {_PACKAGES[self.kind]}")

    def _openssl(self, arguments: Sequence[str], inherited: Sequence[int] = ()) -> bytes:
        """Run openssl with the PIN in a pipe; returns what it prints."""
        environment = dict(os.environ)
        command, descriptors = ["openssl", *arguments], list(inherited)
        with ExitStack() as stack:
            if self.module_path is not None:
                # Of libp11's engine.
                environment["PKCS11_MODULE_PATH"] = self.module_path
                if provider := _plugins(self.name, self.kind)[0]:
                    text = _PROVIDER_CONFIGURATION.format(provider=provider, module=self.module_path)
                    file = stack.enter_context(os.fdopen(os.memfd_create("mystfuse"), "wb", buffering=0))
                    file.write(os.fsencode(text))
                    environment["OPENSSL_CONF"] = f"/proc/self/fd/{file.fileno()}"
                    environment.pop("PKCS11_PROVIDER_MODULE", None)
                    descriptors.append(file.fileno())
            if self.pin is not None:
                pipe = self._pin_pipe(self.pin)
                stack.callback(os.close, pipe)
                command += ["-passin", f"fd:{pipe}"]
                descriptors.append(pipe)
            status, output, said = _run(command, self.name, environment, descriptors)
        if status == 0 and output:
            return output
        raise self._failed(said, status)

    def _pin_pipe(self, pin: Secret) -> int:
        """The end of a pipe from which openssl reads the PIN, a line."""
        if len(pin) > _MAX_PIN or b"\n" in bytes(pin.view) or b"\0" in bytes(pin.view):
            raise UsageError(f"{self.name}: its PIN is not one line of up to {_MAX_PIN} bytes")
        reading, writing = os.pipe()
        try:
            # All of it fits into the pipe.
            os.writev(writing, [pin.view, b"\n"])
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return reading

    def _failed(self, said: str, status: int) -> MystfuseError:
        """The error, from what openssl has written to stderr."""
        if _PROMPT.search(said):
            return WrongKey(f"{self.name}: it wants its PIN or passphrase: give --sign-passphrase-file")
        match = _ERROR.search(said)
        if match is None:
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            if self.kind == "pkcs11" and lines and lines[-1].startswith("Could not find private key"):
                # The provider says no more.
                return MystfuseError(f"{self.name}: no such key in it, or its PIN is wrong")
            return MystfuseError(f"{self.name}: {lines[-1] if lines else f'openssl failed (status {status})'}")
        if match["data"].startswith("calling stat("):
            # openssl takes the URI for a path.
            return MystfuseError(
                f"{self.name}: OpenSSL could not load the PKCS #11 module for it (module-path= names it)"
            )
        # The first one is the cause. tpm2-openssl puts the TPM's number before its words.
        reason, data = re.sub(r"^reason\(\d+\)$", "", match["reason"]), re.sub(r"^\d+ ", "", match["data"])
        parts = [part.strip() for part in (reason, data) if part.strip()]
        why = ": ".join(parts) or f"an error of {match['library']}"
        return (WrongKey if _ABOUT_PINS.search(why) else MystfuseError)(f"{self.name}: {why}")


def _plugins(name: str, kind: str) -> tuple[str | None, str | None]:
    """The files of OpenSSL's provider and engine of this kind; None for one that is not installed."""
    _, output, _ = _run(["openssl", "version", "-m", "-e"], name, dict(os.environ), [])
    found = dict(
        re.findall(r'^(MODULESDIR|ENGINESDIR): "(.*)"$', output.decode(errors="surrogateescape"), re.MULTILINE)
    )
    directories = (
        os.environ.get("OPENSSL_MODULES") or found.get("MODULESDIR", ""),
        os.environ.get("OPENSSL_ENGINES") or found.get("ENGINESDIR", ""),
    )
    paths = [os.path.join(directory, f"{kind}.so") for directory in directories]
    provider, engine = (path if os.path.exists(path) else None for path in paths)
    return provider, engine


def _run(
    command: Sequence[str], name: str, environment: dict[str, str], descriptors: Sequence[int]
) -> tuple[int, bytes, str]:
    """Run openssl without a terminal; returns its status, output and messages."""
    buffer = bytearray(_MAX_OUTPUT)
    with os.fdopen(os.memfd_create("mystfuse"), "w+b") as errors:
        try:
            status, size = read_output(
                command,
                memoryview(buffer),
                TOKEN_TIMEOUT,
                environment=environment,
                descriptors=descriptors,
                has_terminal=False,
                stderr=errors.fileno(),
            )
        except TimeoutError:
            raise MystfuseError(f"{name}: no answer from it within {TOKEN_TIMEOUT:g} s") from None
        except OSError as error:
            raise MystfuseError(f"{name}: openssl, which asks for it, cannot be run: {error.strerror}") from error
        errors.seek(0)
        return status, bytes(buffer[:size]), errors.read(_MAX_OUTPUT).decode(errors="replace")
