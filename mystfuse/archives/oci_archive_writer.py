"""Writing an OCI layout with one image as a tar file (``oci-archive:``), without a second copy of the layer."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from types import TracebackType

from mystfuse.archives import oci_media
from mystfuse.archives.oci_descriptor import Descriptor, to_json
from mystfuse.archives.oci_layout_writer import empty_index, with_tag
from mystfuse.errors import MystfuseError
from mystfuse.system.atomic_file import AtomicFile

_DIRECTORIES = (oci_media.BLOBS, f"{oci_media.BLOBS}/sha256")
_RECORD = tarfile.RECORDSIZE


class ArchiveWriter:
    """Writes the archive, which appears under its name when it is complete.

    The layer comes first. Its header, which has its digest and size, is written when these are known.

    Args:
        force: whether the file may exist.
        is_secret: only its owner may read a new file.

    Raises:
        MystfuseError: the file exists, or its directory cannot be written to.
    """

    def __init__(self, path: Path, force: bool, is_secret: bool = False) -> None:
        self._file = AtomicFile(path, force, mode=0o600 if is_secret else 0o666)
        self._layer_size = 0
        try:
            self._file.write(b"".join(_header(name, None) for name in _DIRECTORIES))
            self._header_at = os.lseek(self._file.fd, 0, os.SEEK_CUR)
            self._file.write(bytes(tarfile.BLOCKSIZE))
        except BaseException:
            self._file.__exit__(None, None, None)
            raise

    def write_layer(self, data: bytes) -> None:
        """Append to the layer's blob."""
        self._file.write(data)
        self._layer_size += len(data)

    def publish(self, layer: Descriptor, config: bytes, manifest: bytes, tag: str) -> None:
        """Complete the archive; as ``LayoutWriter.publish``."""
        self._file.write(bytes(-self._layer_size % tarfile.BLOCKSIZE))
        try:
            os.pwrite(self._file.fd, _header(_blob(layer), self._layer_size), self._header_at)
        except OSError as error:
            raise MystfuseError(f"{self._file.target}: cannot be written: {error.strerror}") from error
        index = {**empty_index(), "manifests": with_tag([], Descriptor.of(oci_media.MANIFEST, manifest), tag)}
        for name, data in (
            (_blob(Descriptor.of("", config)), config),
            (_blob(Descriptor.of("", manifest)), manifest),
            (oci_media.LAYOUT_FILE, to_json({"imageLayoutVersion": oci_media.LAYOUT_VERSION})),
            (oci_media.INDEX_FILE, to_json(index)),
        ):
            self._file.write(_header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        end = os.lseek(self._file.fd, 0, os.SEEK_CUR) + 2 * tarfile.BLOCKSIZE
        self._file.write(bytes(2 * tarfile.BLOCKSIZE + -end % _RECORD))
        self._file.commit()

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, traceback)


def _blob(descriptor: Descriptor) -> str:
    return f"{oci_media.BLOBS}/sha256/{descriptor.file_name}"


def _header(name: str, size: int | None) -> bytes:
    """The header of a file, or, without a size, of a directory; one block, whatever the size (GNU's form)."""
    member = tarfile.TarInfo(name)
    member.mode = 0o644
    if size is None:
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    member.size = size or 0
    return member.tobuf(tarfile.GNU_FORMAT)
