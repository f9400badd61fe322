"""What went wrong with HTTP, for people: from errors of connections, and from answers."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx2

from mystfuse.errors import one_line
from mystfuse.remote.origin import Failure, FetchError
from mystfuse.remote.tls import reason_of, tls_failure

LONGEST_RETRY_AFTER = 3600.0
"""Seconds: who asks for more gets this."""
_LONGEST_DETAIL = 200
"""Characters of what a server says of an error."""

_KINDS = {
    401: Failure.DENIED,
    403: Failure.DENIED,
    404: Failure.ABSENT,
    407: Failure.DENIED,
    408: Failure.UNREACHABLE,
    410: Failure.ABSENT,
    412: Failure.REPLACED,
    425: Failure.UNREACHABLE,
    429: Failure.BUSY,
    451: Failure.DENIED,
    501: Failure.UNUSABLE,
    503: Failure.BUSY,
    505: Failure.UNUSABLE,
}
_ADVICE = {
    401: "give a user and password in ~/.netrc or the address",
    407: "give the proxy's user and password in the environment's http_proxy or https_proxy",
    412: "the object has been replaced since it was opened",
}

_REFUSED = "the user and password in ~/.netrc or the address are not accepted"


def failure_of_status(
    name: str, status: int, headers: Mapping[str, str], body: bytes = b"", *, has_password: bool = False
) -> FetchError:
    """What an answer means that is no success.

    Args:
        name: for the message.
        headers: with names in small letters, or in whatever the mapping takes for the same.
        body: the beginning of what came with it, from which the message takes what people can read.
        has_password: whether a user and password were sent.
    """
    kind = _KINDS.get(status, Failure.UNREACHABLE if status >= 500 else Failure.UNUSABLE)
    said = _status_text(status)
    text = f"{name}: {said}"
    # The titles of many servers' pages have the status, and nothing else.
    detail = detail_of(body).removeprefix(f"{status} ")
    if detail and detail not in said:
        text += f" ({detail})"
    advice = _REFUSED if status == 401 and has_password else _ADVICE.get(status)
    if status == 400 and b"SSL certificate" in body:
        kind, advice = Failure.DENIED, "give a PEM file with certificate and key with --client-certificate"
    wait = retry_after(headers) if kind in (Failure.BUSY, Failure.UNREACHABLE) else None
    if wait:
        text += f", to be asked again in {wait:.0f} s"
    return FetchError(kind, f"{text}; {advice}" if advice else text, wait)


def detail_of(body: bytes) -> str:
    """What the body of an error says: code and message of S3's XML or a registry's JSON, a page's title, a line."""
    text = body.decode("utf-8", "replace")
    patterns = (r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?", r"<title>([^<]*)</title>",
                r'"code"\s*:\s*"([^"]*)"(?:\s*,\s*"message"\s*:\s*"([^"]*)")?')  # fmt: skip
    for pattern in patterns:
        if found := re.search(pattern, text, re.IGNORECASE):
            return _shown(": ".join(part.strip() for part in found.groups() if part))
    return "" if re.search(r"[<{\x00-\x08]|\ufffd", text) else _shown(" ".join(text.split()))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, at most LONGEST_RETRY_AFTER; None if it is missing or makes no sense.
    (RFC 9110, 10.2.3.)"""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,18}", value):
        return min(float(value), LONGEST_RETRY_AFTER)
    then, now = _date(value), _date(headers.get("date", "")) or datetime.now(UTC)
    # By the server's own clock, which may be wrong.
    return None if then is None else min(max(0.0, (then - now).total_seconds()), LONGEST_RETRY_AFTER)


def failure_of_error(
    name: str, error: httpx2.HTTPError | httpx2.InvalidURL, asked: httpx2.URL, *, is_proxy: bool = False
) -> FetchError:
    """What an error of httpx2 means.

    Args:
        asked: where the connection went: to the server, or to the proxy.
    """
    # As given: a port that is the scheme's own is in neither.
    place = asked.netloc.decode("ascii", "replace")
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return tls_failure(name, cause)
    if isinstance(error, httpx2.ProxyError):
        return _proxy_failure(name, str(error), place)
    if is_proxy:
        place = f"the proxy {place}"
    return FetchError(Failure.UNREACHABLE, f"{name}: {_what_broke(error, causes, asked.host, place)}")


def wants_http2(error: Exception) -> bool:
    """Whether a connection failed because the server does not speak HTTP/1.1. (RFC 7301, 3.2.)"""
    return any(
        isinstance(cause, ssl.SSLError) and "no application protocol" in reason_of(cause) for cause in _causes(error)
    )


def _proxy_failure(name: str, said: str, proxy: str) -> FetchError:
    kind = _KINDS.get(int(said[:3]), Failure.UNREACHABLE) if said[:3].isdecimal() else Failure.UNREACHABLE
    text = f"{name}: the proxy {proxy} refuses: {_shown(said)}"
    return FetchError(kind, f"{text}; {_ADVICE[407]}" if said.startswith("407") else text)


def _what_broke(error: Exception, causes: list[BaseException], host: str, place: str) -> str:
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return f"the host {host} is not known ({cause.strerror})"
        if isinstance(cause, OSError) and cause.errno:
            # Not its own text: trio's has the address.
            return f"{os.strerror(cause.errno).lower()} ({place})"
    if isinstance(error, httpx2.ConnectTimeout):
        return f"no connection to {place} in time"
    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx2.RemoteProtocolError):
        said = str(error)
        if "disconnected" in said or "ConnectionTerminated" in said:
            return "the connection was closed without an answer"
        if "incomplete" in said or "without sending complete" in said:
            return "the connection was closed before the end of the answer"
        return f"not HTTP as it should be: {_shown(said)}"
    return f"the connection broke ({type(error).__name__}{': ' + _shown(str(error)) if str(error) else ''})"


def _causes(error: BaseException | None, depth: int = 0) -> Iterator[BaseException]:
    """An error and those behind it; for several at once, the first."""
    while error is not None and depth < 20:
        yield error
        depth += 1
        if isinstance(error, BaseExceptionGroup):
            yield from _causes(error.exceptions[0], depth)
        error = error.__cause__ or error.__context__


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _shown(text: str) -> str:
    return one_line(text if len(text) <= _LONGEST_DETAIL else text[:_LONGEST_DETAIL] + "...")


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError, TypeError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
