"""Writing an image into an OCI layout, a directory that may hold others (``image-layout.md`` of the specification).

Whenever the writer is killed, the layout is what it was, or has the new image as well: blobs get their names when they
are complete and on disk, and then ``index.json`` is replaced. Writers of one layout do not disturb each other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mystfuse.archives import oci_media
from mystfuse.archives.json_object import parse_object
from mystfuse.archives.oci_descriptor import Descriptor, to_json
from mystfuse.errors import MystfuseError
from mystfuse.system.atomic_file import AtomicFile
from mystfuse.system.output_paths import make_directories, open_directory

MAX_INDEX = 4 << 20
"""Bytes of an ``index.json`` that is read; a tag takes about 300."""
_UNNAMED = "layer"
"""The name of the layer's file in messages, before it has its own."""


class LayoutWriter:
    """Adds one image to the layout in a directory, which is made if it is missing.

    Leaving the ``with`` block without ``publish`` leaves nothing behind.

    Args:
        is_secret: only its owner may read the layer.

    Raises:
        MystfuseError: the directory holds something else, or a layout that we do not understand; or cannot be written
            to. Nothing in it has been changed.
    """

    def __init__(self, directory: Path, is_secret: bool = False) -> None:
        self._path = directory
        self._blobs = directory / oci_media.BLOBS / "sha256"
        self._stack = ExitStack()
        self._is_new = self._was_missing = False
        self._mode = 0o600 if is_secret else 0o666
        self._directory = -1
        try:
            self._open()
            self._layer = self._stack.enter_context(AtomicFile(self._blobs / _UNNAMED, replace=True, mode=self._mode))
        except BaseException as error:
            self.__exit__(None, None, None)
            if isinstance(error, OSError):
                raise MystfuseError(f"{directory}: {error.strerror}") from error
            raise

    def _open(self) -> None:
        """Open the layout, or make one."""
        while True:
            self._was_missing = not os.path.lexists(self._path)
            make_directories(self._path)
            found = open_directory(self._path)
            try:
                self._directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
            finally:
                os.close(found)
            # Who has made a layout and failed removes it, unless others have come to write to it.
            fcntl.flock(self._directory, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._directory), os.stat(self._path)):
                    break
            os.close(self._directory)
            self._directory = -1
        names = [name for name in os.listdir(self._directory) if not name.startswith(f".{oci_media.LAYOUT_FILE}.")]
        if oci_media.LAYOUT_FILE in names:
            self._check_version()
        elif names:
            raise MystfuseError(f"{self._path}: holds other things, and is no OCI layout: name another directory")
        else:
            self._is_new = True
            with AtomicFile(self._path / oci_media.LAYOUT_FILE, replace=True) as file:
                file.write(to_json({"imageLayoutVersion": oci_media.LAYOUT_VERSION}))
                file.commit()
        # Before the long work.
        self._read_index()
        make_directories(self._blobs)

    def _check_version(self) -> None:
        name = f"{self._path}/{oci_media.LAYOUT_FILE}"
        version = parse_object(self._read(oci_media.LAYOUT_FILE) or b"", name).get("imageLayoutVersion")
        if version != oci_media.LAYOUT_VERSION:
            raise MystfuseError(f"{name}: layout version {version!r}, which we do not know; it is not touched")

    def write_layer(self, data: bytes) -> None:
        """Append to the layer's blob."""
        self._layer.write(data)

    def publish(self, layer: Descriptor, config: bytes, manifest: bytes, tag: str) -> None:
        """Add the image to the layout; an image that has the tag loses it.

        Args:
            layer: of what ``write_layer`` got.

        Raises:
            MystfuseError: the disk is full, or ``index.json`` has been broken meanwhile.
        """
        blobs = [(self._layer, layer.file_name)]
        # All are written before the first has its name: a full disk leaves none behind.
        for data in (config, manifest):
            file = self._stack.enter_context(AtomicFile(self._blobs / "blob", replace=True))
            file.write(data)
            blobs.append((file, Descriptor.of("", data).file_name))
        for file, name in blobs:
            file.commit(name)
        lock = os.open(f"{oci_media.BLOBS}/sha256", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = self._read_index()
            index["manifests"] = with_tag(index["manifests"], Descriptor.of(oci_media.MANIFEST, manifest), tag)
            with AtomicFile(self._path / oci_media.INDEX_FILE, replace=True) as file:
                file.write(to_json(index))
                file.commit()
        finally:
            os.close(lock)
        self._is_new = False

    def _read_index(self) -> dict[str, Any]:
        """``index.json``, or an empty one if there is none: then a first writer was killed."""
        name = f"{self._path}/{oci_media.INDEX_FILE}"
        data = self._read(oci_media.INDEX_FILE)
        if data is None:
            return empty_index()
        index = parse_object(data, name)
        manifests = index.get("manifests")
        if index.get("schemaVersion") != 2 or not isinstance(manifests, list):
            raise MystfuseError(f"{name}: not an OCI image index; it is not touched")
        if not all(isinstance(entry, dict) and isinstance(entry.get("annotations") or {}, dict) for entry in manifests):
            raise MystfuseError(f"{name}: an entry is no descriptor; it is not touched")
        return index

    def _read(self, name: str) -> bytes | None:
        """A small file of the layout; None if it is missing."""
        path = f"{self._path}/{name}"
        try:
            descriptor = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MystfuseError(f"{path}: {_explain(error)}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise MystfuseError(f"{path}: not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_INDEX + 1)
        except OSError as error:
            raise MystfuseError(f"{path}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if len(data) > MAX_INDEX:
            raise MystfuseError(f"{path}: larger than {MAX_INDEX >> 20} MiB; it is not touched")
        return data

    def __enter__(self) -> LayoutWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._directory < 0:
            return
        if self._is_new:
            with suppress(OSError):
                self._remove()
        os.close(self._directory)
        self._directory = -1

    def _remove(self) -> None:
        """Remove the layout that we have made, unless others write to it or have."""
        fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.lexists(self._path / oci_media.INDEX_FILE):
            return
        with suppress(FileNotFoundError):
            for name in os.listdir(self._blobs):
                os.unlink(self._blobs / name)
            self._blobs.rmdir()
            self._blobs.parent.rmdir()
        with suppress(FileNotFoundError):
            os.unlink(self._path / oci_media.LAYOUT_FILE)
        if self._was_missing:
            self._path.rmdir()


def empty_index() -> dict[str, Any]:
    """The index of a layout without images."""
    return {"schemaVersion": 2, "mediaType": oci_media.INDEX, "manifests": []}


def with_tag(manifests: Sequence[dict[str, Any]], manifest: Descriptor, tag: str) -> list[dict[str, Any]]:
    """The entries of an index once ``tag`` is the name of ``manifest``, and of no other."""
    others = [entry for entry in manifests if (entry.get("annotations") or {}).get(oci_media.REF_NAME) != tag]
    return [*others, {**manifest.document(), "annotations": {oci_media.REF_NAME: tag}}]


def _explain(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a symbolic link, which is not followed"
    return error.strerror or str(error)
