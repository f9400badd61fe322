"""``mystfuse exec``: run a program from an image, with the image as its root."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from mystfuse.cli.container import Container, ContainerMount, run_container
from mystfuse.cli.given_image import image_options
from mystfuse.cli.kept_changes_options import are_given, kept_changes_options
from mystfuse.cli.options import ImagePath, MountSource, VariableName, confinement_options, overlay_options
from mystfuse.cli.path_in_image import ProgramArgument, ProgramInImage
from mystfuse.container.after_program import Aftermath
from mystfuse.container.program import DEFAULT_PATH
from mystfuse.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_PASSED_ON = ("TERM", "LANG", "TZ")


class _ImageFirst(click.Command):
    """Options come before IMAGE alone; what follows are the program's."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        return [] if ctx.params.get("image") else super().shell_complete(ctx, incomplete)


@click.command(
    "exec",
    cls=_ImageFirst,
    short_help="Run a program from an image, with the image as its root.",
    context_settings={"allow_interspersed_args": False},
)
@image_options
@click.option(
    "--mount",
    "mounts",
    type=MountSource(),
    multiple=True,
    metavar="SOURCE=TARGET",
    help="Show a file, a directory (SOURCE=TARGET,ro) or another image (...,keyfile=...) at TARGET (repeatable).",
)
@click.option(
    "--env",
    "variables",
    type=VariableName(),
    multiple=True,
    metavar="K[=V]",
    help="Set a variable, or pass it on (repeatable).",
)
@click.option("--cwd", metavar="DIR", help="Where the program starts (default: /).")
@click.option("--no-network", is_flag=True, help="Give it no network.")
@confinement_options
@overlay_options
@kept_changes_options
@click.argument("image", type=ImagePath())
@click.argument("program", type=ProgramInImage(), required=False)
@click.argument("arguments", nargs=-1, type=ProgramArgument())
def command(
    mounts: tuple[str, ...],
    variables: tuple[str, ...],
    cwd: str | None,
    no_network: bool,
    as_root: bool,
    privileged: bool,
    pids_limit: int | None,
    image: str,
    program: str | None,
    arguments: tuple[str, ...],
    **given: Any,
) -> int:
    """Run PROGRAM, a file in IMAGE, with IMAGE as its root directory. What it writes is forgotten when it ends, unless
    --commit keeps it.

    It has processes, mounts and a host name of its own (bubblewrap), /proc, a minimal /dev and an empty /tmp; the
    network is the host's, and /etc/resolv.conf if the image has none. It may do what containers may by default
    (--privileged: what you may). As an ordinary user, it is you, and what root owns in the image is yours; with --root
    it is root, and the image's users are themselves, as apt wants it (see subuid(5)). Exits as PROGRAM does, with 128+N
    for signal N, 126 if it cannot be executed, 127 if it is not there.

    Without PROGRAM, an image that was a container's (mkext2 oci:...) runs its own, as its configuration says:
    Entrypoint and Cmd, Env, WorkingDir, and User where there are several users (--root, or as root).
    """
    if program == "--":
        # Like other programs that run one; click would end our options only before IMAGE.
        if not arguments:
            raise UsageError("exec: PROGRAM is missing behind --")
        program, *rest = arguments
        arguments = tuple(rest)
    elif program is not None and program.startswith("-"):
        raise UsageError(f"exec {image} {program}: options come before IMAGE; behind it comes PROGRAM (or -- PROGRAM)")
    if program == "":
        raise UsageError("exec: PROGRAM is empty (a variable that is not set?)")
    if cwd is not None and not PurePosixPath(cwd).is_absolute():
        raise UsageError(f"--cwd {cwd}: must be an absolute path")
    return run_container(
        Container(
            image=image,
            options=given,
            program=program,
            arguments=arguments,
            environment=make_environment(variables, as_root),
            given_variables=frozenset(text.partition("=")[0] for text in variables),
            directory=cwd,
            mounts=[ContainerMount.parse(text) for text in mounts],
            has_network=not no_network,
            process_limit=pids_limit,
            is_privileged=privileged,
            as_root=as_root,
            aftermath=_aftermath(image, given),
        )
    )


def _aftermath(image: str, given: Mapping[str, Any]) -> Aftermath | None:
    """What the options want done when the program has ended; None if nothing."""
    if not are_given(given):
        return None
    # Only here: it takes long to import.
    from mystfuse.cli.kept_changes import KeptChanges

    return KeptChanges(image, given)


def make_environment(variables: tuple[str, ...], as_root: bool) -> dict[str, str]:
    """The environment of the program: PATH, the terminal's variables, and those of ``--env``."""
    environment = {"PATH": DEFAULT_PATH, "HOME": "/root" if as_root or os.geteuid() == 0 else "/"}
    environment.update({name: os.environ[name] for name in _PASSED_ON if name in os.environ})
    for text in variables:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--env {text}: must be NAME=VALUE, or NAME")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment
