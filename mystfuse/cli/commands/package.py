"""``mystfuse package``: make a package, a signed configuration that can be executed."""

from __future__ import annotations

import os
import string
from pathlib import Path, PurePosixPath
from typing import Any

import click

from mystfuse.cli.ending import end_like_interrupt
from mystfuse.cli.options import PEM, FileOrText, GivenPath, PemPath
from mystfuse.cli.signing_options import load_private_key, passphrase_options
from mystfuse.cli.text import say
from mystfuse.cli.trust_options import read_keys, read_root_hash
from mystfuse.cli.wrong_files import naming_wrong_file
from mystfuse.errors import MystfuseError, UsageError
from mystfuse.formats.configuration import WITHOUT_MEANING, Configuration, parse_json_object
from mystfuse.formats.package import ROOT_HASH_SIZE, PackageContents
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.system.configured_file import read_configured_file
from mystfuse.system.output_paths import make_directories
from mystfuse.trust.package import sign_package
from mystfuse.trust.signature import PublicKey
from mystfuse.trust.sources import read_small_file

DEFAULT_DIRECTORY = Path("myst/bin")
_OF_ENCLAVES = frozenset({"ProductID", "SecurityVersion", *WITHOUT_MEANING})
_MAX_CONFIGURATION = 1 << 20
"""Bytes."""


@click.command("package", short_help="Make a signed package that runs a program from an image.")
@click.option(
    "--roothash",
    "roothashes",
    type=FileOrText(),
    multiple=True,
    metavar="FILE|HEX",
    help="The package trusts this root hash (repeatable).",
)
@click.option(
    "--pubkey",
    "pubkeys",
    type=FileOrText(PEM),
    multiple=True,
    metavar="PEM",
    help="It trusts images signed by this key (repeatable).",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=GivenPath(path_type=Path),
    metavar="OUT",
    help="Where to write it (default: myst/bin/NAME, after ApplicationPath).",
)
@passphrase_options
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@click.option("--verbose", is_flag=True, help="Say what the package is, and which settings have no meaning here.")
@click.argument("private", metavar="PRIVATE.pem", type=PemPath())
@click.argument("config", metavar="CONFIG.json", type=GivenPath(path_type=Path))
def command(
    roothashes: tuple[str, ...],
    pubkeys: tuple[str, ...],
    out: Path | None,
    force: bool,
    verbose: bool,
    private: str,
    config: Path,
    **given: Any,
) -> None:
    """Make an executable file from the settings in CONFIG.json and whom it trusts, signed with PRIVATE.pem,
    or with the key in a token or TPM that a URI in its place names (as for mkext2 --sign).

    Executed, it runs its program from the image that MYST_ROOTFS or --rootfs names, if that is one it trusts.
    """
    end_like_interrupt()
    settings = _read_settings(config)
    try:
        configuration = Configuration.of(_with_contents(settings, config.parent))
    except UsageError as error:
        raise UsageError(f"{config}: {error}") from error
    contents = PackageContents(
        configuration,
        tuple(_root_hash(value, "--roothash") for value in roothashes),
        tuple(key.pem() for path in pubkeys for key in read_keys(path)),
    )
    if not (roothashes or pubkeys or configuration.is_debug):
        raise UsageError(
            "the package would trust no image: give --roothash or --pubkey (or set Debug, which loads anything)"
        )
    key = load_private_key(private, "signing key", given)
    packed = sign_package(contents, key)
    if out is None:
        out = DEFAULT_DIRECTORY / PurePosixPath(configuration.application_path).name
        try:
            make_directories(out.parent)
        except OSError as error:
            raise MystfuseError(f"{out.parent}: cannot be made: {error.strerror}") from error
    with AtomicFile(out, force, mode=0o777) as file:
        file.write(packed)
        file.commit()
    if verbose:
        for name in sorted(_OF_ENCLAVES & settings.keys()):
            say(f"{name}={settings[name]}: accepted, but has no meaning outside an enclave")
        say(
            f"{out}: runs {configuration.application_path}, trusts {len(roothashes)} root hashes and {len(pubkeys)} "
            f"public keys; signer {key.signer.hex()}"
        )


def _read_settings(config: Path) -> dict[str, Any]:
    with naming_wrong_file(str(config), "configuration", "settings in JSON"):
        data = read_configured_file(str(config), "configuration", _MAX_CONFIGURATION)
        try:
            return parse_json_object(data)
        except ValueError as error:
            raise UsageError(f"{config}: not JSON as it should be: {error}") from error


def _with_contents(settings: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The settings with the contents of the files that mounts name as PublicKey and Roothash (in Mystikos'
    ``config.c``: RootHash), relative to ``directory``. Values of the wrong type are left as they are: parsing refuses
    them."""
    mounts = settings.get("Mount")
    if not isinstance(mounts, list):
        return settings
    filled: list[Any] = []
    for index, entry in enumerate(mounts):
        if isinstance(entry, dict):
            entry = dict(entry)
            name = f"Mount[{index}]"
            if "RootHash" in entry:
                if "Roothash" in entry:
                    raise UsageError(f"{name}: Roothash and RootHash are the same; leave one of them out")
                entry["Roothash"] = entry.pop("RootHash")
            if _can_be_named(entry.get("Roothash")):
                value = entry["Roothash"]
                is_digits = len(value) == 2 * ROOT_HASH_SIZE and not set(value) - set(string.hexdigits)
                entry["Roothash"] = _root_hash(value if is_digits else str(directory / value), f"{name}.Roothash")
            if _can_be_named(entry.get("PublicKey")):
                entry["PublicKey"] = _public_key(str(directory / entry["PublicKey"]), f"{name}.PublicKey")
        filled.append(entry)
    return {**settings, "Mount": filled}


def _can_be_named(value: object) -> bool:
    """Whether it is possible as a file name."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _root_hash(value: str, what: str) -> str:
    root_hash = read_root_hash(value, what)
    if len(root_hash) != ROOT_HASH_SIZE:
        raise UsageError(f"{what} {value}: a sha512 root hash, which no image with a signature block can have")
    return root_hash.hex()


def _public_key(path: str, what: str) -> str:
    with naming_wrong_file(path, what, "a PEM public key"):
        return PublicKey.from_pem(read_small_file(path, what), path).pem()
