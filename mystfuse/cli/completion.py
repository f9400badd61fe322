"""What a shell asks for while somebody types: its script, and the completions of a word.

The scripts (``completion_scripts/``) start this very command with ``_MYSTFUSE_COMPLETE=SHELL_complete`` and what has
been typed, and get a line for each completion: its type, its value and an explanation, with tabs in between. Types are
those of ``cli/options.py``. With ``_MYSTFUSE_COMPLETE=SHELL_source``, as click has it, it prints a script.

zsh and fish split the line into words and take quotes off. bash does neither: it passes the whole line, and wants
values quoted, and only the part of them behind its word breaks.
"""

from __future__ import annotations

import os
import re
import signal
from importlib import resources
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem, ShellComplete

from mystfuse.cli.options import FILE, NAME, PART, completion
from mystfuse.cli.short_help import SHORT_HELP
from mystfuse.devices.open_source import is_address
from mystfuse.errors import ExitStatus

VARIABLE = "_MYSTFUSE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
MARK = "mystfuse's completion"
"""In the first lines of each script."""
_LIMIT = 3.0
"""Seconds after which nothing is completed. Reading an image has less (``cli/path_in_image.py``)."""
_BASH_PLAIN = re.compile(r"[^\w@%+=:,./-]")


def _is_harmless(text: str) -> bool:
    """Whether it has nothing that drives a terminal or disguises a name; bytes that are no text are let through."""
    return all(char.isprintable() or "\udc80" <= char <= "\udcff" for char in text)


def script(shell: str) -> str:
    """The script that makes a shell complete mystfuse's command lines."""
    return resources.files("mystfuse.cli").joinpath(f"completion_scripts/mystfuse.{shell}").read_text()


def answer(cli: click.Command, instruction: str, arguments: list[str]) -> int:
    """Print what the shell wants to know; nothing else, and no error, reaches the terminal on which somebody types.

    Args:
        instruction: the value of the variable.
        arguments: the words typed so far, the last one being completed; from bash the whole line instead.
    """
    shell, _, action = instruction.partition("_")
    if shell not in SHELLS or action not in ("source", "complete"):
        return ExitStatus.USAGE
    # For the processes that we start.
    os.environ.pop(VARIABLE, None)
    if action == "source":
        click.echo(script(shell), nl=False)
        return ExitStatus.DONE
    # What is typed meanwhile is the shell's.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # For storage that hangs. Nothing has been printed then.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(ExitStatus.FAILED))
    signal.setitimer(signal.ITIMER_REAL, _LIMIT)
    try:
        lines = Completion(cli, shell).lines(arguments)
    except Exception:
        return ExitStatus.FAILED
    # Names of files may be no text.
    os.write(1, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
    return ExitStatus.DONE


class Completion(ShellComplete):
    """The completions of one command line."""

    def __init__(self, cli: click.Command, shell: str) -> None:
        super().__init__(cli, {}, "mystfuse", VARIABLE)
        self.shell = shell

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """As click, but what follows ``--option=`` is the whole word."""
        name, equals, value = incomplete.partition("=")
        if "--" in args or not name.startswith("--") or not equals:
            return super().get_completions(list(args), incomplete)
        items = super().get_completions([*args, name], value)
        start = name + equals
        return [
            completion(start + item.value, item.type, item.help) if item.type in (NAME, PART) else item
            for item in items
        ]

    def lines(self, arguments: list[str]) -> list[str]:
        """The lines for the shell's script."""
        if self.shell == "bash":
            line = split_bash(arguments[0] if arguments else "", os.environ.get("_MYSTFUSE_BREAKS", "\"'><=;|&(:"))
            words = line.words[1:] or [""]
        else:
            line = None
            words = arguments or [""]
            if self.shell == "fish":
                words[-1] = _unquote_fish(words[-1])
        items = [item for item in self.get_completions(words[:-1], words[-1]) if _is_harmless(item.value)]
        if line is not None:
            return [self._bash_line(item, line) for item in _list_files(items)]
        return [
            f"{item.type}\t{item.value}\t{item.help or ''}"
            if item.type in (NAME, PART)
            # How much of the word is not part of the file's name.
            else f"{item.type}\t{len(words[-1]) - len(item.value)}\t{item.value}"
            for item in items
        ]

    @staticmethod
    def _bash_line(item: CompletionItem[str], line: BashLine) -> str:
        if item.type not in (NAME, PART):
            return item.type
        return f"{item.type}\t{quote_bash(item.value[line.start :], line.quote)}"


def _list_files(items: list[CompletionItem[str]]) -> list[CompletionItem[str]]:
    """With names among them, the files too: bash completes these by itself when there is nothing else."""
    files = [item for item in items if item.type == FILE]
    if not files or len(files) == len(items):
        return items
    return [item for item in items if item.type != FILE] + files_here(files[0].value)


def files_here(start: str) -> list[CompletionItem[str]]:
    """The files in the current directory whose names begin so."""
    with os.scandir() as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name.startswith(start))
    return [
        completion(f"{name}/", PART) if is_directory else completion(name)
        for name, is_directory in found
        if (start or not name.startswith(".")) and _is_harmless(name)
    ]


