"""``mystfuse sign``: sign an image that exists, or sign it again, or make it unsigned, in place."""

from __future__ import annotations

import json
from typing import Any

import click

from mystfuse.build.sign import ImageToSign
from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.options import PEM, FileOrText, ImagePath, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.cli.reading import refuse_terminal
from mystfuse.cli.signing_options import PASSPHRASE_OPTIONS, load_signing_key, signing_options
from mystfuse.cli.text import say
from mystfuse.cli.trust_options import read_keys, read_root_hash
from mystfuse.devices.open_source import is_address, name_of
from mystfuse.devices.patience import PatientSource, open_file
from mystfuse.devices.source import Source
from mystfuse.errors import FormatError, IntegrityError, NotTrusted, UsageError
from mystfuse.formats.fssig import Fssig
from mystfuse.image.keys import Keys
from mystfuse.image.open import open_image, read_fssig
from mystfuse.image.pipeline import check_contents
from mystfuse.image.verify import find_damage
from mystfuse.mounting.daemon_logs import log_to_stderr
from mystfuse.trust.policy import TrustPolicy
from mystfuse.trust.sources import read_small_file

_ACTIONS = {"sign": "--sign", "remove": "--remove", "print_digest": "--print-digest", "attach": "--attach"}
_ONLY_WITH = {"binary": "print_digest", "pubkey": "attach"}


