"""Compressed data by their first bytes: gzip, bzip2, xz and zstd, decompressed in bounded steps."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from mystfuse.archives.zstd import load_zstd
from mystfuse.errors import FormatError, UnsupportedFeature
from mystfuse.formats.others.archives import is_tar_header

STEP = 1 << 20
"""Bytes of one step, at most."""
_MAX_LZMA_MEMORY = 256 << 20
"""Bytes: xz -9 needs 65 MiB, and a header may ask for 4 GiB."""
_MAX_ZSTD_WINDOW = 27
"""Bits of a size: zstd's own limit without --long."""
FIRST_BYTES = 512
"""Bytes by which ``compression_of`` tells: a header of a plain archive."""


class _Decompressor(Protocol):
    """What the classes of bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's object as one of them."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


def _make_zstd() -> _Decompressor:
    zstd = load_zstd()
    made: _Decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_ZSTD_WINDOW})
    return made


_MAKERS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": _Gzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_LZMA_MEMORY),
    "zstd": _make_zstd,
}
_UNKNOWN = {
    b"\x04\x22\x4d\x18": "lz4", b"\x1f\x9d": "compress (.Z)", b"LZIP": "lzip", b"\x5d\0\0": "lzma", b"\x89LZO": "lzop",
}  # fmt: skip


def compression_of(start: bytes) -> str | None:
    """The name of the compression of data that begin like this; None: of none.

    Raises:
        UnsupportedFeature: it is one that we do not have.
    """
    if is_tar_header(start):
        # Its first member may have any name.
        return None
    for magic, name in _UNKNOWN.items():
        if start.startswith(magic):
            raise UnsupportedFeature(
                f"compressed by {name}, not gzip, bzip2, xz or zstd: pipe it to --tar - decompressed"
            )
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    if start.startswith(b"BZh"):
        return "bzip2"
    if start.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5):
        # The second: a frame to be skipped, also in front of others.
        return "zstd"
    return None


def decompress(read: Callable[[int], bytes], compression: str) -> Iterator[bytes]:
    """The decompressed data, in parts of ``STEP`` bytes at most. Several streams, one behind the other, are one.

    Args:
        read: gives up to so many bytes, none only at the end.
        compression: by ``compression_of``.

    Raises:
        FormatError: they are damaged, cut short, or followed by something else.
    """
    make = _MAKERS[compression]
    machine, data, is_over = make(), b"", False
    while True:
        if not data and not is_over and machine.needs_input:
            data = read(STEP // 4)
            is_over = not data
        try:
            part = machine.decompress(data, STEP)
        except MemoryError:
            raise
        except Exception as error:
            # Each library has errors of its own, one of them without a common base.
            raise FormatError(f"damaged: {compression}: {error}") from error
        data = b""
        if part:
            yield part
        if machine.eof:
            data = _next_stream(machine.unused_data, read, compression)
            if not data:
                return
            machine = make()
        elif not part and is_over:
            raise FormatError(f"cut short: the {compression} data have no end")


def _next_stream(data: bytes, read: Callable[[int], bytes], compression: str) -> bytes:
    """The beginning of the next stream; nothing if there is none. Zeros that fill up a tape's block do not count."""
    while True:
        data = data.lstrip(b"\0")
        if len(data) >= FIRST_BYTES:
            break
        more = read(STEP // 4)
        if not more:
            break
        data += more
    if data and compression_of(data[:FIRST_BYTES]) != compression:
        raise FormatError(f"damaged: something that is not {compression} follows the compressed data")
    return data
