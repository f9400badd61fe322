"""``mystfuse run``: run a package, which is also what executing one does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import click

from mystfuse.cli.container import Container, ContainerMount, run_container
from mystfuse.cli.key_options import key_options
from mystfuse.cli.options import PEM, FileOrText, GivenPath, MountSource, confinement_options
from mystfuse.cli.remote_options import remote_options
from mystfuse.cli.text import warn
from mystfuse.cli.trust_options import may_trust_self, read_keys, trust_self_option
from mystfuse.cli.wrong_files import other_kind
from mystfuse.errors import FormatError, MystfuseError, NotTrusted, UsageError
from mystfuse.formats.configuration import Configuration, MountType
from mystfuse.formats.package import MAX_PACKAGE_SIZE
from mystfuse.system.configured_file import open_configured_file
from mystfuse.trust.package import Package, open_package
from mystfuse.trust.trust_directory import read_trust_directory

SIGNERS_DIRECTORY = Path("/etc/mystfuse/signers.d")
ROOTFS_VARIABLES = ("MYST_ROOTFS", "MYST_ROOTFS_PATH")
"""As in the original's documentation, and as in its code."""
_KEYS = frozenset({"key_file", "passphrase_file", "kdf_limit"})


class _PackageFirst(click.Command):
    """Takes options before PACKAGE and after it, up to the first argument or ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before, rest = self._split(ctx, args)
        after, arguments = self._split(ctx, rest[1:])
        return super().parse_args(ctx, [*before, *after, "--", *rest[:1], *arguments])

    def _split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """The options at the start of ``args``, and the rest."""
        with_value = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for name in parameter.opts
        }
        index = 0
        while index < len(args) and args[index].startswith("-") and args[index] != "-":
            word = args[index]
            if word == "--":
                return args[:index], args[index + 1 :]
            index += 2 if word in with_value else 1
            if index > len(args) and not ctx.resilient_parsing:
                raise click.BadOptionUsage(word, f"Option {word!r} requires an argument.", ctx)
        return args[:index], args[index:]


@click.command(
    "run",
    cls=_PackageFirst,
    short_help="Run a package.",
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "--rootfs", type=FileOrText(), metavar="IMAGE", help="The root file system (default: what MYST_ROOTFS names)."
)
@click.option(
    "--mount",
    "mounts",
    type=MountSource(),
    multiple=True,
    metavar="SOURCE=TARGET",
    help="The file, directory or image (...,keyfile=...) for a mount that the package declares (repeatable).",
)
@click.option(
    "--signer",
    "signers",
    type=FileOrText(PEM),
    multiple=True,
    metavar="PEM",
    help="Run it only if signed by this key (repeatable; default: those in /etc/mystfuse/signers.d).",
)
@trust_self_option
@key_options
@remote_options
@confinement_options
@click.argument("package", type=GivenPath())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    rootfs: str | None,
    mounts: tuple[str, ...],
    signers: tuple[str, ...],
    trust_self: bool | None,
    as_root: bool,
    privileged: bool,
    pids_limit: int | None,
    package: str,
    arguments: tuple[str, ...],
    **given: Any,
) -> int:
    """Run what PACKAGE says, from an image that it trusts. Executing the package does the same.

    Options come before PACKAGE or right after it, and end at the first argument of the program, or at --. The program
    sees the image as its root, and of the host only the network and what the package declares. What it writes is
    forgotten when it ends.
    """
    opened = _open(package, signers)
    configuration = opened.contents.configuration
    if arguments and not configuration.takes_host_parameters:
        raise UsageError(
            f"{arguments[0]}: {package} takes no arguments, it has its own (HostApplicationParameters is false)"
        )
    image = rootfs or next((os.environ[name] for name in ROOTFS_VARIABLES if os.environ.get(name)), None)
    if image is None:
        raise UsageError(f"{package}: no root file system: give --rootfs IMAGE, or set {ROOTFS_VARIABLES[0]}")
    if not opened.is_pinned and not may_trust_self(trust_self):
        raise NotTrusted(
            f"{package}: not trusted: nobody says who may sign packages: give --signer PEM, or put a key into "
            f"{SIGNERS_DIRECTORY}"
        )
    if not opened.is_pinned:
        warn(
            f"{package} is vouched for by nobody but itself: give --signer PEM, or put who may sign packages into "
            f"{SIGNERS_DIRECTORY}"
        )
    if configuration.is_debug:
        warn(f"{package} has Debug set: it loads any image")
    return run_container(
        Container(
            image=image,
            options={**given, "policy": opened.policy(), "overlay_limit": configuration.memory_size},
            program=configuration.application_path,
            arguments=arguments if configuration.takes_host_parameters else configuration.application_parameters,
            environment=_environment(configuration, os.environ),
            directory=configuration.directory,
            mounts=_mounts(opened, mounts),
            hostname=configuration.hostname,
            memory_limit=configuration.memory_size,
            process_limit=pids_limit,
            is_privileged=privileged,
            as_root=as_root,
        )
    )


def _open(path: str, signers: Sequence[str]) -> Package:
    """Read a package, once, and check that it may be run."""
    if signers:
        pinned = [key for name in signers for key in read_keys(name, "--signer")]
    else:
        _, pinned = read_trust_directory(SIGNERS_DIRECTORY, takes_root_hashes=False)
    try:
        with BufferedReader(open_configured_file(path, "package")) as file:
            # A file that is too large is no package: its parser says so.
            data = file.read(MAX_PACKAGE_SIZE + 1)
        try:
            return open_package(data, pinned)
        except MystfuseError as error:
            raise error.at(str(path)) from error
    except (UsageError, FormatError) as error:
        kind = other_kind(path, frozenset({"package", "unknown"}))
        if kind is None:
            raise
        runs = f": mystfuse exec {path} PROGRAM runs a program from it" if kind.name == "image" else ""
        raise FormatError(f"{path}: {kind.title}, not a package{runs}") from error


def _environment(configuration: Configuration, host: Mapping[str, str]) -> dict[str, str]:
    """The variables that the package sets, and those that it lets through. The former count."""
    passed = {name: host[name] for name in configuration.host_environment if name in host}
    return {**passed, **dict(configuration.environment)}


def _mounts(package: Package, texts: Sequence[str]) -> list[ContainerMount]:
    """The mounts that the package declares, from where the command line says.

    Raises:
        UsageError: a source is missing, of another type, or for a target that is not declared.
    """
    given: dict[str, str] = {}
    for text in texts:
        target = ContainerMount.parse(text).target
        if target in given:
            raise UsageError(f"--mount {text}: {target} is given twice")
        given[target] = text
    mounts: list[ContainerMount] = []
    memory = package.contents.configuration.memory_size
    for entry in package.contents.configuration.mounts:
        if entry.type is MountType.RAMFS:
            mounts.append(ContainerMount(None, entry.target, is_read_only=entry.is_read_only))
            continue
        given_text = given.pop(entry.target, None)
        is_image = entry.type is MountType.EXT2
        what = "an image" if is_image else "a file or directory"
        if given_text is None:
            raise UsageError(f"{entry.target}: the package wants {what} there: give --mount SOURCE={entry.target}")
        # We open a declared image as an image, whatever its contents.
        found = ContainerMount.parse(given_text, is_image or None)
        if found.is_image != is_image or (is_image and os.path.isdir(found.source or "")):
            raise UsageError(f"--mount {given_text}: the package wants {what} there")
        if found.is_read_only or any(value != () for name, value in found.options.items() if name not in _KEYS):
            raise UsageError(f"--mount {given_text}: only a key can be given here, the package says the rest")
        options: dict[str, Any] = {}
        if is_image:
            options = {
                **{name: value for name, value in found.options.items() if name in _KEYS},
                "policy": package.policy(entry),
                "overlay_limit": memory,
                "read_only": entry.is_read_only,
            }
        mounts.append(ContainerMount(found.source, entry.target, options, is_image, entry.is_read_only))
    if given:
        declared = ", ".join(entry.target for entry in package.contents.configuration.mounts) or "none"
        raise UsageError(
            f"--mount {next(iter(given))}: not a target that the package declares (it declares {declared})"
        )
    return mounts
