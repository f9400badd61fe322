"""An object behind a URL: ranges by HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Protocol

import trio

from mystfuse.remote.address import Address
from mystfuse.remote.http_client import Answer, HttpClient
from mystfuse.remote.http_ranges import (
    SMALL,
    Version,
    check_encoding,
    content_length,
    range_of,
    receive_range,
    replaced,
    size_of_unsatisfied,
    unusable,
    without_ranges,
)
from mystfuse.remote.http_redirects import Place
from mystfuse.remote.origin import Failure, FetchError, Opened, Receive

HEAD = 16 << 10
"""Bytes of the head that ``open`` asks for."""
_HEAD_GRACE = 0.05
"""Seconds that the head may come later than the tail, when the tail took no longer."""


class ObjectPlace(Protocol):
    """Where requests for the object go; ``http_redirects`` has the usual one."""

    def get(self, headers: Mapping[str, str], *, directly: bool = False) -> AbstractAsyncContextManager[Answer]:
        """Ask for the object. Raises FetchError."""
        ...

    def renew(self) -> bool:
        """Look for other credentials. Returns whether anything is new."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of an object, and what came with them."""

    version: Version
    start: int
    data: bytes
    is_whole: bool = False
    """It came as a 200."""


class HttpOrigin:
    """An ``Origin``: an object at ``http://`` or ``https://``.

    Args:
        address: the object's.
        client: for this origin alone, which closes it.
        place: where the object is, instead of the address itself.

    Raises:
        FetchError: the address is not a URL, or the netrc file cannot be read.
    """

    def __init__(self, address: Address, client: HttpClient, place: ObjectPlace | None = None) -> None:
        self.name = address.name
        self._client = client
        self._place: ObjectPlace = place or Place(client, address.text, self.name)
        self._version = Version(-1)

    async def open(self, tail: int) -> Opened:
        """See ``Origin``. Head and tail are asked for at once; a server that has no ranges from the end is asked once
        more, for the tail by the size that came with the head."""
        heads: list[_Part | FetchError] = []

        async def ask_for_head() -> None:
            heads.append(await self._try(f"0-{HEAD - 1}"))

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_head)
            found = await self._try(f"-{max(tail, 1)}")
            if isinstance(found, _Part) and not found.is_whole:
                now = trio.current_time()
                nursery.cancel_scope.deadline = now + max(now - started, _HEAD_GRACE)
            elif isinstance(found, FetchError) and found.failure is not Failure.UNUSABLE:
                nursery.cancel_scope.cancel()
        head = heads[0] if heads else None
        if isinstance(found, FetchError):
            if found.failure is not Failure.UNUSABLE or not isinstance(head, _Part):
                raise found
            size = head.version.size
            found = await self._try(f"{max(0, size - max(tail, 1))}-{max(0, size - 1)}") if size else head
            if isinstance(found, FetchError):
                raise found
        opened = self._judge(found, head if isinstance(head, _Part) else None, tail)
        self._version = found.version
        return opened

    async def fetch(self, offset: int, length: int, receive: Receive, *, directly: bool = False) -> None:
        """See ``Origin``."""
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        if self._version.strong_etag:
            headers["If-Match"] = self._version.strong_etag
        if directly:
            headers |= {"Cache-Control": "no-cache", "Pragma": "no-cache"}
        async with self._place.get(headers, directly=directly) as answer:
            if answer.status == 206:
                found = range_of(answer, self.name)
                self._check_version(answer, found.total)
                if (found.start, found.length) != (offset, length):
                    asked, sent = _bytes(offset, length), _bytes(found.start, found.length)
                    raise unusable(self.name, f"asked for {asked}, the server sends {sent}")
                await receive_range(answer, self.name, offset, length, receive)
            elif answer.status == 200:
                await self._receive_from_whole(answer, offset, length, receive)
            elif answer.status == 416:
                self._check_version(answer, size_of_unsatisfied(answer))
                raise unusable(self.name, f"the server refuses {_bytes(offset, length)}, which it should have")
            elif answer.status == 412:
                raise replaced(self.name, self._version, None)
            else:
                raise await answer.failure()

    async def renew(self) -> None:
        """See ``Origin``: where redirects led is forgotten, and passwords and certificates are read again."""
        has_certificates = await self._client.renew()
        if not self._place.renew() and not has_certificates:
            raise FetchError(Failure.DENIED, f"{self.name}: there are no other credentials for it")

    async def aclose(self) -> None:
        """See ``Origin``."""
        await self._client.aclose()

    def _judge(self, found: _Part, head: _Part | None, tail: int) -> Opened:
        """What two answers say, if they agree; a whole object, which nobody asked for, must have come twice."""
        size = found.version.size
        is_end = found.start + len(found.data) == size and len(found.data) >= min(size, tail)
        if not is_end or (found.is_whole and head is None):
            raise unusable(self.name, f"asked for its last {tail} bytes, the server sends others")
        if head is not None:
            is_same = head.version.size == size and not found.version.is_replaced_by(head.version) and head.start == 0
            if not is_same or (found.is_whole and head.data[:HEAD] != found.data[:HEAD]):
                sizes = f"{size} and {head.version.size} bytes"
                raise unusable(self.name, f"two answers at the same time are about different images ({sizes})")
        first = b"" if head is None else head.data
        return Opened(size, found.version.validator, found.data[-tail:] if tail else b"", first)

    async def _try(self, wanted: str) -> _Part | FetchError:
        """A part of the object before its size is known, in memory, or what went wrong."""
        try:
            async with self._place.get({"Range": f"bytes={wanted}"}) as answer:
                return await self._read_part(answer, wanted)
        except FetchError as error:
            return error

    async def _read_part(self, answer: Answer, wanted: str) -> _Part:
        if answer.status == 200:
            body = await _read_whole(answer, self.name)
            return _Part(Version.of(answer, len(body)), 0, body, is_whole=True)
        if answer.status == 416:
            if size_of_unsatisfied(answer) == 0:
                return _Part(Version.of(answer, 0), 0, b"")
            raise unusable(self.name, f"the server refuses the range {wanted}")
        if answer.status != 206:
            raise await answer.failure()
        found = range_of(answer, self.name)
        if found.total is None:
            raise unusable(self.name, "the server does not say how many bytes the image has")
        first, _, last = wanted.partition("-")
        longest = int(last) if not first else int(last) - int(first) + 1
        if found.length > longest:
            raise unusable(self.name, f"an answer of {found.length} bytes, where {longest} were asked for")
        body = await answer.read(found.length)
        if len(body) != found.length:
            text = f"{self.name}: the answer ended after {len(body)} of {found.length} bytes"
            raise FetchError(Failure.UNREACHABLE, text)
        return _Part(Version.of(answer, found.total), found.start, body)

    async def _receive_from_whole(self, answer: Answer, offset: int, length: int, receive: Receive) -> None:
        """From a 200, which has all of the object."""
        check_encoding(answer, self.name)
        size = content_length(answer)
        self._check_version(answer, size)
        if (offset, length) == (0, self._version.size):
            await receive_range(answer, self.name, offset, length, receive)
            return
        body = await _read_whole(answer, self.name)
        self._check_version(answer, len(body))
        await receive(offset, memoryview(body)[offset : offset + length])

    def _check_version(self, answer: Answer, size: int | None) -> None:
        found = Version.of(answer, self._version.size if size is None else size)
        if self._version.is_replaced_by(found):
            raise replaced(self.name, self._version, found)
        if found.size != self._version.size:
            raise unusable(self.name, f"an answer about {found.size} bytes, where the image has {self._version.size}")


def _bytes(offset: int, length: int) -> str:
    return f"bytes {offset} to {offset + length - 1}"


async def _read_whole(answer: Answer, name: str) -> bytes:
    """All of a small object, which a server without ranges sends."""
    check_encoding(answer, name)
    length = content_length(answer)
    if length is not None and length > SMALL:
        raise without_ranges(name)
    body = bytearray()
    async with aclosing(answer.pieces()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > SMALL:
                raise without_ranges(name)
    if length is not None and len(body) != length:
        raise FetchError(Failure.UNREACHABLE, f"{name}: the answer ended after {len(body)} of {length} bytes")
    return bytes(body)
