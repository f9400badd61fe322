"""A layer of an OCI image while it is written: the archive goes in, compressed bytes come out, and both are hashed."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mystfuse.archives import oci_media
from mystfuse.archives.oci_descriptor import Descriptor
from mystfuse.archives.zstd import load_zstd
from mystfuse.errors import UsageError

COMPRESSIONS = {"none": oci_media.LAYER, "gzip": oci_media.LAYER_GZIP, "zstd": oci_media.LAYER_ZSTD}
"""The media types of layers, by the name of their compression."""
LEVELS = {"none": (0, 0, 0), "gzip": (1, 6, 9), "zstd": (1, 3, 19)}
"""The least, usual and greatest level of each compression."""


class Compressor(Protocol):
    """As the objects of ``zlib`` have it."""

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes: ...

    def flush(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Layer:
    """A complete layer."""

    descriptor: Descriptor
    """Of the blob, compressed."""
    diff_id: str
    """The digest of the archive in it."""
    archive_size: int
    """Bytes of the archive."""


class LayerStream:
    """Compresses and hashes a layer.

    Args:
        write_out: takes the blob, piece by piece.
        compression: a key of COMPRESSIONS.
        level: within the bounds of LEVELS; None for the usual one.

    Raises:
        UsageError: there is no such level, or nothing here that compresses so.
    """

    def __init__(self, write_out: Callable[[bytes], None], compression: str, level: int | None = None) -> None:
        self._write_out = write_out
        self._compression = compression
        self._compressor = _compressor(compression, level)
        self._blob, self._archive = hashlib.sha256(), hashlib.sha256()
        self._size = self._archive_size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Append a piece of the archive."""
        self._archive.update(data)
        self._archive_size += len(data)
        self._emit(bytes(data) if self._compressor is None else self._compressor.compress(data))

    def finish(self) -> Layer:
        """The layer, of which all has been written then."""
        if self._compressor is not None:
            self._emit(self._compressor.flush())
        descriptor = Descriptor(COMPRESSIONS[self._compression], f"sha256:{self._blob.hexdigest()}", self._size)
        return Layer(descriptor, f"sha256:{self._archive.hexdigest()}", self._archive_size)

    def _emit(self, data: bytes) -> None:
        if data:
            self._blob.update(data)
            self._size += len(data)
            self._write_out(data)


def check_compression(compression: str, level: int | None) -> None:
    """Raise UsageError as ``LayerStream`` does: for callers that make files first."""
    _compressor(compression, level)


def _compressor(compression: str, level: int | None) -> Compressor | None:
    least, usual, greatest = LEVELS[compression]
    if level is None:
        level = usual
    elif not least <= level <= greatest:
        allowed = f"is {least} to {greatest}" if greatest else "is for the others"
        raise UsageError(f"--level {level}: the level of {compression} {allowed}")
    if compression == "none":
        return None
    if compression == "gzip":
        # The header that zlib writes has no time and no name.
        return zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    compressor: Compressor = load_zstd().ZstdCompressor(level)
    return compressor