class BashLine(NamedTuple):
    """A command line, as bash splits it, up to the cursor."""

    words: list[str]
    """Without quotes; the last one is being typed."""
    start: int
    """Where in the last word, in characters, what bash completes begins."""
    quote: str
    """The quote in which the cursor is; empty outside."""


def split_bash(text: str, breaks: str) -> BashLine:
    """Split a command line of bash.

    Args:
        text: up to the cursor.
        breaks: the value of COMP_WORDBREAKS.
    """
    words: list[str] = []
    word: list[str] | None = None
    start, opened, quote, position = 0, 0, "", 0
    while position < len(text):
        character = text[position]
        position += 1
        if quote:
            if character == quote:
                quote = ""
            elif character == "\\" and quote == '"' and text[position : position + 1] in ("$", "`", '"', "\\"):
                assert word is not None
                word.append(text[position])
                position += 1
            else:
                assert word is not None
                word.append(character)
        elif character in " \t\n":
            if word is not None:
                words.append("".join(word))
            word, start = None, 0
        else:
            word = [] if word is None else word
            if character in "\"'":
                quote, opened = character, len("".join(word))
            elif character == "\\":
                word.append(text[position : position + 1])
                position += 1
            else:
                word.append(character)
                # A quote breaks no word, but while it is open.
                start = len("".join(word)) if character in breaks else start
    return BashLine([*words, "".join(word or [])], opened if quote else start, quote)


def quote_bash(text: str, quote: str) -> str:
    """A text as bash reads it, behind an open quote or outside of quotes."""
    if quote == "'":
        return text.replace("'", "'\\''")
    if quote == '"':
        # A backslash before ! would stay: it is put between two quoted parts.
        return re.sub(r'([$`"\\])', r"\\\1", text).replace("!", '"\\!"')
    return _BASH_PLAIN.sub(lambda match: "\\" + match[0], text)


def _unquote_fish(text: str) -> str:
    """A word of fish that may lack its closing quote."""
    found: list[str] = []
    quote, position = "", 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "\\" and text[position : position + 1] and (not quote or text[position] in (quote, "\\", "$")):
            found.append(text[position])
            position += 1
        elif character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
        elif character != "\\" or quote:
            found.append(character)
    return "".join(found)


def commands_and_files(group: click.Group, context: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
    """The first word of a command line: a command, or the image of the short form."""
    if "/" in incomplete or incomplete.startswith("~"):
        return [] if is_address(incomplete) else [completion(incomplete, FILE)]
    names = [name for name in group.list_commands(context) if name.startswith(incomplete)]
    return [*(completion(name, NAME, SHORT_HELP.get(name)) for name in names), completion(incomplete, FILE)]
