"""``mystfuse completion``: the scripts that complete its command lines, printed or put where shells look."""

from __future__ import annotations

from functools import partial

import click

from mystfuse.cli.completion import SHELLS, script
from mystfuse.cli.text import say, warn


@click.group("completion", short_help="Have bash, zsh or fish complete command lines.")
def command() -> None:
    """Have a shell complete the command lines of mystfuse: commands, options and their values, files, mountpoints, and
    paths in images.

    What is in an image is read from it, verified, as the command itself would, and only if that needs no passphrase.
    """


def _print(shell: str) -> None:
    click.echo(script(shell), nl=False)


for _shell in SHELLS:
    command.command(_shell, short_help=f"Print the script for {_shell}.", help=f"Print the script for {_shell}.")(
        partial(_print, _shell)
    )


@command.command("install", short_help="Put the scripts, and the manual pages, where they are looked for.")
@click.option("--uninstall", is_flag=True, help="Remove them again.")
@click.argument("shells", metavar="[SHELL]...", nargs=-1, type=click.Choice(SHELLS))
def install(uninstall: bool, shells: tuple[str, ...]) -> None:
    """Put the script for each SHELL (default: those that are on this machine) where the shell looks for it, and the
    manual pages where man does: in the home directory, or, as root, for everybody on this machine.

    Says what it writes, and what else there is to do. Files that are not of mystfuse's making stay as they are.
    """
    from mystfuse.cli import completion_install

    done = completion_install.uninstall(shells) if uninstall else completion_install.install(shells)
    for line in done.lines:
        say(line)
    for line in done.advice:
        warn(line)
