"""The argument of ``-o``: mount options under the names of the long options, and those that mount(8) passes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.types import StringParamType

from mystfuse.cli.key_options import parse_kdf_limit
from mystfuse.cli.options import PART, completion, parse_id, parse_seconds, parse_size
from mystfuse.cli.usage import did_you_mean
from mystfuse.cli.verity_options import TREE_PARAMETERS
from mystfuse.errors import MountError, UsageError
from mystfuse.fuse.mount_options import OnCorruption

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_FLAGS = frozenset(
    {
        "nonempty", "suid", "dev", "noexec", "noxattr", "noacl", "nocontrol", "nofastpath", "nohandles",
        "default_permissions",
    }
)  # fmt: skip
_IGNORED = frozenset({"rw", "noatime", "nosuid", "nodev", "exec", "async"})
_IGNORED_VALUES = frozenset({"fsname", "subtype"})
"""mount.fuse3 honours them where it mounts; where we mount, the mount table shows the image."""
_LONG = frozenset({"allow_other", "insecure", "map_root", "foreground", "read_only", "no_superblock"})
_VALUES: dict[str, Callable[[str], Any]] = {
    "uid": parse_id,
    "gid": parse_id,
    "on_corruption": OnCorruption,
    "io_timeout": parse_seconds,
    "idle_timeout": parse_seconds,
    "log_file": Path,
    "key_file": str,
    "keyfile": str,
    "passphrase_file": str,
    "kdf_limit": parse_kdf_limit,
    "hash_offset": parse_size,
    "hash_device": str,
    **dict.fromkeys(TREE_PARAMETERS, str),
    "overlay_limit": parse_size,
    "overlay_store": str,
    "ready_fd": int,
    "cache": str,
    "cache_size": parse_size,
    "prefetch": str,
    "ca_certificates": str,
    "client_certificate": str,
}
_OTHER_NAMES = {"keyfile": "key_file"}
"""As in crypttab(5), and as users of mount(8) spell it."""
_LISTS = {"roothash": "roothashes", "pubkey": "pubkeys", "mirror": "mirrors"}
_CHOICES = {"ro": ("read_only", True), "trust_self": ("trust_self", True), "no_trust_self": ("trust_self", False)}
OPTION_NAMES = frozenset({*_FLAGS, *_IGNORED, *_IGNORED_VALUES, *_LONG, *_VALUES, *_LISTS, *_CHOICES})
"""The options of -o."""


class MountOptions(StringParamType):
    """A list of mount options."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """The options that are not in the list yet, or the values of the last one, as the long option has them."""
        *before, last = re.split(r"(?<!\\),", incomplete)
        name, equals, value = last.partition("=")
        start = incomplete.removesuffix(value if equals else last)
        if equals:
            long = "--" + _OTHER_NAMES.get(name, name).replace("_", "-")
            found = [of for of in ctx.command.params if long in of.opts and name in (*_VALUES, *_LISTS)]
            values = found[0].shell_complete(ctx, value) if found else []
            return [
                completion(start + item.value, item.type) if item.type in ("plain", PART) else item for item in values
            ]
        given = {option.partition("=")[0] for option in before} - _LISTS.keys()
        # What mount(8) adds, and what only programs give.
        names = OPTION_NAMES - _IGNORED_VALUES - _OTHER_NAMES.keys() - {"ready_fd"} - given
        return [
            completion(f"{start}{name}=", PART) if name in (*_VALUES, *_LISTS) else completion(start + name)
            for name in sorted(names)
            if name.startswith(last)
        ]


def parse_mount_options(text: str, given: dict[str, Any]) -> frozenset[str]:
    """Put the options of -o into ``given``, under the long options' names; returns the flags that have no long option.

    A comma inside a value is written ``\\,``.

    Raises:
        UsageError: an unknown option, or a wrong value.
        MountError: ``remount``, as mount(8) passes it on.
    """
    flags: set[str] = set()
    for part in re.split(r"(?<!\\),", text):
        name, equals, value = part.replace("\\,", ",").partition("=")
        if not name and not equals:
            continue
        if equals and not value and name in (*_LISTS, *_VALUES):
            raise UsageError(f"-o {name}=: it is empty (a variable that is not set?)")
        if name in _LISTS and equals:
            given[_LISTS[name]] = (*given.get(_LISTS[name], ()), value)
        elif name in _VALUES and equals:
            try:
                given[_OTHER_NAMES.get(name, name)] = _VALUES[name](value)
            except click.BadParameter as error:
                raise UsageError(f"-o {part}: {error.message}") from error
            except ValueError as error:
                raise UsageError(f"-o {part}: not a value that it can have") from error
        elif name in _LONG and not equals:
            given[name] = True
        elif name in _CHOICES and not equals:
            parameter, choice = _CHOICES[name]
            given[parameter] = choice
        elif name in _FLAGS and not equals:
            flags.add(name)
        elif part == "remount":
            raise MountError("remount is not supported: unmount it and mount it again")
        elif name not in (_IGNORED_VALUES if equals else _IGNORED):
            meant = "" if name in OPTION_NAMES else did_you_mean(name, OPTION_NAMES)
            raise UsageError(f"-o {part}: no such mount option, or its value is missing or not wanted{meant}")
    return frozenset(flags)
