"""Usage errors for people: which command they are about, what was probably meant, and where help is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import click

_ALIKE = 0.7
"""How alike two words must be for one to be a slip of the pen for the other, from 0 to 1 (``difflib``)."""


def did_you_mean(word: str, known: Iterable[str], other_names: Mapping[str, str] | None = None) -> str:
    """``; did you mean WORD?`` if one of the ``known`` words is like ``word``; else nothing.

    Args:
        other_names: the right word for those of the known ones that are not right themselves.
    """
    alike = difflib.get_close_matches(word, list(known), n=1, cutoff=_ALIKE)
    return f"; did you mean {(other_names or {}).get(alike[0], alike[0])}?" if alike else ""


def describe_usage_error(error: click.ClickException) -> str:
    """One line: the command, what is wrong with its arguments, and where its help is."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    if context is None:
        return message
    if isinstance(error, click.NoSuchOption):
        message = f"no such option {error.option_name}{_meant_option(error.option_name, context)}"
    command = context.command_path.removeprefix(context.find_root().command_path).strip()
    if "--help" not in message:
        message += f" (see {context.command_path} --help)"
    return f"{command}: {message}" if command else message


def _meant_option(name: str, context: click.Context) -> str:
    """What was probably meant by an option that a command does not have."""
    # Of -o and --on alike: the dashes do not count.
    meant = did_you_mean(name, [option for option in _options(context.command) if option.startswith("--")])
    if meant or context.parent is None:
        return meant
    if meant := did_you_mean(name, _options(context.parent.command)):
        return meant
    others = _commands_with(name, context.parent)
    return f"; it is one of {', '.join(others)}" if others else ""


def _commands_with(option: str, group: click.Context) -> list[str]:
    """The commands of a group that have an option."""
    if not isinstance(group.command, click.Group) or not option.startswith("--"):
        return []
    names = group.command.list_commands(group)
    commands = {name: group.command.get_command(group, name) for name in names}
    return [name for name, command in commands.items() if command is not None and option in _options(command)]


def _options(command: click.Command) -> list[str]:
    return [
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]
