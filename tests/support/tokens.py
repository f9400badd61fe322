"""A PKCS #11 token (SoftHSM) and a TPM (swtpm) with a key to sign with, as files of the tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import run, wait_until

PIN = "12345678"
MODULE = "/usr/lib/softhsm/libsofthsm2.so"
TOKEN_URI = "pkcs11:token=signing;object=image-key"
_ATTRIBUTES = "sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda"
_TPM = ("-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2")


@dataclass(frozen=True)
class Token:
    """Where a private key is that never leaves its device."""

    public: Path
    environment: dict[str, str]


def make_token(directory: Path) -> Token:
    """A token of SoftHSM with an RSA key of 3072 bits, which is made in it."""
    (directory / "tokens").mkdir()
    configuration = directory / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    environment = {"SOFTHSM2_CONF": str(configuration), "PKCS11_MODULE_PATH": MODULE, "PKCS11_PROVIDER_MODULE": MODULE}
    run("softhsm2-util", "--init-token", "--free", "--label", "signing", "--pin", PIN, "--so-pin", "87654321",
        env=environment)  # fmt: skip
    tool = ("pkcs11-tool", "--module", MODULE, "--token-label", "signing", "--login", "--pin", PIN)
    run(*tool, "--keypairgen", "--key-type", "rsa:3072", "--label", "image-key", "--id", "01", env=environment)
    der, public = directory / "public.der", directory / "public.pem"
    run(*tool, "--read-object", "--type", "pubkey", "--id", "01", "--output-file", der, env=environment)
    run("openssl", "pkey", "-pubin", "-inform", "DER", "-in", der, "-out", public)
    return Token(public, environment)


@contextmanager
def running_tpm(directory: Path) -> Iterator[dict[str, str]]:
    """A TPM; the environment in which tpm2-tools and OpenSSL's provider find it."""
    (directory / "state").mkdir()
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}/state", "--server",
         f"type=unixio,path={directory}/tpm", "--ctrl", f"type=unixio,path={directory}/tpm.ctrl",
         "--flags", "not-need-init,startup-clear"],
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until((directory / "tpm").exists)
        interface = f"swtpm:path={directory}/tpm"
        yield {"TPM2TOOLS_TCTI": interface, "TPM2OPENSSL_TCTI": interface}
    finally:
        process.terminate()
        process.wait(10)


def make_tpm_key(directory: Path, environment: dict[str, str], handle: str, passphrase: str | None) -> Token:
    """A persistent RSA key of 2048 bits in the TPM."""

    def tool(*words: str | os.PathLike[str]) -> None:
        run(*words, env=environment, cwd=directory)
        run("tpm2_flushcontext", "-t", env=environment)

    protected = ("-p", passphrase) if passphrase is not None else ()
    tool("tpm2_createprimary", "-C", "o", "-g", "sha256", "-G", "rsa", "-c", "primary")
    tool("tpm2_create", "-C", "primary", "-G", "rsa2048:rsassa-sha256:null", "-u", "public", "-r", "private",
         "-a", _ATTRIBUTES, *protected)  # fmt: skip
    tool("tpm2_load", "-C", "primary", "-u", "public", "-r", "private", "-c", "key")
    tool("tpm2_evictcontrol", "-C", "o", "-c", "key", handle)
    public = directory / f"{handle}.pem"
    tool("tpm2_readpublic", "-c", handle, "-f", "pem", "-o", public)
    return Token(public, environment)


def make_tpm_file(directory: Path, environment: dict[str, str], passphrase: str | None) -> tuple[Path, Path]:
    """The public key, and the private one as a TSS2 file that only this TPM can use."""
    name = "open" if passphrase is None else "locked"
    private, public = directory / f"{name}.pem", directory / f"{name}-public.pem"
    protected = ("-pkeyopt", f"user-auth:{passphrase}") if passphrase is not None else ()
    given = ("-passin", f"pass:{passphrase}") if passphrase is not None else ()
    run("openssl", "genpkey", *_TPM, "-algorithm", "RSA", "-pkeyopt", "bits:2048", *protected, "-out", private,
        env=environment)  # fmt: skip
    private.chmod(0o600)
    run("openssl", "pkey", *_TPM, "-in", private, *given, "-pubout", "-out", public, env=environment)
    return public, private
