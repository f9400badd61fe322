"""What the daemon (or a command) and the fetcher say to each other, over a pair of Unix sockets of kind SOCK_SEQPACKET:
one message a packet, so that a fetcher that is killed at any moment leaves no half of one.

The fetcher speaks first: OPENED, with two descriptors (see ``chunk_map``), or FAILED with request 0. Each READ gets one
of STORED, FAILED, or PARTs (in any order, none overlapping) and DONE. When a fetcher has been started anew, it says
OPENED again; whoever waits for an answer asks again. Unknown or impossible messages of the fetcher end the connection:
it is not trusted.

| message | direction | fields |
|---|---|---|
| READ | to the fetcher | request, offset, length (at most MAX_READ), flags, milliseconds left (0: no limit) |
| READ, a hint | to the fetcher | the same; there is no answer: what is fetched shows in the map |
| STATUS | to the fetcher | request |
| OPENED | from it | version, size, validator, name, the last bytes; descriptors of data and map |
| STORED | from it | request: the bytes are in the data file |
| PART | from it | request, offset, bytes |
| DONE | from it | request: all PARTs have been sent |
| FAILED | from it | request, kind of failure, one line |
| STATUS_IS | from it | request, counters by name |
| NOTE | from it | level, one line for the log |
"""

from __future__ import annotations

import base64
import json
import logging
import struct
from dataclasses import dataclass

from mystfuse.remote.origin import Failure

VERSION = 1
MAX_MESSAGE = 1 << 16
"""Bytes of a packet."""
MAX_PART = 60 << 10
"""Bytes of the image in a PART."""
MAX_READ = 1 << 20
"""Bytes that one READ asks for."""
MAX_SIZE = 1 << 62
"""Bytes of an image."""
MAX_TAIL = 4096
"""Bytes of the image's end that come with OPENED."""
MAX_TEXT = 1000
"""Characters of a line or a name."""
MAX_REQUEST = (1 << 32) - 1

_READ, _STATUS, _OPENED, _STORED, _PART, _DONE, _FAILED, _STATUS_IS, _NOTE = range(1, 10)
_HEAD = struct.Struct("<BxxxI")
_READ_BODY = struct.Struct("<QIII")
_PART_BODY = struct.Struct("<Q")
_AGAIN, _HINT = 1, 2
_FAILURES = tuple(Failure)
_LEVELS = (logging.INFO, logging.WARNING, logging.ERROR)


class ProtocolError(Exception):
    """The other side has sent what is no message of this protocol."""


@dataclass(frozen=True, slots=True)
class Read:
    """Fetch a range, which lies inside the image."""

    request: int
    offset: int
    length: int
    again: bool = False
    """The bytes that came last time did not verify: not from the cache, nor through a proxy, and from another mirror if
    there is one. The answer is in PARTs, and replaces what the cache has."""
    timeout: float | None = None
    """Seconds in which an answer is of use."""
    hint: bool = False
    """No answer is wanted: who asks looks at the map. Only without ``again``."""

    def pack(self) -> bytes:
        milliseconds = 0 if self.timeout is None else min(max(1, int(self.timeout * 1000)), (1 << 32) - 1)
        flags = (_AGAIN if self.again else 0) | (_HINT if self.hint else 0)
        body = _READ_BODY.pack(self.offset, self.length, flags, milliseconds)
        return _HEAD.pack(_READ, self.request) + body


@dataclass(frozen=True, slots=True)
class Status:
    request: int

    def pack(self) -> bytes:
        return _HEAD.pack(_STATUS, self.request)


@dataclass(frozen=True, slots=True)
class Opened:
    """The image is there, and of this size."""

    size: int
    validator: str
    name: str
    """Of the place that answered, for messages."""
    tail: bytes = b""
    """The image's last bytes, MAX_TAIL at most, as the place has sent them: a signature block, if there is one. In the
    data file others may have changed it, and no digest would tell."""

    def pack(self) -> bytes:
        tail = base64.b64encode(self.tail).decode()
        document = {"version": VERSION, "size": self.size, "validator": self.validator, "name": self.name, "tail": tail}
        return _HEAD.pack(_OPENED, 0) + json.dumps(document).encode()


@dataclass(frozen=True, slots=True)
class Stored:
    request: int

    def pack(self) -> bytes:
        return _HEAD.pack(_STORED, self.request)


@dataclass(frozen=True, slots=True)
class Part:
    request: int
    offset: int
    data: bytes | memoryview

    def pack(self) -> bytes:
        return b"".join((_HEAD.pack(_PART, self.request), _PART_BODY.pack(self.offset), self.data))


