"""``mystfuse.mount``: a real mountpoint for the time of a block, served by a process of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from math import isinf
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack
from weakref import finalize

from mystfuse.api.arguments import (
    MOUNT_DEFAULTS,
    HashOrKey,
    MountArguments,
    OpenArguments,
    StrPath,
    check_arguments,
    takes,
)
from mystfuse.devices.open_source import local_path
from mystfuse.errors import MountError, UsageError
from mystfuse.mounting.mount_table import Mount, find_mount, is_covered
from mystfuse.mounting.mountpoint import resolve_mountpoint
from mystfuse.mounting.unmount import BusyError, unmount_and_wait
from mystfuse.system.blocking import Operation
from mystfuse.system.own_command import OwnCommand

_MAX_SECRET = 4096
"""Bytes: they fit into a pipe before it is read."""
_UNMOUNT_TIMEOUT = 30.0
"""Seconds for the daemon to end."""


@takes(MOUNT_DEFAULTS, OpenArguments, MountArguments)
class mount:  # noqa: N801  # used like a function: with mystfuse.mount(...) as m
    """Mount an image for the time of a ``with`` or ``async with`` block (trio or asyncio).

    ``os.fspath()`` of it is the mountpoint. Writes to the mount are forgotten when the block ends.

    However the block ends (an exception, ^C, a cancelled task), mount and daemon are gone before that is raised. If it
    is interrupted or cancelled while it begins, ``mystfuse mount`` is ended within 10 s and what it has mounted is
    unmounted; the daemon then has 30 s to end. The end of the block ignores cancellation: it waits for 30 s at most,
    then the daemon is left to end by itself, and MountError says so.

    Args:
        image: path of the image, or its address (https, s3, oci; needs the extra ``remote``).
        mountpoint: an existing, empty directory.
        {arguments}

    Raises, when the block begins:
        NotTrusted: the image is not trusted by any root hash or key.
        UsageError: a wrong argument.
        WrongKey: the image is encrypted and the key does not open it, or a key is given and it is not.
        FormatError, IntegrityError: not an image, or a damaged one.
        MountError: mounting it there failed.
        MystfuseError: reading it failed, or something else.
    """

    def __init__(self, image: StrPath, mountpoint: StrPath, **arguments: Unpack[MountArguments]) -> None:
        given: MountArguments = {**MOUNT_DEFAULTS, **arguments}
        check_arguments(given, options=given["options"])
        self.image: str | Path = os.fspath(image) if local_path(image) is None else Path(image)
        self.mountpoint = Path(mountpoint)
        self._arguments = _options(given)
        self._pubkeys = list(given["pubkeys"])
        self._secrets = [
            (option, os.fsencode(value))
            for option, value in (("--key-file", given["key"]), ("--passphrase-file", given["passphrase"]))
            if value is not None
        ]
        for option, secret in self._secrets:
            if not 0 < len(secret) <= _MAX_SECRET:
                raise UsageError(f"a {option[2:-5]} of {len(secret)} bytes; it must have 1 to {_MAX_SECRET}")
        self._path = os.fspath(self.mountpoint)
        self._own: Mount | None = None
        # For a block without an end (^C just before it): at garbage collection, or at exit.
        self._finalizer: finalize[..., mount] | None = None

    def __fspath__(self) -> str:
        return os.fspath(self.mountpoint)

    def status(self) -> dict[str, Any]:
        """The output of ``mystfuse status --json``: why it is trusted, counts of verified blocks, and so on.

        Raises:
            MountError: it is not mounted, or does not answer.
        """
        document: dict[str, Any] = json.loads(_run(["status", "--json", self._path]))
        return document

    def commit(self, image: StrPath, *, force: bool = False, options: Sequence[str] = ()) -> dict[str, Any]:
        """Make a new image of the present state; ``options`` as ``mystfuse commit`` takes them.

        Returns:
            What was made, as ``mystfuse commit --json`` prints it: size, root hash, and so on (docs/json.md).

        Raises:
            MystfuseError: making it failed; nothing is left then.
        """
        return _make(["commit", *(["--force"] if force else []), *options], self._path, image)

    def __enter__(self) -> mount:
        command = OwnCommand()
        try:
            Operation(lambda: self._begin(command), command.stop).run()
        except BaseException:
            Operation(self._clear).run()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            Operation(lambda: self._end(kind is not None)).run()
        finally:
            Operation(self._clear).run()

    async def __aenter__(self) -> mount:
        command = OwnCommand()
        try:
            await Operation(lambda: self._begin(command), command.stop).run_async()
        except BaseException:
            await Operation(self._clear).run_async(shield=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await Operation(lambda: self._end(kind is not None)).run_async(shield=True)
        finally:
            await Operation(self._clear).run_async(shield=True)

    def _begin(self, command: OwnCommand) -> None:
        """Mount. After any error, ``_finalizer`` unmounts the command's mount."""
        self._path = resolve_mountpoint(os.fspath(self.mountpoint))
        before = find_mount(self._path)
        has_mounted = False
        try:
            with ExitStack() as stack:
                arguments, descriptors = self._command_line(stack)
                command.run(arguments, descriptors)
                has_mounted = True
        finally:
            # A command that fails by itself leaves nothing: a mount that appeared meanwhile is another process's.
            own = find_mount(self._path) if has_mounted or command.was_stopped else None
            if own != before and own is not None:
                self._own = own
                self._finalizer = finalize(self, _take_away, self._path, own, os.getpid())

    def _command_line(self, stack: ExitStack) -> tuple[list[str | os.PathLike[str]], list[int]]:
        """The arguments that mount, and the descriptors that they name, which the stack closes."""
        descriptors: list[int] = []

        def pipe_with(data: bytes) -> str:
            receiver, sender = os.pipe()
            try:
                os.write(sender, data)
                # Not one of the standard descriptors, which the caller may have closed.
                descriptors.append(fcntl(receiver, F_DUPFD_CLOEXEC, 3))
            finally:
                os.close(sender)
                os.close(receiver)
            stack.callback(os.close, descriptors[-1])
            return f"/dev/fd/{descriptors[-1]}"

        arguments: list[str | os.PathLike[str]] = ["mount", *self._arguments]
        for value in self._pubkeys:
            if isinstance(value, bytes) and len(value) > _MAX_SECRET:
                raise UsageError(f"pubkeys: {len(value)} bytes are no PEM public key")
            path = pipe_with(value) if isinstance(value, bytes) else os.fspath(value)
            arguments.append(f"--pubkey={path}")
        for option, secret in self._secrets:
            # One newline at the end of a passphrase file does not count: add one, so that the passphrase's own does.
            ending = b"\n" if option == "--passphrase-file" else b""
            arguments.append(f"{option}={pipe_with(secret + ending)}")
        return [*arguments, "--", self.image, self._path], descriptors

    def _clear(self) -> None:
        """Unmount what is still mounted."""
        if self._finalizer is not None:
            self._finalizer()

    def _end(self, has_failed: bool) -> None:
        """Unmount, lazily if it is in use, which is an error unless the block has failed anyway."""
        if self._finalizer is None or self._own is None:
            return
        if find_mount(self._path) != self._own:
            _refuse_covered(self._own)
            # Unmounted by another process, or ended by damage.
            return
        try:
            unmount_and_wait(self._path, lazy=False, timeout=_UNMOUNT_TIMEOUT)
        except BusyError:
            with suppress(MountError):
                unmount_and_wait(self._path, lazy=True, timeout=0.1)
            if not has_failed:
                raise
        self._finalizer.detach()


