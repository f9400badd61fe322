"""``mystfuse help``: what ``--help`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.types import StringParamType

from mystfuse.cli.options import completion
from mystfuse.cli.usage import did_you_mean

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class _Words(StringParamType):
    """The name of a command, and of one in that, if it is a group."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        shown = ctx.find_root()
        for word in ctx.params.get(param.name or "") or ():
            found = shown.command.get_command(shown, word) if isinstance(shown.command, click.Group) else None
            if found is None:
                return []
            shown = click.Context(found, info_name=word, parent=shown)
        group = shown.command
        names = group.list_commands(shown) if isinstance(group, click.Group) else []
        return [completion(name) for name in names if name.startswith(incomplete)]


@click.command("help", short_help="Show the help of a command.")
@click.argument("words", type=_Words(), metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of COMMAND, as COMMAND --help does; without one, of mystfuse itself."""
    shown = context.find_root()
    for word in words:
        group = shown.command
        found = group.get_command(shown, word) if isinstance(group, click.Group) else None
        if found is None:
            known = group.list_commands(shown) if isinstance(group, click.Group) else []
            raise click.UsageError(f"{shown.command_path} has no command {word}{did_you_mean(word, known)}", context)
        # Under its own name, not an alias.
        shown = click.Context(found, info_name=found.name, parent=shown, **found.context_settings)
    click.echo(shown.command.get_help(shown))
