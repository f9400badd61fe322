"""``mystfuse.Image``: an image for ordinary code, without an event loop of its own, and its paths."""

from __future__ import annotations

import io
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial, total_ordering, wraps
from pathlib import PurePosixPath
from types import TracebackType
from typing import IO, Any, AnyStr, Concatenate, ParamSpec, TypeVar, Unpack
from uuid import UUID
from weakref import finalize

from mystfuse.api.arguments import OPEN_DEFAULTS, OpenArguments, StrPath, takes
from mystfuse.api.async_image import AsyncImage
from mystfuse.api.file_objects import ENCODING, RawImageFile, open_file
from mystfuse.api.opening import ImageToOpen
from mystfuse.api.path_patterns import Selection
from mystfuse.system.loop_thread import LoopThread, Steps
from mystfuse.tree.image_tree import DirEntry, Stat
from mystfuse.trust.policy import Trust

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(method: Callable[Concatenate[Any, P], Awaitable[T]], name: str = "") -> Callable[Concatenate[Any, P], T]:
    """The method of ``AsyncImage``, for a caller that waits; with another name, for ``help``, if it has one here."""

    @wraps(method)
    def call(self: Image, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self.thread.call(partial(method, self.inner, *args, **kwargs)).run()
        return result

    call.__name__ = name or call.__name__
    call.__qualname__ = f"Image.{call.__name__}"
    return call


@takes(OPEN_DEFAULTS, OpenArguments)
class Image:
    """An image that is open for reading, without a mount and without FUSE, for code without an event loop.

    Every block is verified before it is returned, as on a mount. Use it as a context manager, or ``close`` it. Any
    number of threads may use one; each call waits in its own thread, and ^C ends it. A trio loop in a thread of its own
    reads the image. After a fork, the child has to open the image itself.

    Paths are str or bytes; they and symbolic links stay inside the image, as after chroot(2). ``image / "etc"`` and
    ``image.path("/etc")`` make paths that read like ``pathlib.Path``.

    Args:
        image: path of the image, or its address (https, s3, oci; needs the extra ``remote``).
        {arguments}

    Raises:
        NotTrusted: the image is not trusted by any root hash or key.
        UsageError: a wrong argument.
        WrongKey: the image is encrypted and the key does not open it, or a key is given and it is not.
        FormatError, IntegrityError, ImageReadError: not an image, or reading it failed; the last two later, too.
        OSError: later, for paths that are not there, as from the functions of ``os``.
        ValueError: later, when it is closed.
    """

    def __init__(self, image: StrPath, **arguments: Unpack[OpenArguments]) -> None:
        to_open = ImageToOpen(image, arguments)
        self.name = to_open.path
        """The path of the image's file."""
        self.thread: LoopThread[AsyncImage] = LoopThread(to_open.path, to_open.opened)
        self._set_finalizer(repr(self))
        try:
            to_open.start_deriver()
            self.inner = self.thread.open().run()
        except BaseException:
            self._finalizer.detach()
            self.thread.close().run()
            to_open.give_up()
            raise

    def close(self) -> None:
        """Close it: nothing of it runs any more. Calls under way in other threads raise ValueError. May be repeated.

        Raises:
            Exception: reading the image had ended with a failure that no call has met.
        """
        self.thread.close().run()
        # Not before: an interrupted one is closed when nothing refers to it.
        is_first = self._finalizer.detach() is not None
        if is_first and self.thread.failure is not None and not self.thread.is_foreign():
            raise self.thread.failure

    def close_with_last_reference(self) -> None:
        """Have it closed, and without a warning, when nothing refers to it any more: neither a path nor a file."""
        if self._finalizer.detach() is not None:
            self._set_finalizer(None)

    def _set_finalizer(self, warn_of: str | None) -> None:
        self._finalizer = finalize(self, _stop_unclosed, self.thread, warn_of)
        # At the end of the program the loop closes itself.
        self._finalizer.atexit = False

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return not self._finalizer.alive

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<mystfuse.Image {self.name!r}>"

    # Why it is trusted.

    @property
    def trust(self) -> Trust:
        """The decision: ``reason``, ``is_vouched_for`` and more."""
        return self.inner.trust

    @property
    def trust_explanation(self) -> str:
        """One clause for people: why the image is trusted."""
        return self.inner.trust_explanation

    @property
    def root_hash(self) -> bytes | None:
        """The root hash that verifies every block; None without a hash tree (``insecure`` alone)."""
        return self.inner.root_hash

    @property
    def signer(self) -> bytes | None:
        """SHA-256 of the modulus of the key whose signature is why it is trusted; None for another reason."""
        return self.inner.signer

    @property
    def uuid(self) -> UUID:
        """Of the file system, from its verified superblock."""
        return self.inner.uuid

    # What is in it.

    stat = _blocking(AsyncImage.stat)
    lstat = _blocking(AsyncImage.lstat)
    exists = _blocking(AsyncImage.exists)
    is_file = _blocking(AsyncImage.is_file)
    is_dir = _blocking(AsyncImage.is_dir)
    is_symlink = _blocking(AsyncImage.is_symlink)
    read_bytes = _blocking(AsyncImage.read_file, "read_bytes")
    readlink = _blocking(AsyncImage.readlink)
    listxattr = _blocking(AsyncImage.listxattr)
    getxattr = _blocking(AsyncImage.getxattr)
    listdir = _blocking(AsyncImage.listdir)
    extract = _blocking(AsyncImage.extract)
    diff = _blocking(AsyncImage.diff)
    statistics = _blocking(AsyncImage.statistics)

    def scandir(self, path: AnyStr) -> Iterator[DirEntry[AnyStr]]:
        """The names in a directory, in its own order, without ``.`` and ``..``; raises as ``listdir``."""
        return self._iterate(AsyncImage.scandir, path, 256)

    def walk(self, top: AnyStr) -> Iterator[tuple[AnyStr, list[AnyStr], list[AnyStr]]]:
        """A directory and all below it, as ``os.walk`` gives it: (path, names of directories, other names).

        Symbolic links are not followed, but for ``top`` itself. The walk skips names that the caller removes from the
        list of directories.

        Raises:
            OSError: as ``listdir``.
            CorruptFilesystem: also when a directory has two names, so that a walk might never end.
            IntegrityError, ImageReadError
        """
        return self._iterate(AsyncImage.walk, top, 1)

    def _iterate(self, method: Callable[[AsyncImage, Any], Any], path: str | bytes, at_once: int) -> Iterator[Any]:
        steps: Steps[Any] = Steps(method(self.inner, path), at_once)
        try:
            while batch := self.thread.call(steps.next).run():
                yield from batch
        finally:
            steps.end(self.thread)

    def read_text(self, path: str | bytes, encoding: str | None = None, errors: str | None = None) -> str:
        """The contents of a regular file, decoded from UTF-8 or ``encoding``, with ``\\n`` for all line ends; raises as
        ``read_bytes``, and UnicodeDecodeError."""
        with io.TextIOWrapper(io.BytesIO(self.read_bytes(path)), encoding or ENCODING, errors) as file:
            return file.read()

    def open(
        self,
        path: str | bytes,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a regular file, as the built-in ``open`` does, text being UTF-8; symbolic links are followed.

        Raises:
            OSError: as ``stat``; EISDIR if it is not a regular file; EROFS for a mode that writes.
            CorruptFilesystem, IntegrityError, ImageReadError: also when it is read.
            ValueError: an impossible mode.
        """
        return open_file(partial(self._open_raw, path), path, mode, buffering, encoding, errors, newline)

    def _open_raw(self, path: str | bytes) -> RawImageFile:
        return RawImageFile(self.thread, self.thread.call(partial(self.inner.open, path)).run(), self)

    # Paths.

    def path(self, *segments: StrPath) -> ImagePath:
        """A path in the image; without segments, its root."""
        return ImagePath(self, *segments)

    def __truediv__(self, segment: StrPath) -> ImagePath:
        return self.path(segment)

    def iterdir(self, path: StrPath = "/") -> Iterator[ImagePath]:
        """The paths of what is in a directory, in its own order; raises as ``listdir``."""
        return self.path(path).iterdir()

    def glob(self, pattern: str) -> Iterator[ImagePath]:
        """The paths below the root that match a pattern, as ``pathlib.Path.glob``."""
        return self.path().glob(pattern.lstrip("/"))


@total_ordering
class ImagePath:
    """A path in an open image: absolute, as the image's root is also where relative ones begin.

    Names and parts are those of ``pathlib.PurePosixPath``. It is no ``os.PathLike``: the functions of ``os`` would take
    it for a path of this machine. Errors are those of ``Image``.

    Args:
        image: an open one.
        segments: joined as by ``PurePosixPath``.
    """

    __slots__ = ("_path", "image")

    def __init__(self, image: Image, *segments: StrPath | ImagePath) -> None:
        path = PurePosixPath("/", *(str(part) if isinstance(part, ImagePath) else part for part in segments))
        self.image = image
        # Two slashes are one here, which POSIX leaves open.
        self._path = PurePosixPath("/", *path.parts[1:])

    # The name.

    @property
    def name(self) -> str:
        """The last part; empty for the root."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """The name's last suffix, with its dot."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the name."""
        return self._path.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        """The root, and each name."""
        return self._path.parts

    @property
    def parent(self) -> ImagePath:
        """The path without its last part; the root's is the root."""
        return self._like(self._path.parent)

    @property
    def parents(self) -> Sequence[ImagePath]:
        """All paths above, the nearest first."""
        return [self._like(path) for path in self._path.parents]

    def joinpath(self, *segments: StrPath) -> ImagePath:
        """This path with more parts; an absolute one begins anew."""
        return ImagePath(self.image, self._path, *segments)

    def __truediv__(self, segment: StrPath) -> ImagePath:
        return self.joinpath(segment)

    def with_name(self, name: str) -> ImagePath:
        """Another name in the same directory."""
        return self._like(self._path.with_name(name))

    def with_stem(self, stem: str) -> ImagePath:
        """The same with another stem."""
        return self._like(self._path.with_stem(stem))

    def with_suffix(self, suffix: str) -> ImagePath:
        """The same with another suffix."""
        return self._like(self._path.with_suffix(suffix))

    def relative_to(self, other: StrPath | ImagePath) -> PurePosixPath:
        """The rest of this path below another one; ValueError if it is not below it."""
        return self._path.relative_to(str(other))

    def is_relative_to(self, other: StrPath | ImagePath) -> bool:
        """Whether it is another path or below it."""
        return self._path.is_relative_to(str(other))

    def match(self, pattern: str) -> bool:
        """Whether it ends in what a pattern matches."""
        return self._path.match(pattern)

    def is_absolute(self) -> bool:
        """True."""
        return True

    def as_posix(self) -> str:
        """The path as text."""
        return str(self._path)

    def __str__(self) -> str:
        return str(self._path)

    def __repr__(self) -> str:
        return f"<ImagePath {str(self._path)!r} in {self.image!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImagePath) and (self.image, self._path) == (other.image, other._path)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, ImagePath) or self.image is not other.image:
            return NotImplemented
        return self._path < other._path

    def __hash__(self) -> int:
        return hash((id(self.image), self._path))

    # What is there.

    def stat(self, *, follow_symlinks: bool = True) -> Stat:
        """The result of stat(2)."""
        return self.image.stat(str(self), follow_symlinks=follow_symlinks)

    def lstat(self) -> Stat:
        """The result of lstat(2)."""
        return self.image.lstat(str(self))

    def exists(self) -> bool:
        """Whether it leads anywhere, symbolic links followed."""
        return self.image.exists(str(self))

    def is_file(self) -> bool:
        """Whether it leads to a regular file."""
        return self.image.is_file(str(self))

    def is_dir(self) -> bool:
        """Whether it leads to a directory."""
        return self.image.is_dir(str(self))

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link itself."""
        return self.image.is_symlink(str(self))

    def readlink(self) -> PurePosixPath:
        """The target of a symbolic link, as it stands."""
        return PurePosixPath(self.image.readlink(str(self)))

    def listxattr(self, *, follow_symlinks: bool = True) -> list[str]:
        """The full names of the extended attributes."""
        return self.image.listxattr(str(self), follow_symlinks=follow_symlinks)

    def getxattr(self, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """The value of an extended attribute."""
        return self.image.getxattr(str(self), attribute, follow_symlinks=follow_symlinks)

    def read_bytes(self) -> bytes:
        """The whole contents of a regular file."""
        return self.image.read_bytes(str(self))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The same, decoded from UTF-8 or ``encoding``."""
        return self.image.read_text(str(self), encoding, errors)

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a regular file, as ``Image.open``."""
        return self.image.open(str(self), mode, buffering, encoding, errors, newline)

    def extract(self, destination: StrPath) -> dict[str, int]:
        """Copy it, and all below it, out of the image, as ``Image.extract``."""
        return self.image.extract(str(self), destination)

    def iterdir(self) -> Iterator[ImagePath]:
        """The paths of what is in a directory, in its own order."""
        # Here, not when the first is asked for.
        return map(self.joinpath, self.image.listdir(str(self)))

    def walk(self) -> Iterator[tuple[ImagePath, list[str], list[str]]]:
        """A directory and all below it, as ``Image.walk``."""
        for path, directories, others in self.image.walk(str(self)):
            yield self.joinpath(path), directories, others

    def glob(self, pattern: str) -> Iterator[ImagePath]:
        """What below it matches a pattern of names with ``*``, ``?``, ``[...]``, and ``**`` for any directories.

        ``**`` does not follow symbolic links, and as the last part also stands for files, as in Python 3.13.

        Raises:
            ValueError: an empty pattern. NotImplementedError: an absolute one.
            CorruptFilesystem, IntegrityError, ImageReadError: when reading a directory fails.
        """
        return map(self.joinpath, Selection(self.image, pattern).below(str(self)))

    def rglob(self, pattern: str) -> Iterator[ImagePath]:
        """``glob`` with ``**/`` in front."""
        if pattern.startswith("/"):
            raise NotImplementedError("Non-relative patterns are unsupported")
        return self.glob(f"**/{pattern}")

    def _like(self, path: PurePosixPath) -> ImagePath:
        return ImagePath(self.image, path)


def _stop_unclosed(thread: LoopThread[AsyncImage], name: str | None) -> None:
    """Stop the loop of an image that nothing refers to any more; warn if it has a name."""
    thread.stop()
    if name is not None and not thread.is_foreign():
        warnings.warn(f"unclosed {name}", ResourceWarning, stacklevel=2)
