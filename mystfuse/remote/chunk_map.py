"""The files in which the fetcher keeps what it has fetched, and in which the daemon reads: data and map.

The data file has the image's size, and is sparse: what has not been fetched, or was thrown away, is a hole, so reads as
zeros, which the hash tree tells from data as it does any wrong byte. So nothing depends on the map being right. It has
four bytes for each chunk (little endian): 0 when the data file may lack some of it, else when it was fetched, in
minutes since 1970. The fetcher writes data first, the map second.

Both may be in a directory that others write to: whoever reads them believes nothing.
"""

from __future__ import annotations

CHUNK = 16 << 10
"""Bytes of a chunk; the last one may be shorter."""
ENTRY = 4
"""Bytes of the map for each chunk."""


def chunks_of(offset: int, length: int) -> range:
    """The numbers of the chunks in which a range lies."""
    return range(offset // CHUNK, -(-(offset + length) // CHUNK))