@dataclass(frozen=True, slots=True)
class Done:
    request: int

    def pack(self) -> bytes:
        return _HEAD.pack(_DONE, self.request)


@dataclass(frozen=True, slots=True)
class Failed:
    request: int
    """0: opening failed, or the fetcher cannot go on."""
    failure: Failure
    text: str

    def pack(self) -> bytes:
        kind = bytes([_FAILURES.index(self.failure)])
        return _HEAD.pack(_FAILED, self.request) + kind + _line(self.text).encode()


@dataclass(frozen=True, slots=True)
class StatusIs:
    request: int
    counters: dict[str, int]

    def pack(self) -> bytes:
        return _HEAD.pack(_STATUS_IS, self.request) + json.dumps(self.counters).encode()


@dataclass(frozen=True, slots=True)
class Note:
    level: int
    """INFO, WARNING or ERROR, as of ``logging``."""
    text: str

    def pack(self) -> bytes:
        return _HEAD.pack(_NOTE, 0) + bytes([_LEVELS.index(self.level)]) + _line(self.text).encode()


Question = Read | Status
Answer = Opened | Stored | Part | Done | Failed | StatusIs | Note


def parse_question(packet: bytes) -> Question:
    """What the daemon asks; raises ProtocolError."""
    kind, request, body = _split(packet)
    if not request:
        raise ProtocolError("a question without a number")
    if kind == _STATUS and not body:
        return Status(request)
    if kind != _READ or len(body) != _READ_BODY.size:
        raise ProtocolError(f"an unknown question ({kind}, {len(packet)} bytes)")
    offset, length, flags, milliseconds = _READ_BODY.unpack(body)
    if not 0 < length <= MAX_READ or offset + length > MAX_SIZE or flags not in (0, _AGAIN, _HINT):
        raise ProtocolError("an impossible range or flag")
    timeout = milliseconds / 1000 if milliseconds else None
    return Read(request, offset, length, flags == _AGAIN, timeout, flags == _HINT)


def parse_answer(packet: bytes) -> Answer:
    """What the fetcher says; raises ProtocolError. Sizes and texts are bounded; nothing else is believed."""
    kind, request, body = _split(packet)
    if kind in (_STORED, _DONE) and request and not body:
        return Stored(request) if kind == _STORED else Done(request)
    if kind == _PART and request and _PART_BODY.size < len(body) <= _PART_BODY.size + MAX_PART:
        return Part(request, _PART_BODY.unpack_from(body)[0], body[_PART_BODY.size :])
    if kind == _FAILED and body and body[0] < len(_FAILURES):
        return Failed(request, _FAILURES[body[0]], _text(body[1:]))
    if kind == _NOTE and body and body[0] < len(_LEVELS):
        return Note(_LEVELS[body[0]], _text(body[1:]))
    if kind == _STATUS_IS and request:
        counters = {_line(name): value for name, value in _object(body).items() if isinstance(value, int)}
        return StatusIs(request, counters)
    if kind == _OPENED:
        return _opened(_object(body))
    raise ProtocolError(f"an unknown answer ({kind}, {len(packet)} bytes)")


def _opened(document: dict[str, object]) -> Opened:
    size, validator, name = (document.get(key) for key in ("size", "validator", "name"))
    if document.get("version") != VERSION or type(size) is not int or not 0 <= size < MAX_SIZE:
        raise ProtocolError("another version, or an impossible size")
    if not isinstance(validator, str) or not isinstance(name, str):
        raise ProtocolError("a validator or name that is no text")
    return Opened(size, _line(validator), _line(name), _tail(document.get("tail", ""), size))


def _tail(text: object, size: int) -> bytes:
    try:
        tail = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        tail = None
    if tail is None or len(tail) > min(MAX_TAIL, size):
        raise ProtocolError("an end of the image that is none")
    return tail


def _split(packet: bytes) -> tuple[int, int, bytes]:
    if not _HEAD.size <= len(packet) <= MAX_MESSAGE:
        raise ProtocolError(f"a message of {len(packet)} bytes")
    kind, request = _HEAD.unpack_from(packet)
    return kind, request, packet[_HEAD.size :]


def _object(body: bytes) -> dict[str, object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ProtocolError("not an object")
    return document


def _text(data: bytes) -> str:
    return _line(data.decode("utf-8", "replace"))


def _line(text: str) -> str:
    """One line of printable characters, of bounded length."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_TEXT])
