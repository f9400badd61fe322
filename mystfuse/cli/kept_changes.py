"""What ``exec`` shows and keeps of what its program has written, when that has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from mystfuse.build.commit import commit_to, new_image_file
from mystfuse.cli.commit_options import check_encryption, commit_options
from mystfuse.cli.diff_text import describe as describe_change
from mystfuse.cli.diff_text import read_targets, statistics_lines
from mystfuse.cli.keep_or_discard import Question
from mystfuse.cli.kept_changes_options import KEY_OPTIONS
from mystfuse.cli.key_options import has_terminal
from mystfuse.cli.layer import STDOUT, check_layer_name, check_two_names, describe_layer, write_mount_layer
from mystfuse.cli.made_image import describe
from mystfuse.cli.new_image_options import load_new_image
from mystfuse.cli.progress import prepare_progress, progress
from mystfuse.cli.reading import run_until_signal
from mystfuse.cli.text import remark, warn
from mystfuse.errors import MystfuseError, UsageError
from mystfuse.fuse.control_directory_names import CONTROL_NAME, IMAGE_NAME, STATUS_NAME
from mystfuse.image.keys import Encryption
from mystfuse.system.atomic_file import AtomicFile, check_target
from mystfuse.tree.diff.change import Change
from mystfuse.tree.diff.statistics import Statistics
from mystfuse.tree.diff.written_changes import open_mount_states
from mystfuse.trust.signature import SigningKey


@dataclass(frozen=True, slots=True)
class _NewImage:
    file: AtomicFile
    signing_key: SigningKey | None
    encryption: Encryption | None


class KeptChanges:
    """An ``Aftermath``: shows the changes, makes a layer of them, and a new image, as the options say.

    Args:
        image: its name, for messages.
        given: ``kept_changes_options`` by the names of their parameters.

    Raises:
        UsageError: options do not go together.
        MystfuseError: an output exists.
    """

    def __init__(self, image: str, given: Mapping[str, Any]) -> None:
        self._name = image
        self._given = given
        self._target: Path | None = given["new_image"]
        self._layer: str | None = given["layer"]
        self._outputs = [os.fspath(path) for path in (self._layer, self._target) if path is not None]
        self._open = ExitStack()
        self._image: _NewImage | None = None
        self._layer_file: AtomicFile | None = None
        self._question: Question | None = None
        self._check_options()
        for path in self._outputs:
            if not given["overwrite"] and os.path.lexists(path):
                raise MystfuseError(f"{path}: already exists (--overwrite overwrites it)")
            check_target(Path(path), given["overwrite"])

    def _check_options(self) -> None:
        given = self._given
        if self._target is None:
            for name in KEY_OPTIONS:
                if given[name] is not None:
                    raise UsageError(f"--{name.replace('_', '-')} goes with --commit NEWIMAGE")
        if not self._outputs:
            for name, option in (("decrypt", "--decrypt"), ("overwrite", "--overwrite"), ("asks", "--ask")):
                if given[name]:
                    raise UsageError(f"{option} goes with --commit NEWIMAGE or --layer FILE")
        if given["asks"] and not has_terminal():
            raise UsageError("--ask: there is no terminal to ask on")
        check_encryption(self._name, {}, given["encrypt"] is not None, given["decrypt"])
        if self._layer is not None:
            if self._layer == STDOUT:
                raise UsageError("--layer -: stdout is the program's: name a file")
            check_layer_name(self._layer, True)
        if self._layer is not None and self._target is not None:
            check_two_names(self._layer, self._target)

    def prepare(self) -> None:
        """Open the files, and read the keys: raises as ``load_new_image`` and ``AtomicFile``."""
        given, force = self._given, self._given["overwrite"]
        is_secret = given["encrypt"] is not None or given["decrypt"]
        if self._layer is not None:
            self._layer_file = self._open.enter_context(new_image_file(Path(self._layer), force, is_secret))
        if self._target is not None:
            file = self._open.enter_context(new_image_file(self._target, force, is_secret))
            signing_key, encryption = load_new_image(**self._new_image_options(), luks2=False)
            self._image = _NewImage(file, signing_key, encryption)
        if given["asks"]:
            self._question = Question()
            self._open.callback(self._question.close)
        prepare_progress()

    def _new_image_options(self) -> dict[str, Any]:
        """``new_image_options``, as far as there are such; exec's own options of the other names open its image."""
        others = dict.fromkeys(("passphrase", "passphrase_file", "passphrase_command"))
        return {**{name: self._given[name] for name in KEY_OPTIONS}, **others}

    def check(self, mountpoint: str) -> None:
        """Raise UsageError for an encrypted image of which nobody has said what it is to become."""
        if not self._outputs:
            return
        status, given = _status(mountpoint), self._given
        if self._layer is None:
            check_encryption(self._name, status, given["encrypt"] is not None, given["decrypt"])
        else:
            check_encryption(
                self._name, status, False, given["decrypt"], "--decrypt writes a layer of it, which is not encrypted"
            )

    def finish(self, mountpoint: str, status: int) -> None:
        """Show what has changed, if told so; keep it, if the program succeeded or the answer is yes."""
        if self._question is not None:
            self._question.take_back()
        if self._given["shows_changes"] or self._question is not None:
            changes = trio.run(run_until_signal, lambda: _changes(mountpoint))
            if self._given["shows_changes"]:
                _show(line for line, _ in changes)
            if self._question is not None and not self._is_wanted([change for _, change in changes], status):
                return
        if status and self._question is None:
            for path in self._outputs:
                warn(f"{path} is not made: the program ended with status {status}")
            return
        # The image first: not everything that it can hold fits into a layer.
        if self._image is not None:
            options = commit_options(_status(mountpoint), self._image.signing_key, self._image.encryption)
            merged = _control(mountpoint) / os.fsdecode(IMAGE_NAME)
            for line in describe(commit_to(merged, self._image.file, options, progress), self._new_image_options()):
                remark(line)
        if self._layer is not None:
            remark(describe_layer(write_mount_layer(mountpoint, self._layer, self._layer_file)))

    def _is_wanted(self, changes: Sequence[Change], status: int) -> bool:
        assert self._question is not None
        outputs = " and ".join(self._outputs)
        if not changes:
            remark(f"the program has changed nothing: {outputs} not made")
            return False
        statistics = Statistics()
        for change in changes:
            statistics.add(change)
        _show(statistics_lines(statistics))
        ended = f"the program ended with status {status}; " if status else ""
        if self._question.ask(f"{ended}keep this in {outputs}?"):
            return True
        remark("the changes are discarded")
        return False

    def close(self) -> None:
        """Give up the files that are not complete."""
        self._open.close()


async def _changes(mountpoint: str) -> list[tuple[str, Change]]:
    """What has been written, each with its line."""
    found = []
    async with open_mount_states(mountpoint) as states:
        for change in await states.changes():
            targets = await read_targets(states.old, states.new, change)
            found.append((describe_change(change, targets), change))
    return found


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line, err=True)


def _control(mountpoint: str) -> Path:
    return Path(mountpoint) / os.fsdecode(CONTROL_NAME)


def _status(mountpoint: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((_control(mountpoint) / os.fsdecode(STATUS_NAME)).read_text())
    return status
