"""Writes docs/commands.md, the reference of commands: what each one's --help prints.

python -m documents.commands docs/commands.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mystfuse.cli.main import COMMANDS, cli

HEAD = """\
# Commands

`scripts/docs` writes this page: what `--help` prints for each command. `man mystfuse` says more of each.
"""


def reference() -> str:
    """The page, in Markdown."""
    root = click.Context(cli, info_name="mystfuse", terminal_width=78, **cli.context_settings)
    parts = [HEAD, _section("mystfuse", cli.get_help(root))]
    for name, command in commands().items():
        group, _, inner = name.rpartition(" ")
        parent = click.Context(commands()[group], info_name=group, parent=root) if group else root
        context = click.Context(command, info_name=inner, parent=parent, **command.context_settings)
        parts.append(_section(f"mystfuse {name}", command.get_help(context)))
    return "\n".join(parts)


def commands() -> dict[str, click.Command]:
    """All commands by their names; those in a group, like ``keys fingerprint``, after it."""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": member for inner, member in command.commands.items()}
    return found


def _section(name: str, text: str) -> str:
    return f"## {name}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())
