"""The key that signs images and packages: a PEM file, or a key in a token or TPM; its options, and loading it.

Every command that signs comes here for its key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from mystfuse.cli.key_options import (
    ask_passphrase,
    has_terminal,
    read_passphrase,
    read_secret,
    run_for_passphrase,
    warn_if_others_read,
)
from mystfuse.cli.options import PEM, FileOrText, option_group
from mystfuse.cli.text import warn
from mystfuse.cli.wrong_files import naming_wrong_file
from mystfuse.crypto.secret import Secret, harden_process
from mystfuse.errors import UsageError, WrongKey
from mystfuse.trust.sources import read_small_file

if TYPE_CHECKING:
    from mystfuse.trust.key_uri import KeyUri
    from mystfuse.trust.openssl_key import TokenKey
    from mystfuse.trust.signature import PublicKey, SigningKey

passphrase_options = option_group(
    click.option(
        "--sign-passphrase-file",
        type=FileOrText(),
        metavar="FILE|-",
        help="Passphrase of the private key, or PIN of its token; - asks for it on a terminal, else reads stdin.",
    ),
    click.option("--sign-passphrase-command", metavar="CMD", help="A command that prints it."),
)

signing_options = option_group(
    click.option(
        "--sign",
        type=FileOrText(PEM, separator=":"),
        metavar="PUB:PRIV",
        help="Sign the root hash with this key pair: two PEM files, or the URI of a key in a token (pkcs11:...) or "
        "TPM (handle:0x81...) after the colon.",
    ),
    passphrase_options,
)

PASSPHRASE_OPTIONS = ("sign_passphrase_file", "sign_passphrase_command")


def load_signing_key(sign: str | None, given: Mapping[str, Any]) -> SigningKey | None:
    """The key pair that ``--sign PUB:PRIV`` names; None without that option.

    Args:
        given: ``passphrase_options`` by the names of their parameters.

    Raises:
        UsageError: it is no key pair, or options do not go together.
        WrongKey, MystfuseError: as ``load_private_key``.
    """
    if sign is None:
        named = [name for name in PASSPHRASE_OPTIONS if given.get(name) is not None]
        if named:
            raise UsageError(f"--{named[0].replace('_', '-')} goes with --sign PUB:PRIV")
        return None
    public, separator, private = sign.partition(":")
    if not separator or not public or not private:
        # There may be a PIN in it.
        shown = "" if "pin-value" in sign else f" {sign}"
        raise UsageError(f"--sign{shown}: must be PUBLIC.pem:PRIVATE.pem")
    if f"{public}:".lower().startswith(("pkcs11:", "handle:")):
        raise UsageError("--sign: the public key's PEM file comes first: PUBLIC.pem:URI")
    # Only here: cryptography takes long to import.
    from mystfuse.trust.signature import PublicKey

    with naming_wrong_file(public, "--sign", "a PEM public key"):
        public_key = PublicKey.from_pem(read_small_file(public, "--sign"), public)
    return load_private_key(private, "--sign", given, public_key)


def load_private_key(
    private: str, option: str, given: Mapping[str, Any], public: PublicKey | None = None
) -> SigningKey:
    """The private key that signs; hardens the process.

    Its passphrase or PIN is that of the options, or of the URI; else it is asked for on a terminal, where the key wants
    one.

    Args:
        private: a PEM file, ``-`` being stdin, or a URI.
        option: what named it, for messages.
        given: ``passphrase_options`` by the names of their parameters.
        public: the public key that it must have; None: any.

    Raises:
        UsageError: it is no such key, or reading a file failed.
        WrongKey: its passphrase is missing or wrong.
        MystfuseError: its token cannot be used.
    """
    from mystfuse.trust.key_uri import KeyUri

    if all(given.get(name) is not None for name in PASSPHRASE_OPTIONS):
        raise UsageError("--sign-passphrase-file and --sign-passphrase-command exclude each other")
    uri = KeyUri.parse(private)
    if uri is not None:
        from mystfuse.trust.openssl_key import TokenKey

        harden_process()
        return TokenKey.of(uri, _pin(uri, given)).signing_key(public)
    if private == given.get("sign_passphrase_file") == "-":
        raise UsageError("a private key and its passphrase cannot both come from stdin")
    with naming_wrong_file(private, option, "a PEM private key"):
        key = _load_pem(private, option, given, public)
    if public is not None and not key.public.is_same_as(public):
        raise UsageError(f"{public.name} is not the public key of {private}")
    return key


def _load_pem(private: str, option: str, given: Mapping[str, Any], public: PublicKey | None) -> SigningKey:
    """The private key in a PEM file, or in the TPM that the file is for; raises as ``load_private_key``."""
    from mystfuse.trust.signature import KeyIsEncrypted, SigningKey

    pem = read_secret(private, option, warns=False)
    try:
        if (token := _tss2_key(private, pem, given)) is not None:
            return token.signing_key(public)
        try:
            key = SigningKey.from_pem(pem.view, private)
        except KeyIsEncrypted:
            passphrase = _given_passphrase(private, given)
            if passphrase is None and has_terminal():
                passphrase = ask_passphrase(f"Passphrase for {private}: ")
            if passphrase is None:
                raise
            try:
                if not len(passphrase):
                    raise WrongKey(f"{private}: its passphrase is empty") from None
                key = SigningKey.from_pem(pem.view, private, passphrase.view)
            finally:
                passphrase.wipe()
        else:
            # Not earlier: it may be the public key, in the wrong place.
            with suppress(OSError):
                warn_if_others_read(private, os.stat(private).st_mode)
            if any(given.get(name) is not None for name in PASSPHRASE_OPTIONS):
                raise UsageError(f"{private}: a passphrase is given, but the private key is not encrypted")
    finally:
        pem.wipe()
    return key


def _tss2_key(path: str, pem: Secret, given: Mapping[str, Any]) -> TokenKey | None:
    """The key in a TPM that a file is for; None if it is another file."""
    from mystfuse.trust.openssl_key import TokenKey, Tss2Key

    found = Tss2Key.parse(pem.view)
    if found is None:
        return None
    if path == "-":
        raise UsageError("a TPM's key cannot come from stdin: name its file")
    pin = _given_passphrase(path, given)
    if pin is None and found.wants_passphrase and has_terminal():
        pin = ask_passphrase(f"Passphrase for {path}: ")
    return TokenKey(path, "tpm2", pin)


def _pin(uri: KeyUri, given: Mapping[str, Any]) -> Secret | None:
    """The PIN for a URI: of the options, of the URI, or typed. None if it is used without one."""
    pin = _given_passphrase(uri.text, given)
    if pin is not None:
        return pin
    if uri.pin is not None:
        if uri.pin:
            warn("pin-value shows the PIN to everybody who can list processes: use pin-source= in its place")
        return Secret.copy_of(uri.pin)
    if uri.pin_file is not None:
        return read_passphrase(uri.pin_file, "", option="pin-source")
    if uri.pin_command is not None:
        return run_for_passphrase(uri.pin_command, "pin-source")
    if not (uri.is_pkcs11 or uri.wants_passphrase):
        return None
    if has_terminal():
        return ask_passphrase(f"PIN for {uri.text}: " if uri.is_pkcs11 else f"Passphrase for {uri.text}: ")
    raise WrongKey(
        f"{uri.text}: its PIN is needed: give --sign-passphrase-file, or pin-source= in the URI"
        f"{' (pin-value= if it has none)' if uri.is_pkcs11 else ''}"
    )


def _given_passphrase(name: str, given: Mapping[str, Any]) -> Secret | None:
    """The passphrase that the options name; None if they name none."""
    file, command = (given.get(option) for option in PASSPHRASE_OPTIONS)
    if command is not None:
        return run_for_passphrase(command, "--sign-passphrase-command")
    if file is not None:
        return read_passphrase(file, f"Passphrase for {name}: ", option="--sign-passphrase-file")
    return None
