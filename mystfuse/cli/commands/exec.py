"""``mystfuse exec``: run a program from an image, with the image as its root."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import click

from mystfuse.cli.container import Container, ContainerMount, run_container
from mystfuse.cli.given_image import image_options
from mystfuse.cli.options import GivenPath, confinement_options, overlay_options
from mystfuse.container.program import DEFAULT_PATH
from mystfuse.errors import UsageError

_PASSED_ON = ("TERM", "LANG", "TZ")


@click.command(
    "exec",
    short_help="Run a program from an image, with the image as its root.",
    context_settings={"allow_interspersed_args": False},
)
@image_options
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    metavar="SOURCE=TARGET",
    help="Show a file, a directory (SOURCE=TARGET,ro) or another image (...,keyfile=...) at TARGET (repeatable).",
)
@click.option("--env", "variables", multiple=True, metavar="K[=V]", help="Set a variable, or pass it on (repeatable).")
@click.option("--cwd", default="/", metavar="DIR", help="Where the program starts (default: /).")
@click.option("--no-network", is_flag=True, help="Give it no network.")
@confinement_options
@overlay_options
@click.argument("image", type=GivenPath())
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    mounts: tuple[str, ...],
    variables: tuple[str, ...],
    cwd: str,
    no_network: bool,
    privileged: bool,
    pids_limit: int | None,
    image: str,
    program: str,
    arguments: tuple[str, ...],
    **given: Any,
) -> int:
    """Run PROGRAM, a file in IMAGE, with IMAGE as its root directory. What it writes is forgotten when it ends.

    It has processes, mounts and a host name of its own (bubblewrap), /proc, a minimal /dev and an empty /tmp; the
    network is the host's, and /etc/resolv.conf if the image has none. It may do what containers may by default
    (--privileged: what you may). As an ordinary user, what root owns in the image is yours. Exits as PROGRAM does, with
    128+N for signal N, 126 if it cannot be executed, 127 if it is not there.
    """
    if program == "--":
        # Like other programs that run one; click would end our options only before IMAGE.
        if not arguments:
            raise UsageError("exec: PROGRAM is missing behind --")
        program, *rest = arguments
        arguments = tuple(rest)
    elif program.startswith("-"):
        raise UsageError(f"exec {image} {program}: options come before IMAGE; behind it comes PROGRAM (or -- PROGRAM)")
    if not program:
        raise UsageError("exec: PROGRAM is empty (a variable that is not set?)")
    if not PurePosixPath(cwd).is_absolute():
        raise UsageError(f"--cwd {cwd}: must be an absolute path")
    return run_container(
        Container(
            image=image,
            options=given,
            program=program,
            arguments=arguments,
            environment=make_environment(variables),
            directory=cwd,
            mounts=[ContainerMount.parse(text) for text in mounts],
            has_network=not no_network,
            process_limit=pids_limit,
            is_privileged=privileged,
        )
    )


def make_environment(variables: tuple[str, ...]) -> dict[str, str]:
    """The environment of the program: PATH, the terminal's variables, and those of ``--env``."""
    environment = {"PATH": DEFAULT_PATH, "HOME": "/root" if os.geteuid() == 0 else "/"}
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
