"""The fsspec file system ``mystfuse://``: an image for programs that take fsspec's URLs.

    fsspec.open("mystfuse:///etc/hosts", image="app.img", pubkeys=["public.pem"])
    fsspec.open("mystfuse://etc/hosts::file:///srv/app.img", pubkeys=["public.pem"])

fsspec finds it by the entry point in pyproject.toml.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from fsspec import AbstractFileSystem
from fsspec.utils import stringify_path, tokenize

from mystfuse.api.arguments import OPEN_DEFAULTS, OpenArguments, takes
from mystfuse.api.file_objects import BUFFER, RawImageFile
from mystfuse.api.image import Image
from mystfuse.devices.open_source import is_address
from mystfuse.errors import UsageError
from mystfuse.tree.image_tree import Stat

_OF_FSSPEC: dict[str, Any] = {
    "use_listings_cache": True,
    "listings_expiry_time": None,
    "max_paths": None,
    "asynchronous": False,
    "loop": None,
}
"""Options of every file system of fsspec, which change nothing here."""


@takes({**OPEN_DEFAULTS, **_OF_FSSPEC}, OpenArguments)
class MystfuseFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """An image as a read-only file system of fsspec. Every block is verified before it is returned.

    Paths begin with a slash. A symbolic link is what it leads to; but in a listing one to a directory is of type
    ``other``, so that walks end. As fsspec's other archives it is not cached: each ``fsspec.open`` opens the image, and
    an image is closed with the last file system and file that use it, or by ``close``. A pickled one has the key.

    Args:
        image: path of the image, or its address.
        fo, target_protocol, target_options: the same from a chained URL, whose last part is a local file, or an
            address that we read: http, https, s3 or oci. No other file system of fsspec is asked.
        {arguments}

    Raises:
        UsageError: a wrong argument, or an image that is elsewhere, where we cannot read it.
        NotTrusted, WrongKey, FormatError, IntegrityError, ImageReadError: as for ``mystfuse.Image``.
        OSError: later; EROFS for everything that writes.
    """

    protocol = "mystfuse"
    root_marker = "/"
    cachable = False

    def __init__(
        self,
        image: str | os.PathLike[str] = "",
        fo: str | os.PathLike[str] = "",
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        path = _local_path(image, fo, target_protocol)
        given: OpenArguments = {name: arguments[name] for name in OPEN_DEFAULTS if name in arguments}  # type: ignore[assignment]
        self.image = Image(path, **given)
        self.image.close_with_last_reference()

    def close(self) -> None:
        """Close the image."""
        self.image.close()

    @property
    def fsid(self) -> str:
        """By the root hash: what stands for the contents."""
        return f"mystfuse_{self.image.root_hash.hex() if self.image.root_hash else self.image.uuid}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(part) for part in path]
        text = stringify_path(path)
        for prefix in ("mystfuse://", "mystfuse::"):
            text = text.removeprefix(prefix)
        return "/" + text.strip("/")

    # Looking.

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What a path leads to: ``name``, ``size``, ``type``, and what stat(2) says."""
        path = self._strip_protocol(path)
        itself = self.image.lstat(path)
        if not stat.S_ISLNK(itself.st_mode):
            return _info(path, itself)
        found = _info(path, self.image.stat(path))
        return {**found, "islink": True, "destination": self.image.readlink(path)}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in a directory, or a file alone: its paths, or what ``info`` says of each."""
        path = self._strip_protocol(path)
        found = self.info(path)
        if found["type"] != "directory":
            return [found] if detail else [path]
        if not detail:
            return [os.path.join(path, name) for name in self.image.listdir(path)]
        return [
            self._info_of_link(entry.path) if entry.is_symlink() else _info(entry.path, entry.stat())
            for entry in self.image.scandir(path)
        ]

    def _info_of_link(self, path: str) -> dict[str, Any]:
        """In a listing: of a link that leads nowhere, or to a directory, type and size are its own."""
        try:
            found = self.info(path)
        except OSError:
            found = {}
        if found.get("type") != "file":
            itself = _info(path, self.image.lstat(path))
            found = {**itself, "islink": True, "destination": self.image.readlink(path)}
        return found

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether a path leads anywhere. Other than fsspec's own, it does not take damage for absence."""
        return self.image.exists(self._strip_protocol(path))

    def lexists(self, path: str, **kwargs: Any) -> bool:
        """Whether a path is there, a symbolic link itself."""
        path = self._strip_protocol(path)
        return self.image.exists(path) or self.image.is_symlink(path)

    def isfile(self, path: str) -> bool:
        """Whether a path leads to a regular file."""
        return self.image.is_file(self._strip_protocol(path))

    def isdir(self, path: str) -> bool:
        """Whether a path leads to a directory."""
        return self.image.is_dir(self._strip_protocol(path))

    def modified(self, path: str) -> datetime:
        """When a file was last modified."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def ukey(self, path: str) -> str:
        """A word that changes with the contents of a file."""
        return str(tokenize(self.fsid, self.info(path)))

    # Reading.

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> OpenedFile:
        if mode != "rb":
            _refuse(path)
        raw = self.image.open(path, "rb", buffering=0)
        assert isinstance(raw, RawImageFile)
        return OpenedFile(raw, block_size or BUFFER)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file from ``start`` to ``end``; negative ones count from its end."""
        path = self._strip_protocol(path)
        if start is None and end is None:
            return self.image.read_bytes(path)
        with self._open(path) as file:
            first, behind, _ = slice(start, end).indices(file.size)
            return file.raw.pread(first, max(behind - first, 0))

    # Writing.

    def _read_only(self, path: Any = "/", *args: Any, **kwargs: Any) -> NoReturn:
        """Raise OSError: an image is not written to."""
        _refuse(path)

    mkdir = makedirs = mkdirs = makedir = rmdir = rm = rm_file = _rm = delete = _read_only
    touch = cp_file = copy = mv = move = rename = put = put_file = upload = _read_only
    pipe = pipe_file = write_bytes = write_text = _read_only


class OpenedFile(io.BufferedReader):
    """A file of an image, as fsspec wants it."""

    raw: RawImageFile

    @property
    def size(self) -> int:
        """Bytes."""
        return self.raw.size


def _local_path(image: Any, fo: Any, target_protocol: str | None) -> str | os.PathLike[str]:
    """The path or address of the image that the arguments name; UsageError if they name none, or two."""
    if bool(image) == bool(fo):
        raise UsageError("mystfuse:// needs one image: give image=PATH, or mystfuse://PATH::file:///IMAGE")
    where = image or fo
    if not isinstance(where, str | os.PathLike):
        raise UsageError(f"mystfuse:// reads an image from a local file, not from a {type(where).__name__}")
    if isinstance(where, os.PathLike) or is_address(where):
        return where
    scheme = where.partition("://")[0] if "://" in where else target_protocol or "file"
    if scheme not in ("file", "local"):
        raise UsageError(
            f"mystfuse:// reads an image from a file, http, https, s3 or oci, not by {scheme}: copy it here first"
        )
    return where.removeprefix("file://").removeprefix("local://")


def _info(path: str, status: Stat) -> dict[str, Any]:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file"}
    return {
        "name": path,
        "size": status.st_size,
        "type": kinds.get(stat.S_IFMT(status.st_mode), "other"),
        "islink": False,
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime,
        "ino": status.st_ino,
        "nlink": status.st_nlink,
    }


def _refuse(path: Any) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
