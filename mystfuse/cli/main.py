"""The ``mystfuse`` command: finds the subcommand, and turns every error into one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mystfuse import __version__
from mystfuse.cli.ending import failure_status
from mystfuse.cli.examples import EXAMPLES, show_examples
from mystfuse.cli.text import complain, discard_stdout, leave
from mystfuse.cli.usage import describe_usage_error, did_you_mean
from mystfuse.errors import ExitStatus, MystfuseError, UsageError, explain
from mystfuse.system.imports import importing

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = (
    "mount", "umount", "status", "commit", "exec", "package", "run", "mkext2", "sign", "info", "fssig", "verify",
    "ls", "cat", "extract", "tar", "oci", "push", "cache", "diff", "trace", "keys", "completion", "help",
)  # fmt: skip
ALIASES = {"exec-sgx": "exec", "exec-linux": "exec", "package-sgx": "package"}
"""The commands' names in the original's documentation."""


_OTHERS_NAMES = {
    "unmount": "umount", "inspect": "info", "describe": "info", "dump": "info", "list": "ls", "check": "verify",
    "fsck": "verify", "compare": "diff", "changes": "diff",
    "create": "mkext2", "format": "mkext2", "mkfs": "mkext2", "open": "mount", "close": "umount", "export": "extract",
    "prefetch": "cache prefetch", "upload": "push", "publish": "push",
    "fingerprint": "keys fingerprint", "key": "keys", "version": "--version",
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
        show_examples(command, EXAMPLES.get(cmd_name, ()))
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """The first word: a command, or an image or option of the short form."""
        from mystfuse.cli.completion import commands_and_files

        if not incomplete.startswith("-"):
            return commands_and_files(self, ctx, incomplete)
        mount = self.get_command(ctx, "mount")
        assert mount is not None
        context = click.Context(mount, info_name="mount", parent=ctx, resilient_parsing=True)
        found = [*click.Command.shell_complete(self, ctx, incomplete), *mount.shell_complete(context, incomplete)]
        return list({item.value: item for item in found}.values())

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # click would put an empty line in front.
            raise MystfuseError("interrupted") from error
        except click.UsageError as error:
            name = ctx.invoked_subcommand
            if error.ctx is None and name is not None and (command := self.get_command(ctx, name)) is not None:
                # click's parser, and functions that parse, do not know the command.
                error.ctx = click.Context(command, info_name=name, parent=ctx)
            raise
        except UsageError as error:
            # One about a file says where it is by itself.
            is_about_option = ctx.invoked_subcommand is not None and str(error).startswith("-")
            raise error.at(str(ctx.invoked_subcommand)) if is_about_option else error from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*COMMANDS, *ALIASES, "--help", "--version", "-h", "-V"):
            if not ctx.resilient_parsing and not args[0].startswith("-") and not _is_there(args[0]):
                _refuse_unknown(args)
            args = ["mount", *args]
        return super().parse_args(ctx, args)


def _is_there(word: str) -> bool:
    """Whether a word is a path of something, or an address."""
    return os.path.lexists(word) or "://" in word or word[:6].lower() == "file:/"


def _refuse_unknown(args: list[str]) -> None:
    """Raise UsageError if the first argument, which is no command and no file, was probably meant to be a command."""
    name, said = args[0], f"{args[0]}: neither a command nor an image that exists"
    if meant := did_you_mean(name.lower(), (*COMMANDS, *ALIASES, *_OTHERS_NAMES), _OTHERS_NAMES):
        raise click.UsageError(f"{said}{meant}")
    if len(args) == 1:
        raise click.UsageError(f"{said} (see mystfuse --help)")


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
    "7 mount failed. Of diff: 0 equal, 1 different, 2 also what is 1 elsewhere.",
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and what hashes and decrypts.",
)
def cli() -> None:
    """Mount verified EXT2 images, and make, inspect and check them."""


show_examples(cli, EXAMPLES["mystfuse"])


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    leave(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Every error is one line on stderr."""
    if wanted := os.environ.get("_MYSTFUSE_COMPLETE"):
        from mystfuse.cli.completion import answer

        return answer(cli, wanted, sys.argv[1:] if arguments is None else arguments)
    failed = failure_status(sys.argv[1:] if arguments is None else arguments)
    try:
        result: Any = cli.main(args=arguments, prog_name="mystfuse", standalone_mode=False)
        sys.stdout.flush()
        return int(result or 0)
    except MystfuseError as error:
        return complain(str(error), failed if error.exit_status is ExitStatus.FAILED else error.exit_status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return ExitStatus.USAGE
    except click.ClickException as error:
        return complain(describe_usage_error(error), ExitStatus.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return complain("interrupted", failed)
    except (BrokenPipeError, SystemExit):
        # The reader of our output has closed the pipe (| head); click exits for that by itself.
        discard_stdout()
        return failed
    except Exception as error:
        if isinstance(error, OSError):
            # The error may have come from writing to stdout.
            discard_stdout()
        message = explain(error)
        if message is not None:
            return complain(message, failed)
        if os.environ.get("MYSTFUSE_DEBUG"):
            traceback.print_exc()
        return complain(
            f"internal error: {type(error).__name__}: {error} (MYSTFUSE_DEBUG=1 shows where; please report it)",
            failed,
        )