@click.command("sign", short_help="Sign an image in place, or make it unsigned.")
@signing_options
@click.option("--remove", is_flag=True, help="Make it unsigned.")
@click.option("--print-digest", is_flag=True, help="Print what is to be signed, in hex digits, and change nothing.")
@click.option("--binary", is_flag=True, help="With --print-digest: its 32 bytes.")
@click.option(
    "--attach",
    type=FileOrText(),
    metavar="SIGNATURE",
    help="Put in the signature in this file, if it is one by the key of --pubkey.",
)
@click.option("--pubkey", type=FileOrText(PEM), metavar="PEM", help="With --attach: the public key of who has signed.")
@click.option("--roothash", type=FileOrText(), metavar="FILE|HEX", help="Do it only if this is the image's root hash.")
@click.option("--verify", is_flag=True, help="Check every block first.")
@click.option("--quiet", is_flag=True, help="Print nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@io_timeout_option
@click.argument("image", type=ImagePath())
def command(image: str, verify: bool, quiet: bool, as_json: bool, io_timeout: float, **given: Any) -> None:
    """Sign IMAGE, plain or encrypted, where it is: one of --sign, --remove, --print-digest and --attach says how.

    Only its signature block, the last 4096 bytes, is replaced, at once or not at all; its root hash and its mounts stay
    as they are. No key of an encrypted image is needed.

    Who signs a root hash vouches for all that is in the image. So this checks first what a mount checks: that the hash
    tree is the one of this root hash, over a file system or LUKS header of its size; with --verify, every block.
    """
    end_like_interrupt()
    if is_address(image):
        raise UsageError(
            f"{name_of(image)}: is elsewhere, and sign changes an image where it is: sign it here, then push"
        )
    action = _action(given)
    if given["binary"] and as_json:
        raise UsageError("--binary and --json exclude each other")
    if given["binary"]:
        refuse_terminal("a digest in binary form")
    log_to_stderr()
    wanted = read_root_hash(given["roothash"]) if given["roothash"] is not None else None
    if action == "print_digest":
        file = open_file(image, io_timeout)
        try:
            old = new = _check(PatientSource(file, io_timeout), wanted, verify, io_timeout)
        finally:
            file.close()
    else:
        with ImageToSign(image, io_timeout) as opened:
            old = _check(PatientSource(opened.source, io_timeout), wanted, verify, io_timeout)
            new = opened.write_fssig(old, *_signature(action, old, given))
    if as_json:
        click.echo(json.dumps(_document(image, action, old, new, verify), indent=2))
    elif given["binary"]:
        click.echo(new.root_hash, nl=False)
    elif action == "print_digest":
        click.echo(new.root_hash.hex())
    elif not quiet:
        signed = f"signed by {new.signer.hex()}" if new.is_signed else "unsigned"
        say(f"{image}: root hash {new.root_hash.hex()}, {signed}")


def _action(given: dict[str, Any]) -> str:
    """The one thing to do; raises UsageError for none, several, or an option that goes with another."""
    named = [name for name in _ACTIONS if given[name]]
    if len(named) > 1:
        raise UsageError(f"{_ACTIONS[named[0]]} and {_ACTIONS[named[1]]} exclude each other")
    if not named:
        raise UsageError(
            "what is to be done? --sign PUB:PRIV signs it, --remove makes it unsigned, --print-digest prints what to "
            "sign elsewhere, --attach SIGNATURE --pubkey PEM puts that signature in"
        )
    for option, action in _ONLY_WITH.items():
        if given[option] and named != [action]:
            raise UsageError(f"--{option} goes with {_ACTIONS[action]}")
    if named == ["attach"] and given["pubkey"] is None:
        raise UsageError("--attach needs --pubkey PEM: whose signature is it?")
    for option in PASSPHRASE_OPTIONS:
        if given[option] is not None and named != ["sign"]:
            raise UsageError(f"--{option.replace('_', '-')} goes with --sign PUB:PRIV")
    return named[0]


def _check(source: Source, wanted: bytes | None, verify: bool, io_timeout: float) -> Fssig:
    """The fssig of an image that may be signed.

    Raises:
        FormatError: not an image, or not one that a mount accepts.
        NotTrusted: its root hash is not the wanted one.
        IntegrityError, ImageReadError: its hash tree is not that of its root hash, or, with ``verify``, a block is bad.
    """
    fssig = read_fssig(source)
    if wanted is not None and fssig.root_hash != wanted:
        raise NotTrusted(
            f"{source.name}: its root hash is {fssig.root_hash.hex()}, not {wanted.hex()}: nothing is done"
        )
    # It vouches for itself: who vouches for it is the caller.
    opened = open_image(source, TrustPolicy(trust_self=True))
    if opened.tree is None:
        raise FormatError(f"{source.name}: there is no hash tree to sign")
    check_contents(opened, Keys(), io_timeout, progress)
    if verify:
        with progress("verifying", opened.tree.superblock.data_size) as advance:
            count = sum(1 for _ in find_damage(source, opened.tree, fssig.root_hash, advance))
        if count:
            raise IntegrityError(
                f"{source.name}: {count} damaged range{'s' if count > 1 else ''}: nothing is done "
                "(mystfuse verify lists what is damaged)"
            )
    return fssig


def _signature(action: str, fssig: Fssig, given: dict[str, Any]) -> tuple[bytes, ...]:
    """Signer and signature for the new fssig; nothing for an unsigned one."""
    if action == "remove":
        return ()
    if action == "attach":
        return _attached(given["attach"], given["pubkey"], fssig)
    key = load_signing_key(given["sign"], given)
    assert key is not None
    return key.signer, key.sign(fssig.root_hash)


def _attached(path: str, pubkey: str, fssig: Fssig) -> tuple[bytes, bytes]:
    keys = read_keys(pubkey)
    if len(keys) > 1:
        raise UsageError(f"--pubkey {pubkey}: {len(keys)} public keys, where there must be one: who has signed?")
    signature = read_small_file(path, "--attach")
    size = (keys[0].key.key_size + 7) // 8
    if len(signature) != size:
        raise UsageError(
            f"--attach {path}: {len(signature)} bytes; a signature by this key has {size}, as openssl pkeyutl -sign "
            "writes it (not hex, not base64)"
        )
    if not keys[0].verifies(fssig.root_hash, signature):
        raise NotTrusted(
            f"--attach {path}: not a signature of root hash {fssig.root_hash.hex()} by {pubkey} (PKCS #1 v1.5, "
            "SHA-256, the root hash itself as the digest): nothing is written"
        )
    return keys[0].signer, signature


def _document(image: str, action: str, old: Fssig, new: Fssig, verify: bool) -> dict[str, Any]:
    return {
        "image": image,
        "done": {"sign": "signed", "remove": "removed", "print_digest": "nothing", "attach": "attached"}[action],
        "root_hash": new.root_hash.hex(),
        "signer": new.signer.hex() if new.is_signed else None,
        "previous_signer": old.signer.hex() if old.is_signed else None,
        "verified": "all" if verify else "tree",
    }