def make_image(directory: StrPath, image: StrPath, *, options: Sequence[str] = ()) -> dict[str, Any]:
    """Make an image of a directory; ``options`` as ``mystfuse mkext2`` takes them.

    Returns:
        What was made, as ``mystfuse mkext2 --json`` prints it: size, root hash, and so on (docs/json.md).

    Raises:
        MystfuseError: making it failed; nothing is left then.
    """
    return _make(["mkext2", *options], directory, image)


def _options(given: MountArguments) -> list[str]:
    """The options of the command line that need no pipe."""
    options = ["-o", "trust_self" if given["trust"] == "self" else "no_trust_self"]
    options += [f"--roothash={_text(value)}" for value in given["roothashes"]]
    if given["insecure"]:
        options.append("--insecure")
    if given["hash_offset"] is not None:
        options.append(f"--hash-offset={given['hash_offset']}")
    if given["kdf_limit"] is not None:
        seconds, memory = given["kdf_limit"]
        # 0 would be no limit.
        text = "0" if isinf(seconds) else f"{max(seconds, 1e-9):.9f}"
        options.append(f"--kdf-limit={text}:{memory}")
    options.append(f"--io-timeout={0 if isinf(given['io_timeout']) else given['io_timeout']}")
    paths = {name: given[name] for name in ("cache", "prefetch", "ca_certificates", "client_certificate")}
    for name, path in paths.items():
        if path is not None:
            options.append(f"--{name.replace('_', '-')}={os.fspath(path)}")
    if given["cache_size"] is not None:
        options.append(f"--cache-size={given['cache_size']}")
    options += [f"--mirror={address}" for address in given["mirrors"]]
    if given["read_only"]:
        options.append("--read-only")
    if given["overlay_limit"] is not None:
        options.append(f"--overlay-limit={given['overlay_limit']}")
    if given["overlay_store"] is not None:
        options.append(f"--overlay-store={os.fspath(given['overlay_store'])}")
    for option in given["options"]:
        options += ["-o", option]
    return options


def _text(value: HashOrKey) -> str:
    return value.hex() if isinstance(value, bytes) else os.fspath(value)


def _take_away(path: str, own: Mount, pid: int) -> None:
    """Unmount a mount of ours that still exists; not in a process that was forked from ours."""
    if os.getpid() == pid:
        with suppress(MountError, OSError):
            if find_mount(path) == own:
                unmount_and_wait(path, lazy=True, timeout=_UNMOUNT_TIMEOUT)
                return
        _refuse_covered(own)


def _refuse_covered(own: Mount) -> None:
    """Raise MountError if a mount of ours still exists under another: its path leads to the upper one."""
    if is_covered(own):
        raise MountError(
            f"{own.mountpoint}: {own.source} is still mounted there, under another mount: unmount that, then this one "
            f"(mystfuse umount {own.mountpoint})"
        )


def _make(command: Sequence[str], source: StrPath, image: StrPath) -> dict[str, Any]:
    """Run a command that makes an image; returns the document that it prints."""
    document: dict[str, Any] = json.loads(_run([*command, "--json", "--", source, image]))
    return document


def _run(arguments: Sequence[str | os.PathLike[str]]) -> str:
    """Run our command line; returns its output, or raises its error."""
    command = OwnCommand()
    return Operation(lambda: command.run(arguments), command.stop).run()
