"""Origins under test, and the servers that they ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from mystfuse.remote.address import parse_address
from mystfuse.remote.fetcher_config import FetcherConfig
from mystfuse.remote.origin import Origin
from mystfuse.remote.origins import make_origin
from tests.support.faulty_proxy import FaultyServer


@asynccontextmanager
async def serving(server: FaultyServer) -> AsyncIterator[str]:
    """The server runs; yields the address of an image on it."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield f"{server.url}/image"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def origin_at(address: str, **config: Any) -> AsyncIterator[Origin]:
    """The origin of an address; closed at the end."""
    origin = make_origin(parse_address(address), FetcherConfig((address,), **config))
    try:
        yield origin
    finally:
        await origin.aclose()


async def fetched(origin: Origin, offset: int, length: int, *, directly: bool = False) -> bytes:
    """What one fetch brings; checks that it comes in order, without gaps, and never too much."""
    data = bytearray()

    async def receive(at: int, piece: memoryview) -> None:
        assert at == offset + len(data)
        data.extend(piece)
        assert len(data) <= length

    with trio.fail_after(60):
        await origin.fetch(offset, length, receive, directly=directly)
    return bytes(data)
