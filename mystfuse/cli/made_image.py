"""What a command says about the image that it has made: file, size, root hash, signer, and how to mount it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click

from mystfuse.build.made_image import MadeImage
from mystfuse.cli.options import option_group
from mystfuse.cli.text import say
from mystfuse.errors import UsageError
from mystfuse.system.units import describe_bytes

summary_options = option_group(
    click.option("-q", "--quiet", is_flag=True, help="Do not say what was made."),
    click.option("--json", "as_json", is_flag=True, help="Say what was made as a JSON object."),
)


def check_summary_options(quiet: bool, as_json: bool) -> None:
    """Raise UsageError if both options are given."""
    if quiet and as_json:
        raise UsageError("--quiet and --json exclude each other")


def tell(
    made: MadeImage,
    given: Mapping[str, Any],
    quiet: bool,
    as_json: bool,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Say what was made, on stdout.

    Args:
        given: ``new_image_options`` by the names of their parameters.
        more: further members of the JSON object.
    """
    if quiet:
        return
    if as_json:
        click.echo(json.dumps({**made.document(), "mount_command": mount_command(made, given), **more}, indent=2))
        return
    for line in describe(made, given):
        say(line)


def describe(made: MadeImage, given: Mapping[str, Any]) -> tuple[str, str]:
    """Two lines for people: what was made, and how to mount it; arguments as for ``tell``."""
    filesystem = made.filesystem
    signed = f"signed by {given['sign'].partition(':')[0]}" if made.fssig.is_signed else "unsigned"
    return (
        f"made {made.path}: {describe_bytes(made.size)}, {count(made.files, 'file')}, "
        f"{describe_bytes(made.free_bytes)} and {count(filesystem.s_free_inodes_count, 'inode')} free, "
        f"root hash {made.fssig.root_hash.hex()}, "
        f"{'encrypted, ' if made.luks_version else ''}{signed}",
        f"mount it: {' '.join(map(_quote, mount_command(made, given)))}",
    )


def mount_command(made: MadeImage, given: Mapping[str, Any]) -> list[str]:
    """The words of a command that mounts the image, and no other, on MOUNTPOINT; arguments as for ``tell``."""
    words = ["mystfuse", _not_an_option(str(made.path)), "MOUNTPOINT"]
    if made.fssig.is_signed:
        words += ["--pubkey", _not_an_option(given["sign"].partition(":")[0])]
    else:
        words += ["--roothash", made.fssig.root_hash.hex()]
    if made.luks_version is not None and given["encrypt"] != "-":
        words += ["--key-file", given["encrypt"]]
    elif made.luks_version is not None:
        # It was read from stdin. Without an option, mount asks for the passphrase.
        file = given["passphrase_file"]
        if given["passphrase_command"] is not None:
            words += ["--passphrase-command", given["passphrase_command"]]
        elif file is None and given["passphrase"] is None:
            words += ["--key-file", "-"]
        elif file is not None and file != "-":
            words += ["--passphrase-file", file]
    return words


def _not_an_option(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path


def _quote(word: str) -> str:
    """A word for a shell, on one line."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = re.sub(r"['\\]", r"\\\g<0>", word).encode(errors="surrogateescape")
    return "$'" + re.sub(rb"[^ -~]", lambda found: b"\\x%02x" % found[0][0], escaped).decode() + "'"


def count(number: int, what: str) -> str:
    """A number of things: ``1 file``, ``2 files``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
