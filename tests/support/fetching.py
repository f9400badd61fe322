"""What tests of origins do again and again."""

from __future__ import annotations

import pytest

from mystfuse.remote.origin import FetchError, Origin


async def fetch(origin: Origin, offset: int, length: int) -> bytes:
    """A range, which must come in order and whole."""
    found = bytearray()

    async def receive(at: int, part: memoryview) -> None:
        assert at == offset + len(found)
        found.extend(part)

    await origin.fetch(offset, length, receive)
    assert len(found) == length
    return bytes(found)


async def failure_of_opening(origin: Origin) -> FetchError:
    """The error of an origin that cannot be opened; closes it."""
    try:
        with pytest.raises(FetchError) as caught:
            await origin.open(100)
        return caught.value
    finally:
        await origin.aclose()
