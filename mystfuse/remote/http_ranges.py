"""What an answer to a request for a range must be, and its bytes on their way to who asked.

Source: RFC 9110, 13 (preconditions), 14 (ranges), 8.4 (encodings), 8.8 (validators).
"""

from __future__ import annotations

import re
from contextlib import aclosing
from dataclasses import dataclass

import trio

from mystfuse.remote.http_client import Answer
from mystfuse.remote.origin import Failure, FetchError, Receive

SMALL = 1 << 20
"""Bytes of an object that a server without ranges may send whole."""
_END = 1.0
"""Seconds in which an answer must end after its last byte."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_UNSATISFIED = re.compile(r"bytes \*/(\d{1,19})")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of an object from another, as far as the server says it."""

    size: int
    etag: str = ""
    """With its quotes, also a weak one."""
    last_modified: str = ""

    @classmethod
    def of(cls, answer: Answer, size: int) -> Version:
        return cls(size, answer.headers.get("etag", ""), answer.headers.get("last-modified", ""))

    @property
    def strong_etag(self) -> str:
        return self.etag if re.fullmatch(r'"[\x21\x23-\x7e\x80-\xff]*"', self.etag) else ""

    @property
    def validator(self) -> str:
        """For ``Opened``."""
        if self.strong_etag:
            return self.strong_etag
        return f"{self.last_modified}, {self.size} bytes" if self.last_modified else ""

    def is_replaced_by(self, other: Version) -> bool:
        """Whether the other is certainly another one. What is missing in either says nothing."""
        if self.strong_etag and other.strong_etag:
            # With another size, it is the answer that is wrong.
            return self.etag != other.etag
        if self.size != other.size:
            return True
        if self.etag and other.etag:
            return self.etag != other.etag
        return bool(self.last_modified and other.last_modified and self.last_modified != other.last_modified)


@dataclass(frozen=True, slots=True)
class Range:
    """What a 206 says that it has."""

    start: int
    length: int
    total: int | None
    """Bytes of the whole object, if the server knows."""


def parse_content_range(value: str) -> Range | None:
    """Of a 206; None: it is not well-formed."""
    found = _CONTENT_RANGE.fullmatch(value.strip())
    if found is None:
        return None
    start, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    return None if last < start or (total is not None and last >= total) else Range(start, last - start + 1, total)


def size_of_unsatisfied(answer: Answer) -> int | None:
    """The size of the object, which a 416 may have."""
    found = _UNSATISFIED.fullmatch(answer.headers.get("content-range", "").strip())
    return int(found[1]) if found else None


def content_length(answer: Answer) -> int | None:
    value = answer.headers.get("content-length", "")
    return int(value) if re.fullmatch(r"\d{1,19}", value) else None


def check_encoding(answer: Answer, name: str) -> None:
    """Raises FetchError, UNUSABLE, unless a 200 or 206 brings the object's bytes as they are."""
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        how = f"the server compresses the image ({encoding[:40]}), though asked not to"
        raise unusable(name, f"{how}; have it send the bytes as they are")
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/byteranges":
        raise unusable(name, "the server sends several ranges, though asked for one")
    if media_type == "text/html":
        raise unusable(name, "the answer is a page of HTML, not an image: of a proxy, or a page for signing in?")


def range_of(answer: Answer, name: str) -> Range:
    """What a 206 has, when that makes sense; raises FetchError."""
    check_encoding(answer, name)
    value = answer.headers.get("content-range", "")
    found = parse_content_range(value)
    if found is None:
        why = (
            f"an answer with a range that makes no sense: {value[:80]!r}"
            if value
            else "an answer that does not say its range"
        )
        raise unusable(name, why)
    length = content_length(answer)
    if length is not None and length != found.length:
        raise unusable(name, f"an answer of {length} bytes with a range of {found.length}")
    return found


def without_ranges(name: str) -> FetchError:
    why = "the server sends the whole image and no ranges of it"
    return unusable(name, f"{why}; put it where ranges are served (nginx, Apache, S3), or copy it here first")


def unusable(name: str, why: str) -> FetchError:
    return FetchError(Failure.UNUSABLE, f"{name}: {why}")


def replaced(name: str, was: Version, found: Version | None) -> FetchError:
    """Another object is in the place of the one that was opened."""
    if found is None:
        how = ""
    elif was.size != found.size:
        how = f" (was {was.size} bytes, is {found.size})"
    elif was.etag != found.etag:
        how = f" (ETag was {was.etag[:80]}, is {found.etag[:80]})"
    else:
        how = f" (was of {was.last_modified[:80]}, is of {found.last_modified[:80]})"
    return FetchError(Failure.REPLACED, f"{name}: the image has been replaced since it was opened{how}; mount it again")


async def receive_range(answer: Answer, name: str, offset: int, length: int, receive: Receive) -> None:
    """Hand on the body of an answer, which must have exactly ``length`` bytes, those from ``offset`` on.

    Raises:
        FetchError: UNREACHABLE: it is shorter; UNUSABLE: it is longer.
    """
    position, end = offset, offset + length
    with trio.CancelScope() as scope:
        async with aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                after = position + len(piece)
                if after > end:
                    raise unusable(name, f"the answer does not end after the {length} bytes that were asked for")
                await receive(position, memoryview(piece))
                position = after
                if position == end:
                    scope.deadline = trio.current_time() + _END
    if position < end:
        raise FetchError(Failure.UNREACHABLE, f"{name}: the answer ended after {position - offset} of {length} bytes")
