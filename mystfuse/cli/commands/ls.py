"""``mystfuse ls``: list a directory of an image."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
import trio

from mystfuse.cli.path_in_image import PathInImage
from mystfuse.cli.reading import read_image, reading_options
from mystfuse.cli.text import complain, file_type
from mystfuse.errors import ExitStatus, MystfuseError, one_line
from mystfuse.ext2.inode import Inode
from mystfuse.system.units import ls_size
from mystfuse.tree.image_tree import Child, ImageTree, check_first_visit


class _Item(NamedTuple):
    """A name to be listed; None where reading its inode failed."""

    name: str
    path: str
    ino: int
    inode: Inode | None
    target: str | None


@click.command(
    "ls",
    short_help="List what is in an image.",
    # As for ls(1), -h is not help.
    context_settings={"help_option_names": ["--help"]},
)
@click.option("-l", "is_long", is_flag=True, help="Type, mode, links, ids, size, time (UTC), and where links point.")
@click.option("-h", "--human-readable", "is_human", is_flag=True, help="With -l: sizes as 1.5K, 234M, 2G, rounded up.")
@click.option("-R", "is_recursive", is_flag=True, help="Directories below as well.")
@click.option("-a", "shows_hidden", is_flag=True, help="Names that begin with a dot as well.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, one object a name, with all there is.")
@reading_options
@click.argument("path", metavar="[PATH]", type=PathInImage(), default="/")
def command(
    path: str, is_long: bool, is_human: bool, is_recursive: bool, shows_hidden: bool, as_json: bool, **given: Any
) -> ExitStatus:
    """List PATH in IMAGE (default: its root), sorted by name.

    A name whose inode cannot be read is listed with question marks and an error on stderr.
    """
    listing = _Listing(is_long, is_human, is_recursive, shows_hidden, as_json)

    async def run(tree: ImageTree) -> None:
        await listing.run(tree, path)

    read_image(given, run, path)
    return listing.status


class _Listing:
    def __init__(self, is_long: bool, is_human: bool, is_recursive: bool, shows_hidden: bool, as_json: bool) -> None:
        self.status = ExitStatus.DONE
        self._is_long = is_long
        self._size = ls_size if is_human else str
        self._is_recursive = is_recursive
        self._shows_hidden = shows_hidden
        self._as_json = as_json
        self._separator = "["

    async def run(self, tree: ImageTree, path: str) -> None:
        """List a directory or a single name; with -l a symbolic link is shown itself."""
        inode = await tree.resolve(path, follow_symlinks=not self._is_long)
        if inode.is_directory:
            await self._list_tree(tree, path, inode)
        else:
            self._print([await self._item(tree, path, path, Child(b"", inode.ino, inode))])
        if self._as_json:
            click.echo("[]" if self._separator == "[" else "\n]")

    async def _list_tree(self, tree: ImageTree, top: str, inode: Inode) -> None:
        pending = [(top, inode.ino)]
        seen: set[int] = set()
        while pending:
            path, ino = pending.pop()
            check_first_visit(ino, seen)
            children = sorted([child async for child in tree.children(ino)], key=lambda child: child.name)
            items = [
                await self._item(tree, os.fsdecode(child.name), os.path.join(path, os.fsdecode(child.name)), child)
                for child in children
                if self._shows_hidden or not child.name.startswith(b".")
            ]
            if self._is_recursive and not self._as_json:
                if path != top:
                    click.echo()
                click.echo(one_line(f"{path}:"))
            self._print(items)
            if self._is_recursive:
                below = [(item.path, item.ino) for item in items if item.inode is not None and item.inode.is_directory]
                pending += reversed(below)

    async def _item(self, tree: ImageTree, name: str, path: str, child: Child) -> _Item:
        """The columns for a name; errors go to stderr."""
        inode = target = None
        try:
            inode = child.inode
            if inode.is_symlink and (self._is_long or self._as_json):
                # So that ^C works within a large directory too.
                await trio.lowlevel.checkpoint()
                target = os.fsdecode(await tree.volume.target(inode.ino))
        except MystfuseError as error:
            self.status = complain(f"{path}: {error}", error.exit_status)
        return _Item(name, path, child.ino, inode, target)

    def _print(self, items: list[_Item]) -> None:
        if self._as_json:
            for item in items:
                click.echo(f"{self._separator}\n  {json.dumps(_document(item))}", nl=False)
                self._separator = ","
        elif self._is_long:
            _print_columns([_columns(item, self._size) for item in items])
        else:
            for item in items:
                click.echo(one_line(item.name))


def _columns(item: _Item, show_size: Callable[[int], str]) -> list[str]:
    inode = item.inode
    if inode is None:
        return ["??????????", "?", "?", "?", "?", "?", one_line(item.name)]
    size = f"{os.major(inode.rdev)}, {os.minor(inode.rdev)}" if _is_device(inode) else show_size(inode.size)
    arrow = "" if item.target is None else f" -> {item.target}"
    return [
        stat.filemode(inode.i_mode),
        str(inode.i_links_count),
        str(inode.uid),
        str(inode.gid),
        size,
        _iso_time(inode.mtime_ns // 10**9),
        one_line(item.name + arrow),
    ]


def _print_columns(rows: list[list[str]]) -> None:
    """Print a table: numbers to the right, the first and the last columns to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for mode, *numbers, name in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
        click.echo(" ".join([mode, *cells, name]))


def _document(item: _Item) -> dict[str, Any]:
    document: dict[str, Any] = {"path": item.path, "inode": item.ino}
    inode = item.inode
    if inode is None:
        return document | {"type": None}
    document |= {
        "type": file_type(inode.i_mode),
        "mode": f"{stat.S_IMODE(inode.i_mode):04o}",
        "links": inode.i_links_count,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "mtime": _iso_time(inode.mtime_ns // 10**9),
        "mtime_ns": inode.mtime_ns,
    }
    if item.target is not None:
        document["target"] = item.target
    if _is_device(inode):
        document |= {"major": os.major(inode.rdev), "minor": os.minor(inode.rdev)}
    return document


def _is_device(inode: Inode) -> bool:
    return stat.S_ISCHR(inode.i_mode) or stat.S_ISBLK(inode.i_mode)


def _iso_time(seconds: int) -> str:
    """Seconds since the epoch as ISO 8601 has them, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
