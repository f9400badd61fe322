"""Arguments that are paths in an image. Shells complete them from the image itself, verified as for the command."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.types import StringParamType

from mystfuse.cli.options import NAME, PART, completion
from mystfuse.devices.open_source import is_address

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from mystfuse.ext2.inode import Inode
    from mystfuse.tree.image_tree import ImageTree

    _Find = Callable[[ImageTree], Awaitable[list[CompletionItem[str]]]]

PATIENCE = 1.0
"""Seconds for reading an image while somebody waits for a completion."""
_SECRET_FILES = ("key_file", "passphrase_file")
_SECRET_COMMANDS = ("key_command", "passphrase_command")
_MAX_SYMLINKS = 100
"""Symbolic links to follow, to see whether they lead to directories."""


class PathInImage(StringParamType):
    """A path in the image that another argument, ``image``, names; text that must not be empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("it is empty (a variable that is not set?)", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """What begins like this in the image, if the options let it be trusted and opened; else nothing, and of an
        image elsewhere nothing either.

        Nobody is asked for a passphrase, no command for keys is run, and what takes longer than ``PATIENCE`` is left.
        """
        image = ctx.params.get("image")
        if not image or is_address(image) or not _may_be_read(ctx.params):
            return []
        try:
            return _complete(_as_the_shell_reads(image), ctx.params, partial(self.find, incomplete=incomplete))
        except Exception:
            # Whatever it is, the command itself will say it.
            return []

    def accepts(self, inode: Inode) -> bool:
        """Whether such a file, not a directory, is offered."""
        return True

    async def find(self, tree: ImageTree, incomplete: str) -> list[CompletionItem[str]]:
        """What is offered; raises as ``ImageTree.children``."""
        return await _children(tree, incomplete, self.accepts)


class ProgramInImage(PathInImage):
    """A program in the image. It may be empty, which the command itself refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def accepts(self, inode: Inode) -> bool:
        return inode.is_symlink or (inode.is_regular and bool(inode.i_mode & 0o111))

    async def find(self, tree: ImageTree, incomplete: str) -> list[CompletionItem[str]]:
        """As for any path; a name without a slash is looked for in the program's PATH, as the command does."""
        if "/" in incomplete or not incomplete:
            return await super().find(tree, incomplete)
        from mystfuse.container.program import DEFAULT_PATH

        found: set[str] = set()
        for directory in DEFAULT_PATH.split(":"):
            with suppress(OSError):
                children = await _children(tree, f"{directory}/{incomplete}", self.accepts)
                found |= {item.value.rpartition("/")[2] for item in children if item.type == NAME}
        return [completion(name) for name in sorted(found)]


class ProgramArgument(PathInImage):
    """An argument of a program in the image: any text, perhaps a path there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return super().shell_complete(ctx, param, incomplete) if incomplete.startswith("/") else []


def _may_be_read(given: Mapping[str, Any]) -> bool:
    """Whether opening the image runs nothing, and reads no pipe, which is for the command itself."""
    if any(given.get(name) is not None for name in _SECRET_COMMANDS):
        return False
    files = [given[name] for name in _SECRET_FILES if given.get(name) is not None]
    return all(file != "-" and _is_regular(file) for file in files)


def _as_the_shell_reads(path: str) -> str:
    """A path that was typed, perhaps with ``~`` or an exported variable, which shells pass as they stand."""
    return path if os.path.lexists(path) else os.path.expanduser(os.path.expandvars(path))


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _complete(image: str, given: Mapping[str, Any], find: _Find) -> list[CompletionItem[str]]:
    import trio

    from mystfuse.cli.given_image import GivenImage
    from mystfuse.tree.open import open_tree

    named = GivenImage(image, {**given, "io_timeout": PATIENCE})
    try:
        trust = named.load_trust()
        keys = named.load_keys(trust, may_ask=False)
        if keys:
            keys.start_deriver()

        async def read() -> list[CompletionItem[str]]:
            with trio.move_on_after(PATIENCE):
                async with open_tree(named.source, trust, keys, PATIENCE) as tree:
                    return await find(tree)
            return []

        return trio.run(read)
    finally:
        named.source.close()


async def _children(tree: ImageTree, incomplete: str, accepts: Callable[[Inode], bool]) -> list[CompletionItem[str]]:
    directory, slash, start = incomplete.rpartition("/")
    inode = await tree.resolve(directory + slash or "/")
    beginning = os.fsencode(start)
    found: list[CompletionItem[str]] = []
    links = 0
    async for child in tree.children(inode.ino):
        if not child.name.startswith(beginning) or (child.name.startswith(b".") and not beginning):
            continue
        path = directory + (slash or ("/" if not incomplete else "")) + os.fsdecode(child.name)
        kind = child.found
        if isinstance(kind, Exception):
            continue
        links += kind.is_symlink
        if kind.is_directory or (kind.is_symlink and links <= _MAX_SYMLINKS and await _leads_to_directory(tree, path)):
            found.append(completion(f"{path}/", PART))
        elif accepts(kind):
            found.append(completion(path))
    return found


async def _leads_to_directory(tree: ImageTree, path: str) -> bool:
    try:
        return (await tree.resolve(path)).is_directory
    except Exception:
        return False
