"""``mystfuse diff``: what differs between two trees, or has been written since a mount."""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import click
import trio

from mystfuse.cli.compared_trees import ComparedTrees, refuse_image_options
from mystfuse.cli.diff_json import change_document, statistics_document
from mystfuse.cli.diff_text import Targets, content_lines, describe, read_targets, statistics_lines
from mystfuse.cli.given_image import image_options
from mystfuse.cli.options import ComparedPath, io_timeout_option
from mystfuse.cli.progress import progress
from mystfuse.cli.reading import run_until_signal
from mystfuse.errors import ExitStatus, MountError, UsageError
from mystfuse.mounting.daemon_logs import log_to_stderr
from mystfuse.mounting.mount_table import describe_absence, find_mount
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.tree.diff.change import Aspect, Change
from mystfuse.tree.diff.compare import Rules, compare, in_order
from mystfuse.tree.diff.content_changes import ContentChange, content_change
from mystfuse.tree.diff.image_view import ImageView
from mystfuse.tree.diff.statistics import Statistics
from mystfuse.tree.diff.view import View

DIFFERENT = 1
"""The exit status if there are differences; ``ending.failure_status`` keeps it for them."""


@click.command("diff", short_help="Show what differs: of images, mounts, directories, archives.")
@click.option("--stat", "only_counts", is_flag=True, help="Count, and add up the bytes, in place of a line a path.")
@click.option("--contents", "shows_contents", is_flag=True, help="How files differ: unified diffs, or counted blocks.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option("--no-times", "ignores_times", is_flag=True, help="Do not compare modification times.")
@click.option("--no-owners", "ignores_owners", is_flag=True, help="Do not compare users and groups.")
@image_options
@io_timeout_option
@click.argument("old", metavar="A", type=ComparedPath())
@click.argument("new", metavar="[B]", type=ComparedPath(), required=False)
def command(
    old: str,
    new: str | None,
    only_counts: bool,
    shows_contents: bool,
    as_json: bool,
    ignores_times: bool,
    ignores_owners: bool,
    **given: Any,
) -> int:
    """Show what makes B another tree than A: each an image, a directory, a mountpoint, or a tar archive (by its name:
    .tar, .tar.gz, .tgz, .tar.xz, .txz, .tar.zst, .tzst). A alone is a mountpoint: what has been written since it was
    mounted.

    A line for each path, sorted: A added, D removed, R renamed (of an image and its commit), M changed, and in what.
    With two images, the options for trust and keys are for both: --pubkey and --roothash add up.

    Exit status: 0 no differences, 1 differences, 2 or more trouble.
    """
    ignored = {Aspect.MTIME} if ignores_times else set()
    if ignores_owners:
        ignored |= {Aspect.OWNER, Aspect.GROUP}
    output = _JsonOutput(old, new, only_counts) if as_json else _TextOutput(only_counts)
    rules = Rules(frozenset(ignored))
    log_to_stderr()
    if new is None:
        refuse_image_options([old], given)
        _check_mountpoint(old)
        trio.run(run_until_signal, partial(_print_since_mount, old, given["io_timeout"], rules, shows_contents, output))
    else:
        trees = ComparedTrees([old, new], given)
        if not trees.sees_all_xattrs:
            rules = replace(rules, unseen_xattrs=(b"trusted.",))
        try:
            trio.run(run_until_signal, partial(_print_between, trees, rules, shows_contents, output))
        finally:
            trees.close()
    output.end()
    return DIFFERENT if output.statistics.paths else ExitStatus.DONE


def _check_mountpoint(path: str) -> None:
    """Raise an error that says what is amiss if nothing of ours is mounted there."""
    mountpoint = resolve_mountpoint(path)
    if find_mount(mountpoint) is None:
        if os.path.isfile(mountpoint):
            raise UsageError(f"{path}: a single argument is a mountpoint; name the tree that it is to be compared with")
        raise MountError(f"{path}: {describe_absence(mountpoint)}")


async def _print_since_mount(
    mountpoint: str, io_timeout: float, rules: Rules, shows_contents: bool, output: _Output
) -> None:
    """Print what has been written to a mount."""
    # Only here: it takes long to import.
    from mystfuse.tree.diff.written_changes import open_mount_states

    async with open_mount_states(mountpoint, io_timeout) as states:
        with progress("comparing", None):
            for found in in_order(await states.changes()):
                change = rules.apply(found)
                if change is not None:
                    await _print(change, states.old, states.new, shows_contents, output)


async def _print_between(trees: ComparedTrees, rules: Rules, shows_contents: bool, output: _Output) -> None:
    """Print what differs between two trees."""
    async with trees.opened() as (old, new):
        with progress("comparing", await _size(old)) as advance:
            async with aclosing(compare(old, new, rules, advance)) as changes:
                async for change in changes:
                    await _print(change, old, new, shows_contents, output)


async def _size(view: View) -> int | None:
    """About how many bytes there are to compare."""
    if not isinstance(view, ImageView):
        return None
    statistics = await view.volume.statistics()
    return (statistics.blocks - statistics.free_blocks) * statistics.block_size


async def _print(change: Change, old: View, new: View, shows_contents: bool, output: _Output) -> None:
    content = await content_change(old, new, change) if shows_contents else None
    output.add(change, await read_targets(old, new, change), content)


class _Output(ABC):
    """What is printed: not between a progress bar, if both are on one terminal."""

    def __init__(self) -> None:
        self.statistics = Statistics()
        # Taken before a progress bar puts itself in its place.
        self._file = sys.stdout
        self._waits = os.isatty(1) and os.isatty(2)
        self._waiting: list[str | bytes] = []

    @abstractmethod
    def add(self, change: Change, targets: Targets | None, content: ContentChange | None) -> None:
        """Print one change."""

    def end(self) -> None:
        """Print the rest."""
        for data in self._waiting:
            self._print(data)
        self._file.flush()

    def write(self, data: str | bytes) -> None:
        """Print something, now or when the bar has gone; bytes as they are."""
        if self._waits:
            self._waiting.append(data)
        else:
            self._print(data)

    def _print(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self._file.write(data)
        else:
            self._file.flush()
            self._file.buffer.write(data)


class _TextOutput(_Output):
    def __init__(self, only_counts: bool) -> None:
        super().__init__()
        self._only_counts = only_counts
        self._escapes = os.isatty(1)

    def add(self, change: Change, targets: Targets | None, content: ContentChange | None) -> None:
        self.statistics.add(change)
        if not self._only_counts:
            self.write(f"{describe(change, targets)}\n")
            if content is not None:
                self.write(b"".join(content_lines(change, content, self._escapes)))

    def end(self) -> None:
        if self._only_counts:
            for line in statistics_lines(self.statistics):
                self.write(f"{line}\n")
        super().end()


class _JsonOutput(_Output):
    def __init__(self, old: str, new: str | None, only_counts: bool) -> None:
        super().__init__()
        self._only_counts = only_counts
        self._separator = ""
        self._head = f'{{"old": {json.dumps(old)}, "new": {json.dumps(new)}'
        if not only_counts:
            self._head += ', "changes": ['

    def _write_head(self) -> None:
        """Begin the document: not before there is something to say, since both trees may turn out not to be any."""
        self.write(self._head)
        self._head = ""

    def add(self, change: Change, targets: Targets | None, content: ContentChange | None) -> None:
        self.statistics.add(change)
        self._write_head()
        if not self._only_counts:
            document = json.dumps(change_document(change, targets, content))
            self.write(f"{self._separator}\n  {document}")
            self._separator = ","

    def end(self) -> None:
        self._write_head()
        if not self._only_counts:
            self.write("\n]" if self._separator else "]")
        self.write(f', "statistics": {json.dumps(statistics_document(self.statistics))}}}\n')
        super().end()
