"""The ``mystfuse`` command: finds the subcommand, and turns every error into one line and an exit status."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from mystfuse import __version__
from mystfuse.cli.text import complain, discard_stdout, leave
from mystfuse.errors import ExitStatus, MystfuseError, explain
from mystfuse.system.imports import importing

COMMANDS = (
    "mount", "umount", "status", "commit", "exec", "package", "run", "mkext2", "fssig", "verify",
    "ls", "cat", "extract", "tar",
)  # fmt: skip
ALIASES = {"exec-sgx": "exec", "exec-linux": "exec", "package-sgx": "package"}
"""The commands' names in the original's documentation."""


_OTHERS_NAMES = {
    "unmount": "umount", "info": "fssig", "list": "ls", "dump": "fssig", "check": "verify", "fsck": "verify",
    "create": "mkext2", "format": "mkext2", "mkfs": "mkext2", "open": "mount", "close": "umount", "export": "extract",
    "help": "--help", "version": "--version",
}  # fmt: skip
"""The names that other programs give such commands."""


class _Commands(click.Group):
    """Subcommands, each imported when it is used. A command line that begins with none is ``mount``, the main job."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        with importing():
            command: click.Command = importlib.import_module(f"mystfuse.cli.commands.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # click would put an empty line in front.
            raise MystfuseError("interrupted") from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*COMMANDS, *ALIASES, "--help", "--version", "-h"):
            if not ctx.resilient_parsing and not args[0].startswith("-") and not os.path.lexists(args[0]):
                _refuse_unknown(args)
            args = ["mount", *args]
        return super().parse_args(ctx, args)


def _refuse_unknown(args: list[str]) -> None:
    """Raise UsageError if the first argument, which is no command and no file, was probably meant to be a command."""
    name = args[0]
    alike = difflib.get_close_matches(name.lower(), (*COMMANDS, *ALIASES, *_OTHERS_NAMES), n=1, cutoff=0.7)
    if alike:
        meant = _OTHERS_NAMES.get(alike[0], alike[0])
        raise click.UsageError(f"{name}: neither a command nor an image that exists; is {meant} meant?")
    if len(args) == 1:
        raise click.UsageError(f"{name}: neither a command nor an image that exists; see mystfuse --help")


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from mystfuse import kernels

        click.echo(f"mystfuse, version {__version__}\nkernel: {kernels.name()}")
        ctx.exit()


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
    epilog="mystfuse IMAGE MOUNTPOINT is short for mystfuse mount IMAGE MOUNTPOINT. Exit status: 0 done, 1 failed, "
    "2 usage, 3 not trusted, 4 integrity check failed, 5 wrong or missing key, 6 not an image that can be read, "
    "7 mount failed.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and what hashes and decrypts.",
)
def cli() -> None:
    """Mount verified EXT2 images, and make, inspect and check them."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    leave(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Every error is one line on stderr."""
    try:
        result: Any = cli.main(args=arguments, prog_name="mystfuse", standalone_mode=False)
        sys.stdout.flush()
        return int(result or 0)
    except MystfuseError as error:
        return complain(str(error), error.exit_status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return ExitStatus.USAGE
    except click.ClickException as error:
        return complain(error.format_message(), ExitStatus.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return complain("interrupted", ExitStatus.FAILED)
    except BrokenPipeError:
        # The reader of our output has closed the pipe (| head).
        discard_stdout()
        return ExitStatus.FAILED
    except Exception as error:
        if isinstance(error, OSError):
            # The error may have come from writing to stdout.
            discard_stdout()
        message = explain(error)
        if message is not None:
            return complain(message, ExitStatus.FAILED)
        if os.environ.get("MYSTFUSE_DEBUG"):
            traceback.print_exc()
        return complain(
            f"internal error: {type(error).__name__}: {error} (MYSTFUSE_DEBUG=1 shows where; please report it)",
            ExitStatus.FAILED,
        )
