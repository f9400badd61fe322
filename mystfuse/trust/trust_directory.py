"""The directories of trusted keys and root hashes, ``trust.d`` and ``signers.d``. They fail closed: a malformed file,
or one that other users could have written, is an error and never an empty list.

Only a missing directory counts as empty. On the way to it, and to each file in it, every directory and every symbolic
link must belong to root or to the caller, and no other user may write to it.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from mystfuse.errors import UsageError
from mystfuse.system.configured_file import kind_of, read_at_most

if TYPE_CHECKING:
    from mystfuse.trust.signature import PublicKey

MAX_SMALL_FILE = 64 * 1024
"""Bytes: no key and no root hash file is larger."""
MAX_FILES = 10_000
_MAX_LINKS = 40
"""As many as the kernel follows: path_resolution(7)."""
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_trust_directory(directory: Path, takes_root_hashes: bool = True) -> tuple[list[bytes], list[PublicKey]]:
    """The root hashes (``*.roothash``) and the public keys (``*.pem``, any number in each) in a directory.

    Args:
        directory: absolute; it need not exist.
        takes_root_hashes: whether root hashes have a meaning there.

    Raises:
        UsageError: a file in it that is not one of the two, unreadable, or writable by other users; or the
            directory itself is not one.
    """
    hashes: list[bytes] = []
    keys: list[PublicKey] = []
    with ExitStack() as stack:
        fd = _open_protected(str(directory))
        if fd is None:
            return hashes, keys
        stack.callback(os.close, fd)
        try:
            names = os.listdir(_reopen(fd, stack, os.O_DIRECTORY))
        except NotADirectoryError:
            raise UsageError(f"{directory}: {kind_of(os.fstat(fd).st_mode)}, where a directory must be") from None
        except OSError as error:
            raise UsageError(f"{directory}: {error.strerror}") from error
    kinds = "*.pem and *.roothash" if takes_root_hashes else "*.pem"
    if len(names) > MAX_FILES:
        raise UsageError(f"{directory}: {len(names)} files; {MAX_FILES} are the most")
    for name in sorted(names):
        path = str(directory / name)
        # Lower case alone: we must not silently accept, or skip, a name that only looks right.
        suffix = os.path.splitext(name)[1]
        if name.startswith(".") or suffix not in ((".pem", ".roothash") if takes_root_hashes else (".pem",)):
            raise UsageError(f"{path}: not understood: only {kinds} may be here; move it elsewhere, or rename it")
        data = _read_protected(path)
        if suffix == ".roothash":
            found = hex_digest(data.decode("ascii", "replace"))
            if found is None:
                raise UsageError(f"{path}: not a root hash")
            hashes.append(found)
        else:
            # Only here: cryptography takes long to import.
            from mystfuse.trust.signature import PublicKey

            keys += PublicKey.all_from_pem(data, path)
    return hashes, keys


def hex_digest(text: str) -> bytes | None:
    """The digest of these hex digits, surrounding white space ignored; None if they are none."""
    text = text.strip()
    return bytes.fromhex(text) if re.fullmatch(r"[0-9a-fA-F]{64}([0-9a-fA-F]{64})?", text) else None


def _read_protected(path: str) -> bytes:
    with ExitStack() as stack:
        fd = _open_protected(path)
        if fd is None:
            raise UsageError(f"{path}: gone while it was looked at")
        stack.callback(os.close, fd)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path}: {kind_of(mode)}, where a file must be")
        try:
            descriptor = _reopen(fd, stack, 0)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        with FileIO(descriptor, "rb", closefd=False) as file:
            return read_at_most(file, path, MAX_SMALL_FILE)


def _reopen(fd: int, stack: ExitStack, flags: int) -> int:
    """The file of an O_PATH descriptor, opened for reading; OSError as of open(2)."""
    descriptor = os.open(f"/proc/self/fd/{fd}", _READ | flags)
    stack.callback(os.close, descriptor)
    return descriptor


def _open_protected(path: str) -> int | None:
    """An O_PATH descriptor of ``path``, links followed; None if there is nothing of that name.

    Raises:
        UsageError: other users may write to it, or to a directory or link on the way; or resolving the path failed.
    """
    links = 0
    pending = [(name, False) for name in reversed(path.split("/"))]
    here = "/"
    current = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # In a user namespace root's files may show as the overflow user's. The owner of / decides about all that runs here.
    owners = {0, os.geteuid(), os.fstat(current).st_uid}
    try:
        is_shared = _check(os.fstat(current), here, path, owners, is_last=False)
        while pending:
            name, is_of_link = pending.pop()
            if name in ("", "."):
                continue
            try:
                following = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            except FileNotFoundError:
                if is_shared:
                    raise UsageError(f"{path}: others may write to {here}, and make it: chmod go-w {here}") from None
                if is_of_link:
                    raise UsageError(
                        f"{path}: a link on the way leads to {os.path.join(here, name)}, which is not there: remove "
                        "it, or put there what it is to be"
                    ) from None
                return None
            except OSError as error:
                raise UsageError(f"{path}: {os.path.join(here, name)}: {error.strerror}") from error
            status = os.fstat(following)
            where = os.path.dirname(here) if name == ".." else os.path.join(here, name)
            try:
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if links > _MAX_LINKS:
                        raise UsageError(f"{path}: too many symbolic links")
                    _check_owner(status, where, path, owners)
                    target = os.readlink(name, dir_fd=current)
                    pending += [(part, True) for part in reversed(target.split("/"))]
                    if target.startswith("/"):
                        here = "/"
                        os.close(current)
                        current = -1
                        current = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    continue
                is_last = all(part in ("", ".") for part, _ in pending)
                is_shared = _check(status, where, path, owners, is_last)
                here, current, following = where, following, current
            finally:
                os.close(following)
        opened, current = current, -1
        return opened
    finally:
        if current >= 0:
            os.close(current)


def _check(status: os.stat_result, where: str, path: str, owners: set[int], is_last: bool) -> bool:
    """Raise UsageError if other users may change the file at ``where``; returns whether they may add names to it.

    In a directory with the sticky bit others cannot replace what is not theirs; the end of the way must not be one.
    """
    _check_owner(status, where, path, owners)
    is_file = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
    if not is_file or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # Anything else is refused for what it is.
        return False
    if is_last or not stat.S_ISDIR(status.st_mode) or not status.st_mode & stat.S_ISVTX:
        raise UsageError(
            f"{path}: others may write to {where} (mode {stat.S_IMODE(status.st_mode):04o}): chmod go-w {where}"
        )
    return True


def _check_owner(status: os.stat_result, where: str, path: str, owners: set[int]) -> None:
    if status.st_uid not in owners:
        raise UsageError(
            f"{path}: {where} belongs to user {status.st_uid}, who could put any key there: chown root {where}"
        )
