"""The files that an image of a container consists of: in a directory, or in a tar archive of it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import ExitStack
from typing import Protocol

from mystfuse.archives.file_tree import Entry
from mystfuse.archives.layers import ArchivedFile, Layers
from mystfuse.archives.spool import Advance, FilePart, opened
from mystfuse.archives.tar_tree import add_layer
from mystfuse.errors import FormatError, MystfuseError
from mystfuse.system.openat2 import RESOLVE_IN_ROOT, openat2

MAX_DOCUMENT = 4 << 20
"""Bytes of a JSON document, the most that registries take."""
_MAX_LINKS = 8
_HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}


class ContainerFiles(Protocol):
    """Files by their paths."""

    name: str
    """For messages."""

    def open(self, path: str) -> FilePart:
        """A regular file. Raises MystfuseError: there is none."""
        ...


class DirectoryFiles:
    """Those of a directory; symbolic links lead nowhere else. Descriptors are closed with the stack."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.name = directory
        self._stack = stack
        try:
            self._descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MystfuseError(f"{directory}: {error.strerror}") from error
        stack.callback(os.close, self._descriptor)

    def open(self, path: str) -> FilePart:
        try:
            descriptor = openat2(path, os.O_RDONLY | os.O_NONBLOCK, RESOLVE_IN_ROOT, self._descriptor)
        except OSError as error:
            raise MystfuseError(f"{self.name}/{path}: {error.strerror}") from error
        self._stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MystfuseError(f"{self.name}/{path}: not a regular file")
        return FilePart(descriptor, 0, status.st_size)


class ArchiveFiles:
    """Those of a tar archive, perhaps compressed, which stays open until the stack is closed."""

    def __init__(self, path: str, stack: ExitStack, advance: Advance) -> None:
        self.name = path
        part = stack.enter_context(opened(path, path, advance))
        layers = Layers()
        add_layer(layers, part, path, with_whiteouts=False)
        self._root = layers.root

    def open(self, path: str) -> FilePart:
        try:
            found = self._find(path, 0)
        except UnicodeEncodeError:
            # JSON may name what no file system can.
            found = None
        if not isinstance(found, ArchivedFile) or not stat.S_ISREG(found.mode) or found.pieces is not None:
            raise MystfuseError(f"{self.name}: {path}: no regular file of that name in it")
        return FilePart(found.descriptor, found.offset, found.size)

    def _find(self, path: str, links: int) -> Entry | None:
        """What is at a path; links, which old versions of docker write for layers that are the same, are followed."""
        entry: Entry = self._root
        names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
        if b".." in names:
            return None
        for name in names:
            found = entry.children.get(name)
            if found is None:
                return None
            entry = found
        if stat.S_ISLNK(entry.mode):
            target = os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(entry.target)))
            return self._find(target, links + 1) if links < _MAX_LINKS else None
        return entry


def blob_path(digest: str, name: str) -> str:
    """Where the blob of a digest is in a layout.

    Raises:
        FormatError: it is no digest that we can check.
    """
    algorithm, _, digits = digest.partition(":")
    if algorithm not in _HEX_DIGITS or not re.fullmatch(rf"[0-9a-f]{{{_HEX_DIGITS[algorithm]}}}", digits):
        raise FormatError(f"{name}: {digest[:100]!r} is no digest by SHA-256, SHA-384 or SHA-512")
    return f"blobs/{algorithm}/{digits}"


def check_digest(part: FilePart, digest: str, name: str, advance: Advance = lambda count: None) -> None:
    """Raise FormatError unless a file has this digest, whose form has been checked."""
    found = hashlib.new(digest.partition(":")[0], usedforsecurity=True)
    for piece in part.pieces():
        found.update(piece)
        advance(len(piece))
    if found.hexdigest() != digest.partition(":")[2]:
        raise FormatError(f"{name}: damaged: its digest is not {digest}")


def read_document(part: FilePart, name: str) -> bytes:
    """All of a small file.

    Raises:
        FormatError: it is too large.
    """
    if part.size > MAX_DOCUMENT:
        raise FormatError(f"{name}: {part.size} bytes of JSON, more than {MAX_DOCUMENT}")
    return b"".join(part.pieces())
